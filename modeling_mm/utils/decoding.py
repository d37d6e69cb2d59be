# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Text from tokens that come one at a time.

    decoder = IncrementalDecoder(processor.tokenizer)
    pieces = [decoder.add(token) for token in tokens] + [decoder.finish()]    # together: the whole text
"""

from typing import Any

from tokenizers.decoders import DecodeStream


class IncrementalDecoder:
    """
    Decoder that gives the text of each token as soon as its characters are complete; special tokens have no text.

    Args:
        tokenizer: a fast tokenizer
    """

    def __init__(self, tokenizer: Any):
        self.tokens: list[int] = []
        self._tokenizer, self._stream = tokenizer.backend_tokenizer, DecodeStream(skip_special_tokens=True)
        self._length = 0  # of the text so far

    def add(self, token: int) -> str:
        """Return the text that a token completes; empty while a character lacks some of its bytes."""
        self.tokens.append(token)
        piece = self._stream.step(self._tokenizer, token) or ""
        self._length += len(piece)
        return piece

    def finish(self) -> str:
        """Return the rest of the text. `DecodeStream` drops the bytes of a last character that stays incomplete."""
        return self._tokenizer.decode(self.tokens, skip_special_tokens=True)[self._length :]
