# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Loading of audio: every source, type and rate becomes windows of mono samples at an encoder's rate."""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import soxr
import torch
from transformers.utils import logging

from .audio_files import check_length, check_rate, decode_audio, is_rate
from .batching import pad_rows
from .images import to_numpy
from .modalities import MODALITIES, Modality
from .placeholders import Rows, load_rows
from .sources import describe, read_bytes

logger = logging.get_logger(__name__)

# Text options that would cut or pad audio too if they were passed on; audio is cut into windows instead.
WINDOW_OPTIONS = {"padding", "max_length", "truncation", "pad_to_multiple_of", "return_attention_mask"}
# The window of encoders of raw waves, which set no length themselves.
DEFAULT_WINDOW_SECONDS = 30.0
# One analysis frame of the speech encoders (400 samples at 16 kHz), and the step to the next one.
FRAME_SECONDS = 0.025
HOP_SECONDS = 0.010
# Of 30 s, given to the extractor at a time: what it computes of more of them leaves the caches of processors.
WINDOWS_AT_ONCE = 2
# A longer axis of an array holds samples, not channels.
MAX_CHANNELS = 32
# Resampling and filters overshoot [-1, 1] a little; 16-bit integers cast to float exceed it thousandfold.
MAX_FLOAT_AMPLITUDE = 100.0
# Types that are as wide as their samples. Others may hold narrower ones.
EXACT_INTEGERS = (np.dtype("int8"), np.dtype("uint8"), np.dtype("int16"))
# Silence of unsigned samples of 8, 16 and 32 bits.
UNSIGNED_MIDDLES = (2**7, 2**15, 2**31)
ACCEPTED_AUDIO = (
    "a path, a URL, bytes, a 1-D array, an (array, sampling_rate) tuple, a dict with `array` and `sampling_rate`, or "
    "one with `bytes` or `path`"
)


def is_rated_pair(value: Any) -> bool:
    """Return True for an (array, sampling_rate) or (sampling_rate, array) tuple."""
    return isinstance(value, tuple) and len(value) == 2 and sum(map(is_rate, value)) == 1


def is_number_list(value: Any) -> bool:
    """Return True for a plain list of samples."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(is_rate, value))


def is_audio(value: Any) -> bool:
    """Return True for one audio input and False for a list of them; two kinds of list are one input."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray, memoryview)):
        return True
    return is_rated_pair(value) or is_number_list(value)


def lacks_rate(source: Any) -> bool:
    """Return True for samples without their rate."""
    if isinstance(source, dict):
        return source.get("array") is not None and source.get("sampling_rate") is None
    return hasattr(source, "__array__") or is_number_list(source)


