# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
An answer while it is generated: one thread writes it, another reads it piece by piece and can end it. What ends it
otherwise: a stop string, the model's end token, and its length.

    pieces = queue.SimpleQueue()
    answer = Answer(processor.tokenizer, pieces.put, stops=["."])
    model.generate(**inputs, **answer.options())    # in another thread
"""

import asyncio
import copy
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import BatchFeature, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from .sources import BadRequest

logger = logging.get_logger(__name__)

REPLACEMENT = "\ufffd"  # what bytes that are no character are decoded to


def divide(text: str, stops: Sequence[str]) -> tuple[str, str, bool]:
    """
    What of a growing text can be told already.

    Returns:
        the text up to the first stop string, or to where one may be beginning; what is held back for that; and whether
        a stop string was found, which is no part of the answer.
    """
    found = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    if found:
        return text[: min(found)], "", True
    longest = max((len(stop) for stop in stops), default=1) - 1
    for held in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-held:]) for stop in stops):
            return text[:-held], text[-held:], False
    return text, "", False


class Answer(BaseStreamer):
    """
    Args:
        tokenizer: a fast one
        push: takes each piece of the text, in the thread that generates
        stops: texts that end the answer and are left out of it
    """

    def __init__(self, tokenizer: Any, push: Callable[[str], Any], stops: Sequence[str] = ()):
        self.tokenizer, self.push, self.stops = tokenizer, push, stops
        self.tokens: list[int] = []
        self.is_stopped = False
        self._over = threading.Event()
        self._is_prompt, self._held = True, ""
        self._start = self._told = 0  # tokens before `_told` are text already; from `_start` on they are decoded anew

    def options(self) -> dict[str, Any]:
        """What `generate` has to be given to write here."""
        return {"streamer": self, "stopping_criteria": StoppingCriteriaList([Ended(self)])}

    def stop(self) -> None:
        """Ends the answer before its next token, or before its first; from any thread."""
        self._over.set()

    def is_over(self) -> bool:
        return self._over.is_set()

    def put(self, value: torch.Tensor) -> None:
        if self._is_prompt:  # what comes first
            self._is_prompt = False
            return
        for token in value.tolist():
            if self.is_over():  # one more can be under way
                return
            self.tokens.append(token)
            self._add(self._decode())

    def end(self) -> None:
        if not self.is_over():
            self._add(self._decode(is_last=True))
        if not self.is_over() and self._held:
            self.push(self._held)

    def _decode(self, is_last: bool = False) -> str:
        """
        What the latest tokens add to the text; nothing while a character lacks some of its bytes. Some tokens before
        them are decoded along, as a word's space can hang on them.
        """
        before, text = (
            self.tokenizer.decode(self.tokens[self._start : stop], skip_special_tokens=True)
            for stop in (self._told, len(self.tokens))
        )
        if text.endswith(REPLACEMENT) and not is_last:
            return ""
        self._start, self._told = self._told, len(self.tokens)
        return text[len(before) :]

    def _add(self, piece: str) -> None:
        ready, self._held, is_stopped = divide(self._held + piece, self.stops)
        if ready:
            self.push(ready)
        if is_stopped:
            self.is_stopped = True
            self.stop()


class Ended(StoppingCriteria):
    """Tells `generate` that an answer is over."""

    def __init__(self, answer: Answer):
        self.answer = answer

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.Tensor:
        return torch.full((len(input_ids),), self.answer.is_over(), device=input_ids.device, dtype=torch.bool)


class Reading:
    """An answer as the event loop reads it while another thread generates it."""

    def __init__(self, tokenizer: Any, config: GenerationConfig, prompt_tokens: int, stops: Sequence[str]):
        self.config, self.prompt_tokens = config, prompt_tokens
        self.loop, self.queue = asyncio.get_running_loop(), asyncio.Queue[str | None]()
        self.answer = Answer(tokenizer, self.push, stops)

    def push(self, piece: str | None) -> None:
        self.loop.call_soon_threadsafe(self.queue.put_nowait, piece)

    def start(self, generated: Future) -> None:
        self.generated = generated
        generated.add_done_callback(lambda _: self.push(None))

    async def pieces(self) -> AsyncIterator[str]:
        while (piece := await self.queue.get()) is not None:
            yield piece

    async def whole(self, receive: Callable[[], Awaitable[Any]]) -> str:
        """The text once it is all there; its generation ends before where the client goes away."""
        watch = asyncio.create_task(self.watch(receive))
        try:
            text = "".join([piece async for piece in self.pieces()])
        finally:
            watch.cancel()
            self.answer.stop()
        self.generated.result()  # raises what went wrong there
        return text

    async def watch(self, receive: Callable[[], Awaitable[Any]]) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.answer.stop()

    def has_failed(self) -> bool:
        """Whether something went wrong on the way; the log is told what. For streams, whose status has been sent."""
        error = self.generated.exception()
        if error is not None:
            logger.error("A streamed answer failed.", exc_info=error)
        return error is not None

    def finish_reason(self) -> str:
        tokens, ends = self.answer.tokens, self.config.eos_token_id
        is_ended = bool(tokens) and tokens[-1] in (ends if isinstance(ends, list) else [ends])
        is_cut = len(tokens) >= self.config.max_new_tokens and not is_ended and not self.answer.is_stopped
        return "length" if is_cut else "stop"


def generate(
    model: Any, inputs: Mapping[str, Any], config: GenerationConfig, seed: int | None, answer: Answer
) -> None:
    """
    Writes an answer. The seed is set here, in the thread that draws, where nobody else draws meanwhile; what is drawn
    for others later does not hang on it.
    """
    if answer.is_over():  # who asked has gone while others were answered
        return
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model.generate(**inputs, generation_config=config, **answer.options())


def make_config(request: Mapping[str, Any], model: Any, prompt: int, most: int | None) -> GenerationConfig:
    """
    How to generate what a checked request asks for. Beams are not followed, as they cannot be streamed.

    Args:
        prompt: tokens of the prompt
        most: how many tokens the server generates for a request at most

    Raises:
        BadRequest: where the prompt is too long, more is asked for than fits, or a token is not in the vocabulary.
    """
    config = copy.deepcopy(model.generation_config)
    config.num_beams = config.num_return_sequences = 1
    temperature, size = request.get("temperature"), model.config.text_config.vocab_size
    if temperature is not None:
        config.do_sample, config.temperature = temperature > 0, float(temperature) or None
    if request.get("top_p") is not None:
        config.top_p = float(request["top_p"])
    if request.get("frequency_penalty") is not None:
        config.repetition_penalty = 1.0 + request["frequency_penalty"]
    bias = request.get("logit_bias") or {}
    unknown = [token for token in bias if token >= size]
    if unknown:
        raise BadRequest(f"`logit_bias`: expected token ids below {size}, got {unknown[0]}.")
    if bias:
        config.sequence_bias = {(token,): value for token, value in bias.items()}
    asked = request.get("max_completion_tokens") or request.get("max_tokens")
    config.max_new_tokens = length(asked, model, prompt, most)
    return config


def length(asked: int | None, model: Any, prompt: int, most: int | None) -> int:
    """
    How many tokens are generated: as many as are asked for, or as fit.

    Raises:
        BadRequest: where the prompt is too long, or more is asked for than fits.
    """
    positions, room = model.config.text_config.n_positions, room_after(model, prompt)
    if room is not None and (asked or 0) > room:
        raise BadRequest(
            f"{asked} tokens are asked for after a prompt of {prompt}, and the model has {positions} positions; ask "
            f"for {room} at most, or shorten the prompt."
        )
    limit = min((number for number in (room, most) if number is not None), default=positions)
    if (asked or 0) > limit:
        raise BadRequest(f"{asked} tokens are asked for, and this server generates {limit} at most; ask for less.")
    return asked or limit


def room_after(model: Any, prompt: int) -> int | None:
    """
    How many positions are left after a prompt; None where they have no end.

    Raises:
        BadRequest: where none is left.
    """
    if model.config.text_position_encoding != "learned":
        return None
    positions = model.config.text_config.n_positions
    if prompt >= positions:
        raise BadRequest(
            f"The prompt takes {prompt} tokens, and the model has {positions} positions; shorten it, or start over."
        )
    return positions - prompt


def encode(model: Any, processor: Any, messages: list[dict[str, Any]]) -> BatchFeature:
    """
    A conversation as the model's inputs, up to where its answer begins.

    Raises:
        BadRequest: for what the processor or the template cannot read; they say what, and nothing of the server.
    """
    try:
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
    except (ValueError, TemplateError) as error:
        raise BadRequest(str(error)) from error
    return inputs.to(model.device)
