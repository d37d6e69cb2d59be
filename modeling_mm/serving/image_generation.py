# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
`/v1/images/generations` and `/v1/images/edits`: images that the model writes as codes.

They are answers to a prompt, of an edit beside its images, that consist of one block of codes. The prompt says what
to draw, and becomes the text of the model's drawing prompt. Their rows share the running batch of all other answers,
where a chat waited at most 0.13 s for its next token; beside a call of `generate` it waited for the whole 1.9 s (an
image of 64 codes, 18M parameters, one busy CPU thread).
"""

import asyncio
import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from ..code_generation import TEXT
from ..evaluation.answering import free_positions
from ..prompts import drawing_prompt, fill_prompt
from .chat_request import LONGEST_TEXT, MOST_MEDIA
from .completions import usage_of
from .events import whole_texts
from .fields import EDIT_FIELDS, IMAGE_FIELDS
from .forms import form_files, form_numbers, form_texts, is_form
from .handlers import RequestQueue
from .image_output import to_png
from .limits import BadRequest
from .preparing import Media
from .sampling import DEFAULT_TEMPERATURE, Sampling
from .text_streamer import TokenStreamer
from .values import check_sampling, check_text, shortened

KIND = "image"
FORMAT = "b64_json"
NUMBERS = ("guidance_scale", "n", "seed", "temperature", "top_k", "top_p")
EDGES = 2  # the start and the end token around the codes


class ImageHandler:
    """Handler of `/v1/images/generations` and `/v1/images/edits`."""

    def __init__(self, queue: RequestQueue):
        self.queue = queue

    async def generate(self, request: Request, body: Mapping[str, Any]) -> Response:
        """
        Draw images for a prompt.

        Raises:
            BadRequest: for a fault in the request.
            HTTPException: for another model.
        """
        self.queue.manager.check_name(body.get("model"))
        IMAGE_FIELDS.check(body)
        prompt, sampling = self.check(body)
        return await self.respond(request, prompt, sampling)

    async def edit(self, request: Request) -> Response:
        """
        Draw images for a prompt about other images.

        Raises:
            BadRequest: for a fault in the request.
            HTTPException: for another model, and for a form that cannot be read.
        """
        if not is_form(request):
            raise BadRequest("`image`: expected a file as multipart/form-data.")
        async with request.form(max_files=MOST_MEDIA + 2) as form:  # a mask and a markup beside them are refused
            texts = form_texts(form, EDIT_FIELDS, (KIND,))
            self.queue.manager.check_name(texts.get("model"))
            prompt, sampling = self.check({**texts, **form_numbers(texts, NUMBERS)})
            if self.queue.writer.image_processor is None:
                raise BadRequest("`model`: it has no image encoder; use /v1/images/generations, or a model with one.")
            files = form_files(form, KIND, MOST_MEDIA)
            shown = [Media(KIND, await file.read(), {"type": KIND}) for file in files]
        return await self.respond(request, prompt, sampling, shown)

    def check(self, request: Mapping[str, Any]) -> tuple[str, Sampling]:
        """
        Return the prompt of a request, and the options of its images.

        Raises:
            BadRequest: for a model that draws nothing, and for a value that is wrong or not served.
        """
        self.queue.check_writes(KIND)
        prompt = check_text("prompt", request.get("prompt"), "a text")
        if not 0 < len(prompt) <= LONGEST_TEXT:
            raise BadRequest(f"`prompt`: expected 1 to {LONGEST_TEXT} characters, got {len(prompt)}.")
        height, width = self.queue.writer.written[KIND].codec.image_size
        if request.get("size") not in (None, "auto", f"{width}x{height}"):
            raise BadRequest(f"`size`: expected auto or {width}x{height}, got {shortened(request['size'])}.")
        if request.get("response_format") not in (None, FORMAT):
            got = shortened(request["response_format"])
            raise BadRequest(f"`response_format`: this server keeps no files; expected {FORMAT}, got {got}.")
        sampling = check_sampling({name: request[name] for name in NUMBERS if name in request})
        if sampling.temperature is None and not self.queue.engine.model.generation_config.do_sample:
            sampling = replace(sampling, temperature=DEFAULT_TEMPERATURE)  # the likeliest codes make dull images
        return prompt, replace(sampling, outputs=(KIND,), max_tokens=self.tokens)

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return self.queue.writer.written[KIND].tokens.steps * self.queue.writer.written[KIND].tokens.codebooks + EDGES

    async def respond(
        self, request: Request, prompt: str, sampling: Sampling, shown: Sequence[Media] = ()
    ) -> Response:
        """Answer a checked request about images that it shows."""
        question = {"type": TEXT, TEXT: fill_prompt(drawing_prompt(self.queue.engine.model), text=prompt)}
        messages = [{"role": "user", "content": [*(each.part for each in shown), question]}]
        prepared = await self.queue.prepare(messages, shown)
        self.check_room(prepared.inputs["input_ids"].shape[1])
        streams = self.queue.answer(prepared, sampling, TokenStreamer)
        await whole_texts(streams, request.receive)
        if any(len(stream.streamer.tokens) < self.tokens for stream in streams):
            return Response(status_code=400)  # the client has left, and nobody reads it
        data = []
        for stream in streams:
            # One by one between two steps, so that the answers of others go on in between.
            (part,) = await self.queue.use_model(self.queue.writer.decode_media, stream.streamer.tokens)
            data.append({FORMAT: base64.b64encode(await asyncio.to_thread(to_png, part[KIND])).decode()})
        width, height = part[KIND].size
        usage = image_usage(usage_of(streams), len(shown))
        head = {"created": int(time.time()), "output_format": "png", "size": f"{width}x{height}"}
        return JSONResponse({**head, "data": data, "usage": usage})

    def check_room(self, prompt: int) -> None:
        """Raise a `BadRequest` if an image does not fit behind so many tokens of a prompt."""
        model, most = self.queue.engine.model, self.queue.limits.tokens
        if most is not None and self.tokens > most:
            raise BadRequest(
                f"An image takes {self.tokens} tokens, and this server generates {most} at most; start it with "
                f"--max-tokens {self.tokens}."
            )
        if self.tokens > free_positions(model.config, prompt):
            raise BadRequest(
                f"`prompt`: it takes {prompt} tokens and an image {self.tokens}, but the model has "
                f"{model.config.text_config.n_positions} positions; shorten it."
            )


def image_usage(usage: Mapping[str, int], shown: int) -> dict[str, Any]:
    """Return the usage of answers in the names of this route; an image that is shown takes a token of the prompt."""
    prompt = usage["prompt_tokens"]
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"image_tokens": shown, "text_tokens": prompt - shown},
        "output_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
    }