def scale_to_unit(samples: np.ndarray) -> np.ndarray:
    """
    Return samples as float32: integers divided by their range (see `integer_range`), floats unchanged.

    Raises:
        ValueError: for other types, for integers whose range is not clear, and for floats so large that they must be
            integers that were cast.
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
    middle, half = integer_range(samples)
    return ((samples.astype(np.float64) - middle) / half).astype(np.float32)


def integer_range(samples: np.ndarray) -> tuple[float, float]:
    """
    Return the value of silence and the largest amplitude of integer samples.

    Up to 16 bits the type decides. A wider one, such as the int64 of a list, often holds narrower samples, so
    that there the values decide.

    Raises:
        ValueError: if the values are those of more than one range, or of none.
    """
    if samples.dtype in EXACT_INTEGERS or not samples.any():
        bits = 8 * samples.dtype.itemsize
        return (0 if samples.dtype.kind == "i" or not samples.any() else 2 ** (bits - 1)), 2 ** (bits - 1)
    low, high = int(samples.min()), int(samples.max())
    for middle in UNSIGNED_MIDDLES if low >= 0 else ():  # audio swings around its middle
        swing = np.abs(samples.astype(np.float64) - middle).mean()
        if high < 2 * middle and swing <= 0.75 * middle and not is_wrapped(samples, middle):  # a sine swings by 0.64
            return middle, middle
    peak = max(high, -1 - low)
    if peak < 2**15 and samples.dtype.kind == "i":
        return 0, 2**15
    # Samples of 16 and 24 bits that were shifted to 32 end in zeros.
    if 2**15 <= peak < 2**31 and samples.dtype.kind == "i" and (peak >= 2**23 or not (samples & 0xFF).any()):
        return 0, 2**31
    raise ValueError(
        f"{samples.dtype} samples from {low} to {high} can be of more than one range; divide them by it and pass "
        "floats (32768 for 16 bits, 8388608 for 24, 2147483648 for 32; unsigned samples less their middle)"
    )


def is_wrapped(samples: np.ndarray, middle: int) -> bool:
    """Return True for unsigned samples that are signed ones read as unsigned: they jump wherever the sign changes."""
    plain = samples.astype(np.float64)
    axis = int(np.argmax(samples.shape))
    signed = np.where(plain < middle, plain, plain - 2 * middle)
    return bool(np.abs(np.diff(signed, axis=axis)).sum() < np.abs(np.diff(plain, axis=axis)).sum())


def mix_down(samples: np.ndarray) -> np.ndarray:
    """(length,), (length, channels) or (channels, length) -> (length,), the mean; the shorter axis holds channels."""
    if samples.ndim == 1:
        return samples
    if samples.ndim != 2 or min(samples.shape) > MAX_CHANNELS:
        raise ValueError(
            f"expected samples of shape (length,) or with up to {MAX_CHANNELS} channels, got {samples.shape}; pass "
            "several audio inputs as a list"
        )
    return samples.mean(axis=int(np.argmin(samples.shape)), dtype=np.float32)


def check_samples(samples: np.ndarray) -> np.ndarray:
    """Return `samples`; raise a `ValueError` if there are none, or some are not numbers."""
    if samples.size == 0:
        raise ValueError("the audio holds no samples; drop it, or check how it was cut")
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
    check_length(math.ceil(len(samples) * target_rate / rate), 1, target_rate, math.inf)
    resampled = soxr.resample(samples, rate, target_rate)
    # Very short audio can vanish when the rate falls.
    return resampled if resampled.size else samples[:1]


def cut_into_windows(samples: np.ndarray, window: int) -> list[np.ndarray]:
    """(length,) -> ceil(length / window) pieces of `window` samples, the last one shorter."""
    return [samples[start : start + window] for start in range(0, len(samples), window)]


def count_frames(samples: int, rate: float) -> int:
    """Return the number of whole analysis frames of 25 ms, 10 ms apart, in `samples`."""
    frame, hop = int(FRAME_SECONDS * rate), int(HOP_SECONDS * rate)
    return max(0, 1 + (samples - frame) // hop)


def samples_of_frames(frames: int, rate: float) -> int:
    """Return the samples of `frames` analysis frames: the inverse of `count_frames`."""
    return (frames - 1) * int(HOP_SECONDS * rate) + int(FRAME_SECONDS * rate)


def unpack_audio(source: Any, max_seconds: float = math.inf) -> tuple[Any, Any]:
    """Return the samples of a source of `load_audio`, in any shape and type, and their rate; None if not stated."""
    if isinstance(source, dict) and source.get("array") is not None:
        return source["array"], source.get("sampling_rate")
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, dict)):
        data = read_bytes(source)
        try:
            samples, rate = decode_audio(data, max_seconds)
        except ValueError as error:
            raise ValueError(f"{describe(source)}: {error}") from error
        return samples.mean(axis=1), rate  # (length, channels), known here however short the file is
    if hasattr(source, "get_all_samples"):  # a torchcodec decoder, as `datasets` returns decoded audio
        decoded = source.get_all_samples()
        return to_numpy(decoded.data).mean(axis=0), decoded.sample_rate
    if is_rated_pair(source):
        return source[::-1] if is_rate(source[0]) else source
    if lacks_rate(source):
        return source, None
    raise ValueError(f"expected {ACCEPTED_AUDIO}; got {describe(source)}")


def load_audio(
    source: Any, target_rate: int, array_rate: float | None = None, max_seconds: float = math.inf
) -> np.ndarray:
    """
    Load one audio input.

    Args:
        source: a path, URL, bytes, array of samples, (array, rate) tuple, `{"array", "sampling_rate"}` or
            `{"bytes", "path"}` dict, or a torchcodec decoder.
        target_rate: the encoder's rate.
        array_rate: the rate of arrays that do not state it; the encoder's if it is None.
        max_seconds: the longest file to decode.

    Returns:
        Mono samples (length,), float32, at `target_rate`.

    Raises:
        ValueError: if the source cannot be read, holds no samples, too many or broken ones, or has an impossible rate.
    """
    samples, rate = unpack_audio(source, max_seconds)
    if rate is None:
        rate = target_rate if array_rate is None else array_rate
    rate = check_rate(rate)
    mono = mix_down(check_samples(scale_to_unit(to_numpy(samples))))
    return resample(mono, rate, target_rate).astype(np.float32, copy=False)


def has_frame_limit(extractor: Any) -> bool:
    """Return True for an extractor like AST's, which pads and cuts to `max_length` frames without a mask."""
    return hasattr(extractor, "max_length") and hasattr(extractor, "num_mel_bins")


def raw_input(part: Any, modality: Modality) -> str:
    """Return the model's input that a part of the processor makes."""
    return next((name for name in part.model_input_names if name in modality.inputs), modality.inputs[0])


