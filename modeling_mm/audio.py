# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Sounds as people keep them, turned into windows of mono samples at an encoder's rate. Pure functions only."""

import io
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from .images import to_numpy
from .sources import describe, read_bytes

# Windows of encoders that read raw waves, which set no length themselves.
DEFAULT_WINDOW_SECONDS = 30.0
# One analysis frame of the speech encoders (400 samples at 16 kHz), and how far the next one is.
FRAME_SECONDS = 0.025
HOP_SECONDS = 0.010
# More than this on the shorter axis of an array is no set of channels.
MAX_CHANNELS = 32
# 4.6 hours of stereo at 16 kHz, 2 GiB as float32: a small file can unpack into far more.
MAX_DECODED_SAMPLES = 1 << 29
# Resampling and filters overshoot [-1, 1] a little; 16-bit integers cast to float exceed it thousandfold.
MAX_FLOAT_AMPLITUDE = 100.0
# What a RIFF header says of its length when the writer could not go back to fill it in.
UNKNOWN_RIFF_SIZES = (0, 0xFFFFFFFF)
RIFF_HEAD_BYTES = 8
ACCEPTED_AUDIO = (
    "a path, a URL, bytes, a 1-D array, an (array, sampling_rate) tuple, a dict with `array` and `sampling_rate`, or "
    "one with `bytes` or `path`"
)


def is_rate(value: Any) -> bool:
    """Whether `value` is a number, as a sampling rate is."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def is_rated_pair(value: Any) -> bool:
    """Whether `value` is an (array, sampling_rate) or (sampling_rate, array) tuple."""
    return isinstance(value, tuple) and len(value) == 2 and sum(map(is_rate, value)) == 1


def is_number_list(value: Any) -> bool:
    """Whether `value` is one sound as a plain list of samples."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(is_rate, value))


