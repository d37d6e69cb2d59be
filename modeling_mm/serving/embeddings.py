# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
`/v1/embeddings`: the decoder's last state after a user's message, where an answer would begin, with a length of 1.

An input is a text, or a list of content parts as in a chat: texts, images and audio.
"""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import torch
from fastapi.responses import JSONResponse, Response
from torch.nn.functional import normalize

from ..evaluation.answering import free_positions
from ..outputs import MMMediaOutput
from .chat_request import MOST_PARTS, check_part, check_size
from .fields import EMBEDDING_FIELDS
from .handlers import RequestQueue
from .limits import BadRequest
from .preparing import Media
from .row import items_of
from .values import check_text, shortened

ENCODINGS = ("float", "base64")


class EmbeddingsHandler:
    """Handler of `/v1/embeddings`."""

    def __init__(self, queue: RequestQueue):
        self.queue = queue

    async def respond(self, body: dict[str, Any]) -> Response:
        """
        Answer a request.

        Raises:
            BadRequest: for a fault in the request.
            HTTPException: for another model.
        """
        self.queue.manager.check_name(body.get("model"))
        model, _ = self.queue.manager.served()
        messages, media = await asyncio.to_thread(check_embeddings, body, model.config.text_config.n_embd)
        rows = []
        tokens = 0
        for index, message in enumerate(messages):
            prepared = await self.queue.prepare([message], [each for each in media if is_of(each, message)])
            inputs = self.queue.tensors(prepared)
            check_length(index, inputs["input_ids"].shape[1], model)
            tokens += inputs["input_ids"].shape[1]
            # One by one, so that the answers of others go on in between.
            shown = await asyncio.wrap_future(self.queue.engine.encode(items_of(inputs)))
            vector = await self.queue.use_model(embed, model, inputs["input_ids"], shown)
            embedding = encoded(vector) if body.get("encoding_format") == "base64" else vector.tolist()
            rows.append({"object": "embedding", "index": index, "embedding": embedding})
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        name = self.queue.manager.force_model
        return JSONResponse({"object": "list", "data": rows, "model": name, "usage": usage})


@torch.no_grad()
def embed(model: Any, input_ids: torch.Tensor, media: MMMediaOutput | None) -> torch.Tensor:
    """Return the embedding (D,) of one row (1, L) with its encoded media, in float32 on the CPU."""
    state = model.model(input_ids, media=media, use_cache=False).last_hidden_state[0, -1]
    return normalize(state.float(), dim=0).cpu()


def is_of(media: Media, message: Mapping[str, Any]) -> bool:
    """Return True for an image or audio of a message."""
    return any(part is media.part for part in message["content"])


def encoded(vector: torch.Tensor) -> str:
    """Return a vector as the base64 of its float32 values, which OpenAI's client asks for."""
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()


def check_embeddings(body: Mapping[str, Any], width: int) -> tuple[list[dict[str, Any]], list[Media]]:
    """
    Return a user's message for each input, and the media of all.

    Raises:
        BadRequest: for the first fault.
    """
    EMBEDDING_FIELDS.check(body)
    dimensions, encoding = body.get("dimensions"), body.get("encoding_format")
    if dimensions is not None and (isinstance(dimensions, bool) or dimensions != width):
        raise BadRequest(f"`dimensions`: this model has {width}, got {shortened(dimensions)}; leave it out.")
    if encoding is not None and encoding not in ENCODINGS:
        raise BadRequest(f"`encoding_format`: expected {' or '.join(ENCODINGS)}, got {shortened(encoding)}.")
    given = body.get("input")
    is_one = isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], dict))
    inputs = [given] if is_one else given
    if not isinstance(inputs, list) or not inputs:
        raise BadRequest(f"`input`: expected a text, a list of texts, or content parts, got {shortened(given)}.")
    media: list[Media] = []
    messages = [
        {"role": "user", "content": check_content("input" if is_one else f"input[{index}]", content, media)}
        for index, content in enumerate(inputs[: MOST_PARTS + 1])
    ]
    check_size("input", messages, media)
    return messages, media


def check_content(where: str, content: Any, media: list[Media]) -> str | list[dict[str, Any]]:
    """Return one input in our chat form; `media` gets its images and audio."""
    numbers = content if isinstance(content, list) else [content]
    if any(isinstance(number, int) for number in numbers):
        raise BadRequest(
            f"`{where}`: token ids are not taken, as another tokenizer may have made them; send texts (LangChain: "
            "check_embedding_ctx_length=False)."
        )
    if isinstance(content, list) and content:
        return [check_part(f"{where}[{i}]", part, media) for i, part in enumerate(content[: MOST_PARTS + 1])]
    text = check_text(where, content, "a text or a list of content parts")
    if not text:
        raise BadRequest(f"`{where}`: expected a text that is not empty.")
    return text


def check_length(index: int, length: int, model: Any) -> None:
    if not free_positions(model.config, length - 1):
        positions = model.config.text_config.n_positions
        raise BadRequest(
            f"`input[{index}]`: takes {length} tokens, and the model has {positions} positions; shorten it."
        )
