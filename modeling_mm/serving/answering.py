# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Answers while they are generated: one thread generates, the event loop reads piece by piece and can end it.

    stream = GenerationStream(pool.submit, model, processor, inputs, config, Sampling(stop=(".",)))
    async for piece in stream.pieces(): ...
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from ..evaluation.answering import free_positions, prompt_inputs
from ..utils.decoding import IncrementalDecoder
from .sampling import Sampling, penalties_of

logger = logging.get_logger(__name__)


class BadRequest(ValueError):
    """Fault in a request, which the client reads with status 400. No other error's text reaches a client."""


def split_at_stop(text: str, stop_strings: Sequence[str]) -> tuple[str, str, bool]:
    """
    Split a growing text at the first stop string, or where one may begin.

    Returns:
        the text before that place; the end that is held back, as it may begin a stop string; and if one was found,
        which is then left out.
    """
    found = [place for place in (text.find(stop) for stop in stop_strings) if place >= 0]
    if found:
        return text[: min(found)], "", True
    longest = max((len(stop) for stop in stop_strings), default=1) - 1
    for held in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-held:]) for stop in stop_strings):
            return text[:-held], text[-held:], False
    return text, "", False


# Not transformers' AsyncTextIteratorStreamer, which needs Python 3.11, holds words back until a space (Japanese until
# the end) and decodes them again for each token. Not its `stop_strings`, which leave the stop string in the text,
# match in the end of the prompt too, and take 1.5 s for each new set of strings with a vocabulary of 24,000 tokens.
class TextStreamer(BaseStreamer):
    """
    Streamer for `generate` that pushes text as soon as it is final.

    Args:
        tokenizer: a fast tokenizer
        push: takes each piece of the text, in the thread that generates
        stop_strings: texts that end the answer and are left out of it
    """

    def __init__(self, tokenizer: Any, push: Callable[[str], object], stop_strings: Sequence[str] = ()):
        self.push, self.stop_strings = push, stop_strings
        self.is_stopped = False  # by a stop string
        self._decoder = IncrementalDecoder(tokenizer)
        self._over = threading.Event()
        self._is_prompt, self._held = True, ""

    @property
    def tokens(self) -> list[int]:
        return self._decoder.tokens

    def options(self) -> dict[str, Any]:
        """Return the arguments that let `generate` write here."""
        return {"streamer": self, "stopping_criteria": StoppingCriteriaList([StopRequestedCriteria(self)])}

    def stop(self) -> None:
        """End the answer before its next token, or before its first; from any thread."""
        self._over.set()

    def is_over(self) -> bool:
        return self._over.is_set()

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:  # `generate` puts it first
            self._is_prompt = False
            return
        for token in value.tolist():
            if self.is_over():  # one more token may be under way
                return
            self._add(self._decoder.add(token))

    def end(self) -> None:
        if not self.is_over():
            self._add(self._decoder.finish())
        if not self.is_over() and self._held:
            self.push(self._held)

    def _add(self, piece: str) -> None:
        ready, self._held, is_stopped = split_at_stop(self._held + piece, self.stop_strings)
        if ready:
            self.push(ready)
        if is_stopped:
            self.is_stopped = True
            self.stop()


class StopRequestedCriteria(StoppingCriteria):
    """Stopping criterion that ends `generate` when its streamer is over."""

    def __init__(self, streamer: TextStreamer):
        self.streamer = streamer

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.streamer.is_over(), device=input_ids.device, dtype=torch.bool)


class GenerationStream:
    """
    Answer that the event loop reads while another thread generates it.

    Args:
        submit: puts work in the line of the thread that generates
        sampling: options of the answer
        seed: of its sampling; None draws by chance
    """

    def __init__(
        self,
        submit: Callable[..., Future],
        model: Any,
        processor: Any,
        inputs: Mapping[str, torch.Tensor],
        config: GenerationConfig,
        sampling: Sampling,
        seed: int | None = None,
    ):
        self.config, self.prompt_tokens = config, inputs["input_ids"].shape[-1]
        self._loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[str | None]()
        self.streamer = TextStreamer(processor.tokenizer, self._push, sampling.stop)
        penalties = penalties_of(sampling, self.prompt_tokens)
        self.generated = submit(generate, model, inputs, config, seed, self.streamer, penalties)
        self.generated.add_done_callback(lambda _: self._push(None))

    def _push(self, piece: str | None) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)

    async def pieces(self) -> AsyncIterator[str]:
        """Yield the text piece by piece, until it is complete or has failed."""
        while (piece := await self._queue.get()) is not None:
            yield piece

    async def text(self) -> str:
        """Return the whole text."""
        text = "".join([piece async for piece in self.pieces()])
        self.generated.result()  # raises the error of the other thread
        return text

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


def generate(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    config: GenerationConfig,
    seed: int | None,
    streamer: TextStreamer,
    penalties: LogitsProcessorList | None = None,
) -> None:
    """
    Generate an answer into a streamer.

    The seed is set in the thread that draws, where nothing else draws meanwhile, and does not change later draws.
    """
    if streamer.is_over():  # the client has left while others were answered
        return
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model.generate(**inputs, generation_config=config, logits_processor=penalties, **streamer.options())


def make_config(sampling: Sampling, model: Any, prompt: int, most: int | None) -> GenerationConfig:
    """
    Return the generation config of an answer.

    Args:
        prompt: tokens of the prompt
        most: limit of the server on the tokens of an answer

    Raises:
        BadRequest: if the prompt or the answer does not fit, or a token is not in the vocabulary.
    """
    size = model.config.text_config.vocab_size
    unknown = [token for token in sampling.logit_bias if token >= size]
    if unknown:
        raise BadRequest(f"`logit_bias`: expected token ids below {size}, got {unknown[0]}.")
    config = sampling.config(model.generation_config)
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


def encode(model: Any, processor: Any, messages: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """
    Return the inputs of a conversation, up to where its answer begins.

    Raises:
        BadRequest: for messages that the processor or the template refuses; the reason holds nothing of the server.
    """
    try:
        inputs = prompt_inputs(processor, [messages])
    except (ValueError, TemplateError) as error:
        raise BadRequest(str(error)) from error
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}