def is_audio(value: Any) -> bool:
    """Whether `value` is one sound rather than a list of sounds: all but lists, and two kinds of list."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray, memoryview)):
        return True
    return is_rated_pair(value) or is_number_list(value)


def lacks_rate(source: Any) -> bool:
    """Whether `source` is made of samples whose rate is not said."""
    if isinstance(source, dict):
        return source.get("array") is not None and source.get("sampling_rate") is None
    return hasattr(source, "__array__") or is_number_list(source)


def check_rate(rate: Any) -> float:
    """`rate` as a number, or a `ValueError` where it is none that a sound can have."""
    if not is_rate(rate) or not math.isfinite(rate) or rate <= 0:
        raise ValueError(f"expected a positive sampling rate in Hz, got {rate!r}; pass the rate of the recording")
    return float(rate)


def check_riff_length(data: bytes) -> None:
    """Raise a `ValueError` for a WAV file that ends before its header says; libsndfile would read what is there."""
    if data[:4] not in (b"RIFF", b"RIFX"):
        return
    declared = int.from_bytes(data[4:RIFF_HEAD_BYTES], "little" if data[:4] == b"RIFF" else "big")
    if declared not in UNKNOWN_RIFF_SIZES and declared + RIFF_HEAD_BYTES > len(data):
        raise ValueError(
            f"the file is cut short: its header promises {declared + RIFF_HEAD_BYTES} bytes and {len(data)} are "
            "there; save or download it again"
        )


def decode_audio(data: bytes) -> tuple[np.ndarray, int]:
    """
    Decode a sound file of any format that libsndfile knows (WAV, FLAC, Ogg, MP3, ...).

    Returns:
        Samples (length, channels), float32 in [-1, 1], and the sampling rate.

    Raises:
        ValueError: for a file that is no sound, or is cut short.
    """
    check_riff_length(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            promised, rate = file.frames, file.samplerate
            if promised * file.channels > MAX_DECODED_SAMPLES:
                raise ValueError(
                    f"the sound would decode to {promised} samples in {file.channels} channels, more than the limit "
                    f"of {MAX_DECODED_SAMPLES} values; cut it into shorter files"
                )
            samples = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"expected a sound, got {len(data)} bytes that cannot be decoded ({error.error_string}); convert the file "
            "to WAV, FLAC, Ogg or MP3, or pass an (array, sampling_rate) tuple"
        ) from error
    if len(samples) < promised:
        raise ValueError(f"the file is cut short: it promises {promised} samples and {len(samples)} can be read")
    return samples, rate


def scale_to_unit(samples: np.ndarray) -> np.ndarray:
    """
    Samples of any type as float32: integers are divided by the range of their type, floats are left alone.

    Raises:
        ValueError: for other types, and for floats so large that they must be integers that were cast.
    """
    if samples.dtype.kind == "f":
        if np.isfinite(samples).all() and np.abs(samples).max(initial=0.0) > MAX_FLOAT_AMPLITUDE:
            raise ValueError(
                f"float samples must lie around [-1, 1], got up to {np.abs(samples).max():g}; divide integer samples "
                "that were cast to float by the range of their type, 32768 for 16 bits"
            )
        return samples.astype(np.float32, copy=False)
    if samples.dtype.kind not in "iu":
        raise ValueError(f"expected samples of an integer or float type, got {samples.dtype}")
    info = np.iinfo(samples.dtype)
    middle = 0 if info.min else (info.max + 1) // 2
    return ((samples.astype(np.float64) - middle) / ((info.max - info.min + 1) / 2)).astype(np.float32)


def mix_down(samples: np.ndarray) -> np.ndarray:
    """
    The mean over channels.

    Args:
        samples: (length,), (length, channels) or (channels, length); the shorter axis holds the channels.

    Returns:
        (length,)
    """
    if samples.ndim == 1:
        return samples
    if samples.ndim != 2 or min(samples.shape) > MAX_CHANNELS:
        raise ValueError(
            f"expected samples of shape (length,) or with up to {MAX_CHANNELS} channels, got {samples.shape}; pass "
            "several sounds as a list"
        )
    return samples.mean(axis=int(np.argmin(samples.shape)), dtype=np.float32)


def check_samples(samples: np.ndarray) -> np.ndarray:
    """`samples` unchanged, or a `ValueError` where there are none, or some that are not numbers."""
    if samples.size == 0:
        raise ValueError("the sound holds no samples; drop it, or check how it was cut")
    broken = samples.size - int(np.isfinite(samples).sum())
    if broken:
        raise ValueError(
            f"{broken} of {samples.size} samples are NaN or infinite; repair the recording, or replace them with "
            "`np.nan_to_num`"
        )
    return samples


def resample(samples: np.ndarray, rate: float, target_rate: float) -> np.ndarray:
    """(length,) at `rate` -> (length * target_rate / rate,) at `target_rate`, at least one sample."""
    if rate == target_rate:
        return samples
    resampled = soxr.resample(samples, rate, target_rate)
    # Very short sounds can vanish when the rate falls.
    return resampled if resampled.size else samples[:1]


def cut_into_windows(samples: np.ndarray, window: int) -> list[np.ndarray]:
    """(length,) -> ceil(length / window) pieces of `window` samples, the last one shorter. Nothing is lost."""
    return [samples[start : start + window] for start in range(0, len(samples), window)]


def pad_to(samples: np.ndarray, length: int) -> np.ndarray:
    """`samples` followed by silence up to `length`; unchanged if they are longer."""
    return np.pad(samples, (0, max(0, length - len(samples))))


def count_frames(samples: int, rate: float) -> int:
    """How many whole analysis frames of 25 ms, 10 ms apart, fit into `samples`."""
    frame, hop = int(FRAME_SECONDS * rate), int(HOP_SECONDS * rate)
    return max(0, 1 + (samples - frame) // hop)


def samples_of_frames(frames: int, rate: float) -> int:
    """How many samples `frames` analysis frames take: the inverse of `count_frames`."""
    return (frames - 1) * int(HOP_SECONDS * rate) + int(FRAME_SECONDS * rate)


def unpack_audio(source: Any) -> tuple[Any, Any]:
    """
    The samples of `source`, in whatever shape and type, and their rate; the rate is None where `source` has none.

    See `load_audio` for what `source` may be.
    """
    if isinstance(source, dict) and source.get("array") is not None:
        return source["array"], source.get("sampling_rate")
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, dict)):
        data = read_bytes(source)
        try:
            samples, rate = decode_audio(data)
        except ValueError as error:
            raise ValueError(f"{describe(source)}: {error}") from error
        return samples.mean(axis=1), rate  # (length, channels), known here however short the file is
    if hasattr(source, "get_all_samples"):  # a decoder of torchcodec, which `datasets` gives for decoded sounds
        decoded = source.get_all_samples()
        return to_numpy(decoded.data).mean(axis=0), decoded.sample_rate
    if is_rated_pair(source):
        return source[::-1] if is_rate(source[0]) else source
    if lacks_rate(source):
        return source, None
    raise ValueError(f"expected {ACCEPTED_AUDIO}; got {describe(source)}")


def load_audio(source: Any, target_rate: int, array_rate: float | None = None) -> np.ndarray:
    """
    Load one sound.

    Args:
        source: a path, URL, bytes, array of samples, (array, rate) tuple, `{"array", "sampling_rate"}` or
            `{"bytes", "path"}` dict, or a torchcodec decoder.
        target_rate: the encoder's rate.
        array_rate: the rate of arrays that come without one; the encoder's if it is None.

    Returns:
        Mono samples (length,), float32, at `target_rate`.

    Raises:
        ValueError: for what is no sound, holds no samples or broken ones, or has an impossible rate.
    """
    samples, rate = unpack_audio(source)
    if rate is None:
        rate = target_rate if array_rate is None else array_rate
    rate = check_rate(rate)
    mono = mix_down(check_samples(scale_to_unit(to_numpy(samples))))
    return resample(mono, rate, target_rate).astype(np.float32, copy=False)


def has_frame_limit(extractor: Any) -> bool:
    """Whether `extractor` is like AST's, which pads and cuts to `max_length` frames and gives no mask of them."""
    return hasattr(extractor, "max_length") and hasattr(extractor, "num_mel_bins")