def window_length(extractor: Any, seconds: float = DEFAULT_WINDOW_SECONDS) -> int:
    """Return the longest window that `extractor` leaves uncut, in samples; `seconds` if it sets no limit itself."""
    for name in ("n_samples", "nb_max_samples"):  # Whisper, CLAP
        if hasattr(extractor, name):
            return getattr(extractor, name)
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
        options: its other call arguments.

    Returns:
        Features for the encoder: `input_features` (windows, n_mels, T), or `input_values` (windows, samples) or
        (windows, T, n_mels); and the mask of real frames or samples, (windows, T). A window shorter than one analysis
        frame counts as one frame.

    Raises:
        ValueError: if the extractor returns no attention mask, or features that do not fit it.
    """
    name, rate = raw_input(extractor, MODALITIES["audio"]), extractor.sampling_rate
    options = {**(options or {}), "sampling_rate": rate, "return_tensors": "np"}
    if not hasattr(extractor, "n_samples"):
        # Less than a frame would leave the encoder nothing to attend to; some extractors join several frames to one.
        least = samples_of_frames(getattr(extractor, "stride", 1), rate)
        windows = [np.pad(window, (0, max(0, least - len(window)))) for window in windows]
    mask: np.ndarray | None
    if has_frame_limit(extractor):
        features = extractor(windows, **options)[name]
        real = np.array([count_frames(len(window), rate) for window in windows])
        mask = np.arange(extractor.max_length) < real[:, None]
    elif hasattr(extractor, "nb_max_samples"):
        # CLAP repeats a short window until it is full, so that all of its frames are real. Its further channels are
        # crops of longer audio, which is cut into windows here.
        features = np.asarray(extractor(windows, **options)[name])[:, 0]  # (windows, T, n_mels)
        mask = np.ones(features.shape[:2], dtype=bool)
    else:
        encoded = extract_in_parts(extractor, windows, {**options, "return_attention_mask": True})
        features, mask = encoded[name], encoded.get("attention_mask")
    if mask is None:
        raise ValueError(
            f"{type(extractor).__name__} returns no attention mask, without which padding counts as audio; use "
            "the feature extractor of an encoder that configuration/encoders.yaml lists"
        )
    features, mask = np.asarray(features), np.asarray(mask)
    if name == "input_features":
        features = with_frames_last(extractor, features, mask.shape[1])
    return torch.as_tensor(features), torch.as_tensor(mask).long()


def extract_in_parts(extractor: Any, windows: list[np.ndarray], options: dict[str, Any]) -> dict[str, Any]:
    """Return what an extractor makes of padded windows; of windows of one length a few at a time."""
    is_fixed = hasattr(extractor, "n_samples")
    padding = "max_length" if is_fixed else True  # to the longest of all
    step = WINDOWS_AT_ONCE if is_fixed else len(windows)
    parts = [
        extractor(windows[start : start + step], padding=padding, **options) for start in range(0, len(windows), step)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def with_frames_last(extractor: Any, features: np.ndarray, frames: int) -> np.ndarray:
    """Return spectrograms of `frames` frames, (windows, T, n_mels) or (windows, n_mels, T), as the latter."""
    if features.ndim != 3 or frames not in features.shape[1:]:
        raise ValueError(
            f"{type(extractor).__name__} returns features of shape {features.shape} with a mask of {frames} frames; "
            "expected (windows, frames, n_mels) or (windows, n_mels, frames)"
        )
    is_square = features.shape[1] == features.shape[2]
    has_frames_last = hasattr(extractor, "n_samples") if is_square else features.shape[2] == frames
    return features if has_frames_last else features.transpose(0, 2, 1)


def rate_of_arrays(rows: Rows, rate: float | None, extractor: Any) -> float:
    """Return the rate of arrays that do not state it; the encoder's by default, with a warning."""
    if rate is not None:
        return check_rate(rate)
    if any(lacks_rate(item) for items in rows for item in items):
        logger.warning_once(
            f"Audio was passed as arrays without their sampling rate; {extractor.sampling_rate} Hz, the encoder's, is "
            "assumed. Pass `sampling_rate=`, or (array, sampling_rate) tuples."
        )
    return extractor.sampling_rate


def audio_features(
    extractor: Any, rows: Rows, options: dict[str, Any], window_seconds: float
) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """
    Load the audio of rows, cut it into windows and run them through a feature extractor.

    Args:
        options: call arguments of the extractor; `sampling_rate` is the rate of arrays that do not state it.
        window_seconds: the longest window of extractors that set no length themselves.

    Returns:
        The features of the windows (B, A, ...) with their `feature_attention_mask` (B, A, T), and the tokens of each
        audio input: one for each of its windows.
    """
    modality, rate = MODALITIES["audio"], rate_of_arrays(rows, options.get("sampling_rate"), extractor)
    loaded = load_rows(rows, lambda source: load_audio(source, extractor.sampling_rate, rate), modality)
    length = window_length(extractor, window_seconds)
    windows = [[cut_into_windows(samples, length) for samples in items] for items in loaded]
    flat = [[window for pieces in items for window in pieces] for items in windows]
    options = {name: value for name, value in options.items() if name not in WINDOW_OPTIONS}
    features, frames = extract_features(extractor, [window for row in flat for window in row], options)
    counts = list(map(len, flat))
    made = {raw_input(extractor, modality): pad_rows(features, counts), modality.mask: pad_rows(frames, counts)}
    return made, [list(map(len, items)) for items in windows]
