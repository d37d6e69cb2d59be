# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Answers while they are generated: the engine generates, the event loop reads piece by piece and can end it.

    stream = GenerationStream(engine, processor, inputs, config, Sampling(stop=(".",)))
    async for piece in stream.pieces(): ...
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from ..evaluation.answering import free_positions
from .engine import Engine
from .limits import BadRequest
from .row import MediaItem, Row, items_of, single_options
from .sampling import Sampling
from .text_streamer import TextStreamer, TokenStreamer

logger = logging.get_logger(__name__)

MakeStreamer = Callable[[Callable[[Any], None]], TokenStreamer]


class GenerationStream:
    """
    Answer that the event loop reads while the engine generates it.

    Args:
        inputs: of `generate`, of one prompt
        config: from `make_config`
        sampling: options of the answer
        seed: of its sampling; None draws by chance
        items: media of the inputs, from `items_of`, if several answers share them
        streamer: makes what takes the tokens, given the function that takes its pieces; by default of text
    """

    def __init__(
        self,
        engine: Engine,
        processor: Any,
        inputs: Mapping[str, torch.Tensor],
        config: GenerationConfig,
        sampling: Sampling,
        seed: int | None = None,
        items: list[MediaItem] | None = None,
        streamer: MakeStreamer | None = None,
    ):
        self.config, self.prompt_tokens = config, inputs["input_ids"].shape[-1]
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
        make = streamer or partial(TextStreamer, processor.tokenizer, stop_strings=sampling.stop)
        self.streamer = make(self._push)
        items = items_of(inputs) if items is None else items
        self.row = Row(items, inputs, config, sampling, seed, self.streamer)
        self.generated = engine.submit(self.row)
        self.generated.add_done_callback(lambda _: self._push(None))

    def _push(self, piece: Any) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)

    async def pieces(self) -> AsyncIterator[Any]:
        """Yield the answer piece by piece, of text as a rule, until it is complete or has failed."""
        while (piece := await self._queue.get()) is not None:
            yield piece

    async def whole(self) -> list[Any]:
        """Return all pieces."""
        pieces = [piece async for piece in self.pieces()]
        self.generated.result()  # raises the error of the other thread
        return pieces

    def has_failed(self) -> bool:
        """Return if the generation failed, and log its error. For streams, whose status has been sent."""
        error = self.generated.exception()
        if error is not None:
            logger.error("A streamed answer failed.", exc_info=error)
        return error is not None

    def finish_reason(self) -> str:
        tokens, ends = self.streamer.tokens, self.config.eos_token_id
        is_ended = bool(tokens) and tokens[-1] in (ends if isinstance(ends, list) else [ends])
        is_cut = len(tokens) >= self.config.max_new_tokens and not is_ended and not self.streamer.is_stopped
        return "length" if is_cut else "stop"


def make_config(sampling: Sampling, model: Any, prompt: int, most: int | None) -> GenerationConfig:
    """
    Return the generation config of an answer.

    Args:
        prompt: tokens of the prompt
        most: limit of the server on the tokens of an answer

    Raises:
        BadRequest: if the prompt or the answer does not fit, a token is not in the vocabulary, or log-probabilities
            are requested of a model whose config lets only `generate` answer, which keeps none.
    """
    size = model.config.text_config.vocab_size
    unknown = [token for token in sampling.logit_bias if token >= size]
    if unknown:
        raise BadRequest(f"`logit_bias`: expected token ids below {size}, got {unknown[0]}.")
    config = sampling.config(model.generation_config)
    if sampling.top_logprobs is not None and (options := single_options(config)):
        raise BadRequest(f"`logprobs`: not with this model's generation config ({', '.join(options)}); leave it out.")
    config.max_new_tokens = answer_length(sampling.max_tokens, model, prompt, most)
    return config


def answer_length(asked: int | None, model: Any, prompt: int, most: int | None) -> int:
    """
    Return the tokens to generate: as many as asked for, or as fit.

    Raises:
        BadRequest: if the prompt is too long, or if more tokens are requested than fit.
    """
    positions, room = model.config.text_config.n_positions, free_positions(model.config, prompt)
    if room == 0:
        raise BadRequest(
            f"The prompt takes {prompt} tokens, and the model has {positions} positions; shorten it, or start over."
        )
    if (asked or 0) > room:
        raise BadRequest(
            f"{asked} tokens are requested after a prompt of {prompt}, and the model has {positions} positions; ask "
            f"for {room} at most, or shorten the prompt."
        )
    # Without learned positions nothing else ends an answer.
    limit = int(min(room, most) if most is not None else min(room, positions))
    if (asked or 0) > limit:
        raise BadRequest(f"{asked} tokens are requested, and this server generates {limit} at most; ask for less.")
    return asked or limit