def window_length(extractor: Any, seconds: float = DEFAULT_WINDOW_SECONDS) -> int:
    """The longest window that goes through `extractor` uncut, in samples; `seconds` where it sets no limit itself."""
    if hasattr(extractor, "n_samples"):  # Whisper
        return extractor.n_samples
    if has_frame_limit(extractor):
        return samples_of_frames(extractor.max_length, extractor.sampling_rate)
    return int(seconds * extractor.sampling_rate)


def extract_features(
    extractor: Any, windows: list[np.ndarray], options: dict[str, Any] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Run windows of samples, none longer than `window_length`, through a feature extractor.

    Args:
        extractor: a feature extractor of transformers.
        windows: mono samples at its rate.
        options: its further call arguments.

    Returns:
        Features as the encoder takes them: (windows, n_mels, T), (windows, samples) or (windows, T, n_mels); and the
        mask of real frames or samples, (windows, T). A window shorter than one analysis frame counts as one frame.
    """
    name, rate = extractor.model_input_names[0], extractor.sampling_rate
    options = {**(options or {}), "sampling_rate": rate, "return_tensors": "np"}
    if not hasattr(extractor, "n_samples"):
        # Less than a frame would give the encoder nothing at all to attend to.
        windows = [pad_to(window, int(FRAME_SECONDS * rate)) for window in windows]
    if has_frame_limit(extractor):
        features = extractor(windows, **options)[name]
        real = np.array([count_frames(len(window), rate) for window in windows])
        mask = np.arange(extractor.max_length) < real[:, None]
    else:
        padding = "max_length" if hasattr(extractor, "n_samples") else True
        encoded = extractor(windows, padding=padding, return_attention_mask=True, **options)
        features, mask = encoded[name], encoded.get("attention_mask")
    if mask is None:
        raise ValueError(
            f"{type(extractor).__name__} returns no attention mask, so that real frames cannot be told from padding; "
            "use the feature extractor of Whisper, wav2vec2, HuBERT, WavLM or AST"
        )
    return torch.as_tensor(np.asarray(features)), torch.as_tensor(np.asarray(mask)).long()
