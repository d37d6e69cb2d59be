# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Answer as it grows: its tokens, or its text, pushed as soon as it is final and ended before a stop string."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..audio_streamer import StopWhen
from ..code_tokens import CodeTokens
from ..utils.decoding import IncrementalDecoder


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


class TokenStreamer(BaseStreamer):
    """
    Tokens of one answer as they are chosen; also a streamer for `generate`.

    Args:
        push: takes each piece of the answer, in the thread that generates; of this class there are none
    """

    def __init__(self, push: Callable[[Any], object]):
        self.push = push
        self.tokens: list[int] = []
        self.is_stopped = False  # by a stop string
        self._over = threading.Event()
        self._is_prompt = True

    def options(self) -> dict[str, Any]:
        """Return the arguments that let `generate` write here."""
        return {"streamer": self, "stopping_criteria": StoppingCriteriaList([StopWhen(self.is_over)])}

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
            self.take(token)

    def take(self, token: int) -> None:
        """Add a token, unless the answer is over: one more may be under way."""
        if not self.is_over():
            self._add_token(token)

    def end(self) -> None:
        """Complete the answer."""

    def _add_token(self, token: int) -> None:
        self.tokens.append(token)


# Not transformers' AsyncTextIteratorStreamer, which needs Python 3.11, holds words back until a space (Japanese until
# the end) and decodes them again for each token. Not its `stop_strings`, which leave the stop string in the text,
# match in the end of the prompt too, and take 1.5 s for each new set of strings with a vocabulary of 24,000 tokens.
class TextStreamer(TokenStreamer):
    """
    Text of one answer, pushed as soon as it is final.

    Args:
        tokenizer: a fast tokenizer
        push: takes each piece of the text, in the thread that generates
        stop_strings: texts that end the answer and are left out of it
    """

    def __init__(self, tokenizer: Any, push: Callable[[str], object], stop_strings: Sequence[str] = ()):
        super().__init__(push)
        self.stop_strings = stop_strings
        self._decoder = IncrementalDecoder(tokenizer)
        self.tokens = self._decoder.tokens
        self._held = ""

    def end(self) -> None:
        if not self.is_over():
            self._add(self._decoder.finish())
        if not self.is_over() and self._held:
            self.push(self._held)

    def _add_token(self, token: int) -> None:
        self._add(self._decoder.add(token))

    def _add(self, piece: str) -> None:
        ready, self._held, is_stopped = split_at_stop(self._held + piece, self.stop_strings)
        if ready:
            self.push(ready)
        if is_stopped:
            self.is_stopped = True
            self.stop()


class MixedStreamer(TextStreamer):
    """
    Text of an answer that may hold blocks of codes too, which have no text.

    Args:
        tokenizer, push, stop_strings: see `TextStreamer`
        written: tokens of the codes
    """

    def __init__(
        self,
        tokenizer: Any,
        push: Callable[[str], object],
        written: Iterable[CodeTokens],
        stop_strings: Sequence[str] = (),
    ):
        super().__init__(tokenizer, push, stop_strings)
        self.tokens = []  # of the whole answer; the decoder keeps those of its text
        self._ranges = [range(tokens.first, tokens.stop) for tokens in written]

    def _add_token(self, token: int) -> None:
        self.tokens.append(token)
        if not any(token in each for each in self._ranges):
            super()._add_token(token)
