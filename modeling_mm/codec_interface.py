# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
One interface around the models that turn media into discrete codes and back.

Shape legend: N items (images or waves), K codebooks, T codes of an item in each codebook. The codes of an image are
its grid read row by row, so T = rows * columns; those of a wave are in the order of time, `rate` a second.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn

# Resizing and division by 255 may leave a pixel this far outside 0 and 1.
ROUNDING = 1e-4


class MediaCodec(nn.Module, ABC):
    """
    Wrapper of a frozen codec: `encode(media)` gives codes, `decode(codes)` gives media.

    A codec is for inference only. Its parameters take no gradient, and it remains in evaluation mode when a model that
    holds it is trained.

    Attributes:
        model: the wrapped model
        config: of the wrapped model; `codec_from_config(config)` builds the same wrapper again
        codebook_size: codes are 0 to `codebook_size - 1` in each codebook
        num_codebooks: K
        grid: rows and columns of an image's codes; `None` for audio
        rate: codes a second in each codebook; `None` for images
        sampling_rate: of waves; `None` for images

    Example:
        ```python
        from transformers import MimiConfig

        codec = codec_from_config(MimiConfig(num_quantizers=8, num_hidden_layers=1))
        codes = codec.encode(torch.zeros(1, 24000))  # one second: (1, 8, 13)
        wave = codec.decode(codes)
        ```
    """

    modality: ClassVar[str]
    option: ClassVar[str | None]  # what `codec_from_config` takes beside the config
    model_class: ClassVar[str]  # the name of the wrapped class in transformers
    codebook_size: int
    num_codebooks: int
    grid: tuple[int, int] | None = None
    rate: float | None = None
    sampling_rate: int | None = None

    def __init__(self, model: nn.Module, config: Any) -> None:
        super().__init__()
        self.model: Any = model.eval().requires_grad_(False)
        self.config = config

    def train(self, mode: bool = True) -> "MediaCodec":
        """Remain in evaluation mode."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, in which the model reads media."""
        return next(parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point())

    @abstractmethod
    def encode(self, media: torch.Tensor) -> torch.Tensor:
        """Return the codes of media, (N, K, T) int64."""

    @abstractmethod
    def check_length(self, length: int) -> None:
        """Raise a `ValueError` if an item cannot have `length` codes in each codebook."""

    @abstractmethod
    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return media of checked codes (N, K, T)."""

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """
        Return the media of codes, in float32.

        Args:
            codes: (N, K, T) integers from 0 to `codebook_size - 1`

        Returns:
            images (N, 3, H, W) from 0 to 1, or waves (N, samples)

        Raises:
            ValueError: for another shape, codes outside the range, or a grid that is not complete.
        """
        self.check_codes(codes)
        return self._decode(codes.long()).float()

    def check_codes(self, codes: torch.Tensor) -> None:
        """Raise a `ValueError` for codes of another shape or type, or outside the range."""
        if codes.ndim != 3 or codes.shape[1] != self.num_codebooks:
            raise ValueError(
                f"Codes have shape {tuple(codes.shape)}; expected (items, {self.num_codebooks} codebooks, codes)."
            )
        if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
            raise ValueError(f"Codes are {codes.dtype}; pass integers.")
        self.check_length(codes.shape[2])
        outside = (codes < 0) | (codes >= self.codebook_size)
        if bool(outside.any()):
            row, book, position = outside.nonzero()[0].tolist()
            value = codes[row, book, position].item()
            raise ValueError(
                f"Row {row}, codebook {book}, position {position}: code {value} is outside 0 to "
                f"{self.codebook_size - 1}. Subtract the first id of the codes from token ids before decoding."
            )


def check_finite(media: torch.Tensor, noun: str) -> None:
    """Raise a `ValueError` for integers, and for NaN or infinite values, with the row."""
    if not media.is_floating_point():
        raise ValueError(f"The {noun} are {media.dtype}; pass floating-point values.")
    if not bool(torch.isfinite(media).all()):
        row = int((~torch.isfinite(media)).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"Row {row} of the {noun} has NaN or infinite values. Check how the file was read.")


class ImageCodec(MediaCodec):
    """Codec of images of one size, (N, 3, H, W) with values from 0 to 1, in one codebook."""

    modality = "image"
    option: ClassVar[str | None] = "image_size"
    num_codebooks = 1
    image_size: tuple[int, int]
    grid: tuple[int, int]

    @abstractmethod
    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return codes (N, T), or a shape of as many elements, of scaled images (N, 3, H, W)."""

    @property
    def num_codes(self) -> int:
        """T, the codes of one image."""
        return self.grid[0] * self.grid[1]

    @torch.no_grad()
    def encode(self, media: torch.Tensor) -> torch.Tensor:
        """
        Return the codes of images.

        Args:
            media: (N, 3, H, W) from 0 to 1, in any floating dtype

        Returns:
            (N, 1, T) int64

        Raises:
            ValueError: for images of another shape or size, or values outside the range.
        """
        if media.ndim != 4 or tuple(media.shape[1:]) != (3, *self.image_size):
            height, width = self.image_size
            raise ValueError(
                f"Images have shape {tuple(media.shape)}; expected (N, 3, {height}, {width}). Resize them first."
            )
        check_finite(media, "images")
        lowest, highest = media.aminmax() if media.numel() else (0.0, 0.0)
        if lowest < -ROUNDING or highest > 1 + ROUNDING:
            raise ValueError(
                f"Images have values from {float(lowest):.3g} to {float(highest):.3g}; expected 0 to 1. Divide bytes "
                "by 255, and do not normalize by mean and deviation."
            )
        return self._encode(self.scale(media.to(self.dtype))).reshape(len(media), 1, self.num_codes).long()

    def check_length(self, length: int) -> None:
        """Raise a `ValueError` if the grid is not complete."""
        if length != self.num_codes:
            rows, columns = self.grid
            raise ValueError(
                f"An image has {length} codes; its grid of {rows} rows and {columns} columns has {self.num_codes}. "
                "Generate all codes of an image, or repeat a code in place of the missing ones."
            )

    @staticmethod
    def scale(images: torch.Tensor) -> torch.Tensor:
        """Return images from 0 to 1 as the model reads them, from -1 to 1."""
        return images * 2 - 1

    @staticmethod
    def to_unit_range(images: torch.Tensor) -> torch.Tensor:
        """Return images from 0 to 1 of a model's output from -1 to 1."""
        return (images.float() / 2 + 0.5).clamp(0, 1)


