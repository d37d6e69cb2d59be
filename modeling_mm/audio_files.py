# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Decoding of audio files: all of their samples, or a ValueError. Nothing else in the package opens an audio file."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile

from .audio_av import decode_track, measure_track, reader_of
from .audio_containers import damaged, split_containers, starts_recording
from .audio_streams import FLAC_START, Recording, end_of_tags, find_mpeg, split_flac, split_mpeg, split_ogg

# 4.6 hours of stereo at 16 kHz, 2 GiB as float32: a small file can unpack into far more.
MAX_DECODED_SAMPLES = 1 << 29
# Below are rates in kHz, and damaged headers: a few bytes would be resampled to hours.
MIN_RATE = 100.0
# Above are damaged headers: hours would be resampled to a few samples. FLAC goes to 655,350 Hz.
MAX_RATE = 1e6


def is_rate(value: Any) -> bool:
    """Return True for a number, as a sampling rate is; also as an array or tensor without axes."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_rate(rate: Any) -> float:
    """Return `rate` as a number; raise a `ValueError` if audio cannot have it."""
    if not is_rate(rate) or not math.isfinite(rate) or rate <= 0:
        raise ValueError(f"expected a positive sampling rate in Hz, got {rate!r}; pass the rate of the recording")
    if rate < MIN_RATE:
        raise ValueError(
            f"expected a sampling rate of at least {MIN_RATE:g} Hz, got {rate:g}, at which nothing can be "
            "heard; pass the rate in Hz, not in kHz"
        )
    if rate > MAX_RATE:
        raise ValueError(
            f"expected a sampling rate of at most {MAX_RATE:g} Hz, got {rate:g}; the header may be damaged"
        )
    return float(rate)


def check_length(samples: int, channels: int, rate: float, max_seconds: float) -> None:
    """Raise a `ValueError` for audio that is longer than the limits, before it is decoded or resampled."""
    if samples * channels > MAX_DECODED_SAMPLES:
        raise ValueError(
            f"the audio would decode to {samples} samples in {channels} channels, more than the limit of "
            f"{MAX_DECODED_SAMPLES} values; cut it into shorter files"
        )
    if samples > max_seconds * rate:
        raise ValueError(
            f"the audio lasts {samples / rate:.0f} s, more than the limit of {max_seconds:g} s; cut it into shorter "
            "files"
        )


class SequentialFile(soundfile.SoundFile):
    """File that is read from its start to its end. Some codecs (GSM, G.721, DWVW) cannot be sought in."""

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class AudioSize:
    """Size of a file as it states it: samples of each channel, channels, and rate."""

    samples: int
    channels: int
    rate: int


def split_recordings(data: bytes) -> list[Recording]:
    """
    Return the recordings of a file in order; joined files hold several.

    Raises:
        ValueError: if one of them is cut short or damaged.
    """
    content = data[end_of_tags(data) :]
    if starts_recording(content):
        return list(map(Recording, split_containers(content)))
    if content.startswith(b"OggS"):
        return split_ogg(content)
    if FLAC_START.match(content):
        return split_flac(content)
    start = find_mpeg(data)
    return [Recording(data)] if start is None else split_mpeg(data, start)


@contextmanager
def open_recording(recording: Recording) -> Iterator[soundfile.SoundFile]:
    """Open a recording; errors of libsndfile become a `ValueError`."""
    try:
        with SequentialFile(io.BytesIO(recording.data)) as file:
            yield file
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"expected audio, got {len(recording.data)} bytes that cannot be decoded ({error.error_string}); convert "
            "the file to WAV, FLAC, Ogg or MP3, or pass an (array, sampling_rate) tuple"
        ) from error


def promised_samples(file: soundfile.SoundFile, recording: Recording) -> int:
    """Return the samples that an open recording must have."""
    return file.frames if recording.samples is None else recording.samples


def measure(recordings: list[Recording]) -> AudioSize:
    """
    Return the size of recordings, without decoding them.

    Raises:
        ValueError: if they differ in rate or channels, or have an impossible rate.
    """
    sizes = []
    for recording in recordings:
        with open_recording(recording) as file:
            sizes.append(AudioSize(promised_samples(file, recording), file.channels, file.samplerate))
    kinds = {(size.rate, size.channels) for size in sizes}
    if len(kinds) > 1:
        raise ValueError(
            f"the file joins recordings of different rates and channels ({sorted(kinds)}); separate them, or convert "
            "them to one rate"
        )
    check_rate(sizes[0].rate)
    return AudioSize(sum(size.samples for size in sizes), sizes[0].channels, sizes[0].rate)


def measure_audio(data: bytes) -> AudioSize:
    """
    Return the size that an audio file states, without decoding it.

    Raises:
        ValueError: for a file that is not audio, is cut short or damaged.
    """
    if reader_of(data) is not None:
        return AudioSize(*measure_track(data))
    return measure(split_recordings(data))


def decode_audio(data: bytes, max_seconds: float = math.inf) -> tuple[np.ndarray, int]:
    """
    Decode an audio file of any format that libsndfile knows (WAV, FLAC, Ogg, MP3, ...), with PyAV also MP4 and WebM.

    Args:
        data: the file; joined files are read to the end of the last one.
        max_seconds: the longest audio to decode; a longer one is refused by its header, before it takes memory.

    Returns:
        Samples (length, channels), float32 in [-1, 1], and the sampling rate.

    Raises:
        ValueError: for a file that is not audio, is cut short or damaged, or is too long.
    """
    if reader_of(data) is not None:
        size = measure_audio(data)
        check_length(size.samples, size.channels, check_rate(size.rate), max_seconds)
        return decode_track(data), size.rate
    recordings = split_recordings(data)
    size = measure(recordings)
    check_length(size.samples, size.channels, size.rate, max_seconds)
    decoded: list[np.ndarray] = []
    for recording in recordings:
        with open_recording(recording) as file:
            decoded.append(read_samples(file, recording))
    return (decoded[0] if len(decoded) == 1 else np.concatenate(decoded)), size.rate


def read_samples(file: soundfile.SoundFile, recording: Recording) -> np.ndarray:
    """
    Read all samples of a recording, (length, channels).

    Raises:
        ValueError: for fewer or more than the recording promises.
    """
    promised = promised_samples(file, recording)
    samples = file.read(promised, dtype="float32", always_2d=True)
    if len(samples) < promised:
        raise ValueError(f"the file is cut short: it promises {promised} samples and {len(samples)} can be read")
    if recording.samples is not None and has_more(file):
        raise damaged(f"it promises {promised} samples and has more")
    return samples


def has_more(file: soundfile.SoundFile) -> bool:
    try:
        return len(file.read(1)) > 0
    except soundfile.LibsndfileError:  # a tag behind the last frame
        return False
