# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Log-probabilities of an answer's tokens as OpenAI's clients read them.

They are the model's, before penalties, biases and temperature. The token that ends an answer is not among them.
"""

from typing import Any

from tokenizers.decoders import ByteLevel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from .answering import GenerationStream
from .sampling import Choice

BYTES = {letter: byte for byte, letter in bytes_to_unicode().items()}  # of GPT-2's letters for bytes


class AnswerLogprobs:
    """
    Log-probabilities of a growing answer, in the pieces of its text.

    Args:
        tokenizer: a fast tokenizer
        stream: of the answer
    """

    def __init__(self, tokenizer: Any, stream: GenerationStream):
        self._tokenizer, self._stream = tokenizer, stream
        self._is_requested = stream.row.sampling.top_logprobs is not None
        self._taken, self._token_bytes, self._text_bytes = 0, 0, 0

    def take(self, piece: str) -> list[dict[str, Any]]:
        """Return the tokens that begin within the next piece of the text; none unless they were requested."""
        self._text_bytes += len(piece.encode())
        return self._take_to(self._text_bytes)

    def rest(self) -> list[dict[str, Any]]:
        """Return the last tokens of a complete answer, without those of a stop string, which is left out."""
        return self._take_to(self._text_bytes if self._stream.streamer.is_stopped else None)

    def whole(self, text: str) -> list[dict[str, Any]]:
        return [*self.take(text), *self.rest()]

    def _take_to(self, end: int | None) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        for choice in self._stream.row.choices[self._taken :] if self._is_requested else ():
            if choice.token in self._stream.row.ends or (end is not None and self._token_bytes >= end):
                break
            entries.append(entry(self._tokenizer, choice))
            self._taken += 1
            self._token_bytes += len(entries[-1]["bytes"])
        return entries


def entry(tokenizer: Any, choice: Choice) -> dict[str, Any]:
    """Return a token with its log-probability, and the likeliest tokens at its place with theirs."""
    top = [named(tokenizer, token, logprob) for token, logprob in choice.top]
    return {**named(tokenizer, choice.token, choice.logprob), "top_logprobs": top}


def named(tokenizer: Any, token: int, logprob: float | None) -> dict[str, Any]:
    data = token_bytes(tokenizer, token)
    return {"token": data.decode(errors="replace"), "bytes": list(data), "logprob": logprob}


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """Return the bytes of a token's text; a token can be a part of a character."""
    letters = tokenizer.convert_ids_to_tokens(token)
    if isinstance(tokenizer.backend_tokenizer.decoder, ByteLevel) and all(letter in BYTES for letter in letters or ""):
        return bytes(BYTES[letter] for letter in letters or "")
    return tokenizer.decode([token]).encode()
