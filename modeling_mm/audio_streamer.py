# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Audio in chunks while its codes are generated.

A chunk is decoded along with the codes around it that its samples depend on, the codec's `reach`: so the chunks are
the whole decode cut into pieces.
"""

import math
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

import numpy as np
import torch
from transformers.generation import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from .code_parts import decode_audio
from .code_tokens import split_blocks

# Shape legend: K codebooks, T time steps of the audio that is being written.

AUDIO = "audio"


class AudioCodeStreamer(BaseStreamer):
    """
    Streamer for `generate` of audio that one answer says, as chunks of samples.

    Chunks come as soon as the codes behind them cannot change them any more: a chunk's own codes, and as many codes
    behind it as the codec's `reach` says. Together they are the samples of `processor.decode_media`. Of an answer with
    several pieces of audio their chunks follow each other. A block that the prompt has begun is continued.

    Codecs that depend on all codes before (EnCodec, Mimi) decode these again for each chunk; ones that depend on all
    codes behind too, such as an [`MMCodec`] with Griffin-Lim, give one chunk at the end.

    Example:
        ```python
        streamer = AudioCodeStreamer(processor, chunk_seconds=0.25)
        options = {"output_modalities": ("audio",), "max_new_tokens": 500, "streamer": streamer}
        Thread(target=model.generate, kwargs={**inputs, **options}).start()
        for samples in streamer:  # float32, at streamer.sampling_rate
            play(samples)
        ```

    Args:
        processor: an `MMProcessor` with the model's codecs, see [`use_codecs`].
        chunk_seconds (`float`, *optional*, defaults to 0.5): length of a chunk; the last one is shorter or longer.
        context (`int`, *optional*):
            The most codes before and behind a chunk that are decoded with it. Fewer than the codec's `reach`, the
            default, give chunks earlier, whose samples near their edges are not exactly those of the whole.
        timeout (`float`, *optional*): seconds that an iteration waits for a chunk, before `queue.Empty` is raised.
        first_chunk_seconds (`float`, *optional*, defaults to `chunk_seconds`):
            Length of the first chunk, for audio that begins earlier. The next ones are twice as long each, up to
            `chunk_seconds`.

    Raises:
        ValueError: if the processor has no codec of audio, and for a length or a context of no meaning.
    """

    def __init__(
        self,
        processor: Any,
        chunk_seconds: float = 0.5,
        context: int | None = None,
        timeout: float | None = None,
        first_chunk_seconds: float | None = None,
    ):
        first = chunk_seconds if first_chunk_seconds is None else first_chunk_seconds
        for name, seconds in {"chunk_seconds": chunk_seconds, "first_chunk_seconds": first}.items():
            if not seconds > 0:
                raise ValueError(f"{name} must be above 0, got {seconds}.")
        if context is not None and context < 0:
            raise ValueError(f"context must be a number of codes from 0 on, or None, got {context}.")
        written = processor.written_modality(AUDIO)
        self.tokens, self.codec = written.tokens, written.codec
        self.sampling_rate: int = self.codec.sampling_rate
        self.chunk_steps = max(1, round(chunk_seconds * self.codec.rate))
        self.first_chunk_steps = max(1, round(min(first, chunk_seconds) * self.codec.rate))
        self._next_steps = self.first_chunk_steps  # of the next chunk
        most = math.inf if context is None else context
        self.before, self.behind = (min(each, most) for each in self.codec.reach)
        self.timeout = timeout
        self.queue: Queue[np.ndarray | None] = Queue()
        self._is_prompt = True
        self._ids: list[int] | None = None  # of the codes of the block that is being written
        self._emitted = 0  # time steps of it

    def put(self, value: torch.Tensor) -> None:
        """
        Take the prompt, then generated tokens.

        Raises:
            ValueError: for more than one row.
        """
        if value.ndim > 1 and len(value) > 1:
            raise ValueError(f"AudioCodeStreamer follows one answer, got {len(value)} rows. Generate them one by one.")
        tokens = value.flatten().tolist()
        if self._is_prompt:  # `generate` puts it first
            self._is_prompt = False
            self.begin(tokens)
            return
        for token in tokens:
            self.take(token)

    def begin(self, prompt: list[int]) -> None:
        """Take up the block of audio that a prompt ends in, if there is one; its own samples are not repeated."""
        blocks = split_blocks(prompt, {AUDIO: self.tokens})
        if blocks and blocks[-1].tokens is not None and not blocks[-1].is_ended:
            self._ids = list(blocks[-1].ids)
            self._emitted = len(self.tokens.to_codes(self._ids)[0][0])

    def take(self, token: int) -> None:
        """Take a generated token."""
        if token == self.tokens.start_id:
            self._ids, self._emitted = [], 0
        elif self._ids is None:
            return
        elif self.tokens.first_code <= token < self.tokens.stop:
            self._ids.append(token)
            self._emit(is_whole=False)
        else:
            self._finish()

    def end(self) -> None:
        """Emit the rest, of a block that was cut as well."""
        self._finish()
        self.on_finalized_audio(np.zeros(0, np.float32), stream_end=True)
        self._is_prompt, self._next_steps = True, self.first_chunk_steps

    def on_finalized_audio(self, samples: np.ndarray, stream_end: bool = False) -> None:
        """
        Queue a chunk for the iteration; a subclass may do something else with it, in the thread that generates.

        Args:
            samples: (length,), float32; empty at the end of the stream.
            stream_end: whether nothing follows.
        """
        self.queue.put(None if stream_end else samples)

    def __iter__(self) -> Iterator[np.ndarray]:
        return self

    def __next__(self) -> np.ndarray:
        samples = self.queue.get(timeout=self.timeout)
        if samples is None:
            raise StopIteration
        return samples

    def _finish(self) -> None:
        if self._ids is not None:
            self._emit(is_whole=True)
        self._ids = None

    def _emit(self, is_whole: bool) -> None:
        """Emit the steps that can no longer change, if they are a chunk; the rest of a block that is whole."""
        assert self._ids is not None
        behind, least = (0, 1) if is_whole else (self.behind, self._next_steps)
        if len(self._ids) // self.tokens.codebooks - behind - self._emitted < least:  # delayed codes are fewer steps
            return
        codes = torch.tensor(self.tokens.to_codes(self._ids)[0])  # (K, T)
        stop = codes.shape[1] - int(behind)
        if stop - self._emitted < least:
            return
        start = max(0, self._emitted - int(min(self.before, self._emitted)))
        decoded = decode_audio(self.codec, codes[:, start:])
        assert decoded is not None
        hop = self.codec.hop_length
        self.on_finalized_audio(decoded[0][(self._emitted - start) * hop : (stop - start) * hop])
        self._emitted, self._next_steps = stop, min(2 * self._next_steps, self.chunk_steps)


class StopWhen(StoppingCriteria):
    """
    Stopping criterion that ends all answers when something outside of them says so, as nobody reads them any more.

    Args:
        is_over: read after each step
    """

    def __init__(self, is_over: Callable[[], bool]):
        self.is_over = is_over

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Return which of the rows (B,) are over: all or none."""
        return torch.full((len(input_ids),), self.is_over(), device=input_ids.device, dtype=torch.bool)