class AudioCodec(MediaCodec):
    """
    Codec of waves with one channel, (N, samples).

    A wave is padded with silence to a whole number of codes, so T = ceil(samples / hop_length), and decoding gives
    T * hop_length samples.

    Attributes:
        hop_length: samples of one code
    """

    modality = "audio"
    option: ClassVar[str | None] = "num_codebooks"
    hop_length: int
    sampling_rate: int
    rate: float

    @abstractmethod
    def _encode(self, waves: torch.Tensor) -> torch.Tensor:
        """Return codes (N, K, T) of waves (N, T * hop_length)."""

    @property
    def reach(self) -> tuple[float, float]:
        """
        Return the numbers of codes before and behind a code that its samples depend on, at most.

        Of a codec without bounds they are infinite, and its audio is decoded as a whole alone.
        """
        return math.inf, math.inf

    def num_codes(self, samples: int) -> int:
        """Return T for a number of samples."""
        return -(-samples // self.hop_length)

    @torch.no_grad()
    def encode(self, media: torch.Tensor, sampling_rate: int | None = None) -> torch.Tensor:
        """
        Return the codes of waves of equal length.

        Args:
            media: (N, samples)
            sampling_rate: of the waves, to be checked against the codec's

        Returns:
            (N, K, T) int64

        Raises:
            ValueError: for another shape or rate, and for waves that are empty or have NaN or infinite values.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"The audio has a sampling rate of {sampling_rate} Hz; {type(self.model).__name__} reads "
                f"{self.sampling_rate} Hz. Resample it first."
            )
        if media.ndim != 2 or media.shape[1] == 0:
            raise ValueError(
                f"Waves have shape {tuple(media.shape)}; expected (N, samples) with one sample at least. Average "
                "channels to one, and pass equal lengths."
            )
        check_finite(media, "waves")
        length = self.num_codes(media.shape[1])
        waves = nn.functional.pad(media.to(self.dtype), (0, length * self.hop_length - media.shape[1]))
        codes = self._encode(waves).long()
        assert codes.shape == (len(media), self.num_codebooks, length), codes.shape
        return codes

    def check_length(self, length: int) -> None:
        """Raise a `ValueError` if there are no codes."""
        if length == 0:
            raise ValueError("Audio has no codes; pass one in each codebook at least.")

    def fit(self, waves: torch.Tensor, length: int) -> torch.Tensor:
        """Cut waves (N, samples) to the samples of `length` codes, or pad what transposed convolutions lose."""
        return nn.functional.pad(waves, (0, length * self.hop_length - waves.shape[-1]))
