# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Random changes of audio: speed with soxr, noise, and masks over spectrograms."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..audio import load_audio, resample
from ..compat import spec_augment_spans
from ..data.chat_row import media_source

LARGEST_SEED = 2**32


@dataclass
class AudioAugmentation:
    """
    Random changes of the audio of an example. Zero switches a change off.

    Args:
        speed: largest change of speed, in [0, 1): audio is played at a factor in [1 - speed, 1 + speed] of its speed,
            which changes its pitch, as Ko et al. (2015, "Audio augmentation for speech recognition") do with 0.1.
        noise: probability of white noise, in [0, 1].
        noise_decibels: lowest and highest signal-to-noise ratio, in dB; one is drawn for each audio.
        mask_time_prob, mask_time_length: SpecAugment (Park et al., 2019): largest share of a window's frames that is
            masked, and the frames that a mask spans. Named as in transformers' configs.
        mask_feature_prob, mask_feature_length: the same for mel bins. Masked values become the window's mean.
    """

    speed: float = 0.0
    noise: float = 0.0
    noise_decibels: tuple[float, float] = (10.0, 30.0)
    mask_time_prob: float = 0.0
    mask_time_length: int = 10
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10

    def __post_init__(self) -> None:
        for name in ("noise", "mask_time_prob", "mask_feature_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` of AudioAugmentation must lie in [0, 1], got {getattr(self, name)}.")
        if not 0 <= self.speed < 1:
            raise ValueError(f"`speed` of AudioAugmentation must lie in [0, 1), got {self.speed}.")
        for name in ("mask_time_length", "mask_feature_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` of AudioAugmentation must be at least 1, got {getattr(self, name)}.")
        low, high = self.noise_decibels
        if low > high:
            raise ValueError(f"`noise_decibels` of AudioAugmentation must be (lowest, highest), got {(low, high)}.")

    @property
    def is_on(self) -> bool:
        """Return if samples change; masks come later, on features."""
        return self.speed > 0 or self.noise > 0

    @property
    def masks_features(self) -> bool:
        return self.mask_time_prob > 0 or self.mask_feature_prob > 0

    def change(
        self, part: dict[str, Any], generator: np.random.Generator, is_flipped: bool, rate: int | None
    ) -> dict[str, Any]:
        """Return the part of a message with its audio loaded at the encoder's rate and changed."""
        if not self.is_on or rate is None:
            return part
        samples = load_audio(media_source(part), rate, part.get("sampling_rate"))
        return {"type": "audio", "audio": self.apply(samples, generator, rate), "sampling_rate": rate}

    def apply(self, samples: np.ndarray, generator: np.random.Generator, rate: int) -> np.ndarray:
        """Return mono samples (length,) at `rate` changed: (length / speed factor,)."""
        if self.speed > 0:
            samples = change_speed(samples, rate, generator.uniform(1 - self.speed, 1 + self.speed))
        if self.noise > 0 and generator.random() < self.noise:
            samples = add_noise(samples, generator.uniform(*self.noise_decibels), generator)
        return samples

    def mask(
        self, features: torch.Tensor, real: torch.Tensor, time_axis: int, generator: np.random.Generator
    ) -> torch.Tensor:
        """
        Mask a row's windows as SpecAugment does.

        Args:
            features: (A, n_mels, T) with `time_axis` 2, or (A, T, n_mels) with `time_axis` 1.
            real: (A, T), true for real frames; the others do not change.

        Raises:
            ValueError: if the features are raw waves, or shorter than a mask.
        """
        if features.ndim != 3:
            raise ValueError(
                f"SpecAugment masks spectrograms, but the features have the shape {tuple(features.shape)} of waves. "
                "Set `mask_time_prob` and `mask_feature_prob` to 0, or use those of the audio encoder's config."
            )
        real = real.bool()
        masked = torch.zeros_like(features, dtype=torch.bool)
        with numpy_seed(int(generator.integers(LARGEST_SEED))):
            if self.mask_time_prob > 0:
                check_length("mask_time_length", self.mask_time_length, real.shape[1], "frames")
                frames = spec_augment_spans(tuple(real.shape), self.mask_time_prob, self.mask_time_length, real.long())
                masked |= torch.from_numpy(frames).unsqueeze(3 - time_axis)
            if self.mask_feature_prob > 0:
                bins = features.shape[3 - time_axis]
                check_length("mask_feature_length", self.mask_feature_length, bins, "mel bins")
                chosen = spec_augment_spans((len(features), bins), self.mask_feature_prob, self.mask_feature_length)
                masked |= torch.from_numpy(chosen).unsqueeze(time_axis)
        spread = real.unsqueeze(3 - time_axis).expand_as(features)
        means = (features * spread).sum((1, 2), keepdim=True) / spread.sum((1, 2), keepdim=True).clamp(min=1)
        return torch.where(masked & spread, means.to(features), features)


def check_length(name: str, length: int, available: int, unit: str) -> None:
    if length > available:
        raise ValueError(f"`{name}` is {length} {unit}, but the features have only {available}. Lower it.")


def change_speed(samples: np.ndarray, rate: int, factor: float) -> np.ndarray:
    """Play samples recorded at `rate` `factor` times as fast: (length,) -> (length / factor,)."""
    return resample(samples, rate * factor, rate).astype(np.float32, copy=False)


def add_noise(samples: np.ndarray, decibels: float, generator: np.random.Generator) -> np.ndarray:
    """Add white noise `decibels` below the mean power of (length,) samples; silence stays silent."""
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    deviation = np.sqrt(power / 10 ** (decibels / 10))
    return samples + (deviation * generator.standard_normal(len(samples))).astype(np.float32)


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which transformers' masks draw from, and restore it afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
