# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Samples as the bytes of a stream, or of a file.

WAV keeps the codec's rate. PCM has no header, so that it has the rate that OpenAI's clients take it for.
"""

import struct
from typing import Any

import numpy as np
import soxr

from ..utils.audio_writing import encode_audio
from .limits import BadRequest
from .values import shortened

# Media type of each format; the streamed ones are sent while they are generated.
FORMATS = {"mp3": "audio/mpeg", "flac": "audio/flac", "wav": "audio/wav", "pcm": "audio/pcm"}
STREAMED = ("wav", "pcm")
HEADLESS = ("pcm",)
VOICES = ("default",)
PROTOCOL_RATE = 24_000  # of PCM in OpenAI's protocol
UNKNOWN_LENGTH = 0xFFFFFFFF
SAMPLE_BYTES = 2


class StreamEncoder:
    """
    Encoder of one stream of samples, WAV or PCM of 16 bits.

    Args:
        rate: of the samples.
    """

    def __init__(self, rate: int, audio_format: str):
        self._head = wav_head(rate) if audio_format == "wav" else b""
        is_resampled = audio_format == "pcm" and rate != PROTOCOL_RATE
        self._resampler: Any = soxr.ResampleStream(rate, PROTOCOL_RATE, 1, "float32") if is_resampled else None

    def encode(self, samples: np.ndarray, is_last: bool = False) -> bytes:
        """Return the next samples (length,) as bytes, and those that the resampler has held back; first the header."""
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples.astype(np.float32), last=is_last)
        head, self._head = self._head, b""
        return head + to_pcm(samples)


class FileEncoder:
    """
    Encoder of a file, whose bytes come with its last samples.

    Args:
        rate: of the samples.
    """

    def __init__(self, rate: int, audio_format: str):
        self.rate, self.audio_format = rate, audio_format
        self._samples: list[np.ndarray] = []

    def encode(self, samples: np.ndarray, is_last: bool = False) -> bytes:
        """Take the next samples (length,); return the file of all with the last."""
        self._samples.append(samples)
        return encode_audio(np.concatenate(self._samples), self.rate, self.audio_format) if is_last else b""


def encoder_of(rate: int, audio_format: str, is_streamed: bool) -> StreamEncoder | FileEncoder:
    """Return the encoder of samples; the header of a file of WAV has its length, that of a stream has none."""
    streamed = STREAMED if is_streamed else HEADLESS
    return (StreamEncoder if audio_format in streamed else FileEncoder)(rate, audio_format)


def check_voice(where: str, voice: Any) -> None:
    """
    Check the voice that a request names; none means the one that there is.

    Raises:
        BadRequest: for another one.
    """
    if voice is not None and voice not in VOICES:
        raise BadRequest(f"`{where}`: this model has one voice; expected {', '.join(VOICES)}, got {shortened(voice)}.")


def to_pcm(samples: np.ndarray) -> bytes:
    """Return samples from -1 to 1 as 16-bit integers, the low byte first."""
    return (np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes()


def wav_head(rate: int, length: int | None = None) -> bytes:
    """Return the header of a WAV file with one channel of `length` bytes; of a stream, whose length is not known."""
    size = UNKNOWN_LENGTH if length is None else length
    whole = min(size + 36, UNKNOWN_LENGTH)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, rate * SAMPLE_BYTES, SAMPLE_BYTES, SAMPLE_BYTES * 8)
    return struct.pack("<4sI4s", b"RIFF", whole, b"WAVE") + form + struct.pack("<4sI", b"data", size)
