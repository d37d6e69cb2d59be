# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Samples as the bytes of an audio file."""

import io

import numpy as np
import soundfile
import soxr

MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz


def encode_audio(samples: np.ndarray, rate: int, audio_format: str) -> bytes:
    """
    Return an audio file with 16 bits a sample.

    Args:
        samples: (length,) from -1 to 1; others are clipped.
        rate: in Hz; an MP3 file gets the next rate that it can have.
        audio_format: `"wav"`, `"flac"` or `"mp3"`.
    """
    if audio_format == "mp3" and rate not in MP3_RATES:
        target = next((each for each in MP3_RATES if each > rate), MP3_RATES[-1])
        samples, rate = soxr.resample(samples, rate, target), target
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), rate, format=audio_format.upper())
    return file.getvalue()
