# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Images and audio of an answer as it grows: pushed as soon as they are final.

They are decoded in the thread of the engine, between two steps, as it is what may use the model: 0.05 s for half a
second of audio with its context (an `MMCodec` of 3.4M parameters, one busy CPU thread), as long as two steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..audio_streamer import AUDIO, AudioCodeStreamer
from ..code_tokens import CodeTokens
from .text_streamer import MixedStreamer, TokenStreamer

# Options of `AudioCodeStreamer`. Audio that nobody reads before its end is one chunk, since some codecs repeat work.
CHUNKS: dict[str, Any] = {"chunk_seconds": 0.5, "first_chunk_seconds": 0.1}
WHOLE: dict[str, Any] = {"chunk_seconds": 1e9}


class ChunkPusher(AudioCodeStreamer):
    """Streamer that pushes chunks of samples; `chunks` are options of [`AudioCodeStreamer`]."""

    def __init__(self, processor: Any, push: Callable[[np.ndarray], object], **chunks: Any):
        super().__init__(processor, **chunks)
        self.push = push

    def on_finalized_audio(self, samples: np.ndarray, stream_end: bool = False) -> None:
        if samples.size:
            self.push(samples)


class AudioStreamer(TokenStreamer):
    """
    Samples of the audio that one answer says, pushed in chunks as soon as they are final.

    The last samples follow the end token: of audio that is cut they are left out.

    Args:
        processor: with the model's codecs
    """

    def __init__(self, processor: Any, push: Callable[[np.ndarray], object]):
        super().__init__(push)
        self._codes = ChunkPusher(processor, push, **CHUNKS)

    def _add_token(self, token: int) -> None:
        super()._add_token(token)
        self._codes.take(token)


class MediaStreamer(MixedStreamer):
    """
    Answer of text, images and audio in pieces: texts, PIL images, and samples (length,) in chunks.

    Of a block that is cut the last pieces are those that can be decoded.

    Args:
        processor: with the model's codecs
        push: takes each piece, in the thread that generates
        stop_strings: texts that end the answer and are left out of it
        chunks: of audio; options of [`AudioCodeStreamer`]
    """

    def __init__(
        self,
        processor: Any,
        push: Callable[[Any], object],
        stop_strings: Sequence[str] = (),
        **chunks: Any,
    ):
        written = [each.tokens for each in processor.written.values()]
        super().__init__(processor.tokenizer, push, written, stop_strings)
        self._processor = processor
        self._images = [tokens for tokens in written if tokens.grid is not None]
        self._audio = ChunkPusher(processor, push, **chunks) if AUDIO in processor.written else None

    def end(self) -> None:
        super().end()
        if self.is_over():
            return
        if self._audio is not None:
            self._audio.end()
        for tokens in self._images:
            if (
                self.tokens
                and self.tokens[-1] in range(tokens.first, tokens.stop)
                and self.tokens[-1] != tokens.end_id
            ):
                self._push_image(tokens)

    def _add_token(self, token: int) -> None:
        super()._add_token(token)
        if self._audio is not None:
            self._audio.take(token)
        for tokens in self._images:
            if token == tokens.end_id:
                self._push_image(tokens)

    def _push_image(self, tokens: CodeTokens) -> None:
        """Push the image of the last block; nothing of one that was cut within its first row of codes."""
        start = len(self.tokens) - 1 - self.tokens[::-1].index(tokens.start_id)
        (part,) = self._processor.decode_media(self.tokens[start:])
        if part[tokens.name] is not None:
            self.push(part[tokens.name])
