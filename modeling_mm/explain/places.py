# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Places of media: the patches of images and the moments of audio that relevance is measured on, and can be hidden."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..encoder_shapes import OF_CLAP
from ..encoders import encode
from ..modalities import MODALITIES, Modality

SHOWN = ("image", "audio")  # by patches, and by moments

# Shape legend: B rows, I images, A audio windows, L encoder tokens of an item, h x w patches of an image, T moments of
# all windows, K places: I * h * w patches and T moments, H x W pixels.

MAX_SUMMARY_TOKENS = 16  # class and register tokens that an encoder may put before its patches
Media = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Places:
    """
    Patches and moments of one row of media, K in all: as fine as the encoders' tokens.

    Args:
        grid: I, h and w; zeros without images
        leading: summary tokens before an image's patches
        moments: for each moment the number of its window, and the frames (start, stop) that it covers
    """

    grid: tuple[int, int, int] = (0, 0, 0)
    leading: int = 0
    moments: tuple[tuple[int, int, int], ...] = ()

    @property
    def patches(self) -> int:
        """Number of patches of all images."""
        return math.prod(self.grid)

    @property
    def count(self) -> int:
        """Number of places, K."""
        return self.patches + len(self.moments)

    @property
    def windows(self) -> list[int]:
        """Number of moments of each audio window."""
        numbers = [window for window, _, _ in self.moments]
        return [numbers.count(window) for window in sorted(set(numbers))]

    def split(self, values: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return values of places (..., K) as patches (..., I, h, w) and moments (..., T); None without any."""
        patches, moments = values.split([self.patches, len(self.moments)], dim=-1)
        return patches.unflatten(-1, self.grid) if self.patches else None, moments if self.moments else None

    def hide(self, hidden: torch.Tensor, media: Media, blank: Media) -> dict[str, torch.Tensor]:
        """
        Return media inputs of B rows in which places are blank.

        Args:
            hidden: (B, K) bool
            media: inputs of one row
            blank: what replaces the content of hidden places, as [`blank_media`] returns it
        """
        new = {name: tensor.expand(len(hidden), *tensor.shape[1:]) for name, tensor in media.items()}
        patches, moments = self.split(hidden)
        for name, filler in blank.items():
            if modality_of(name).name == "image" and patches is not None:
                covered = spread(patches, *media[name].shape[-2:])[:, :, None]  # (B, I, 1, H, W)
            elif modality_of(name).name == "audio" and moments is not None:
                covered = self.cover_frames(moments, name, media[name])
            else:
                continue
            new[name] = torch.where(covered.to(filler.device), filler, new[name])
        return new

    def cover_frames(self, moments: torch.Tensor, name: str, windows: torch.Tensor) -> torch.Tensor:
        """Return which frames moments (B, T) cover, in a shape that fits a batch of windows (1, A, ...)."""
        axis = frame_axis(name)
        covered = torch.zeros(len(moments), windows.shape[1], windows.shape[axis], dtype=torch.bool)
        for number, (window, start, stop) in enumerate(self.moments):
            covered[:, window, start:stop] = moments[:, number, None].cpu()
        others = [1] * (windows.ndim - 3)
        if axis == 2:  # a wave, or a spectrogram with frames first
            return covered.view(*covered.shape, *others)
        return covered.view(*covered.shape[:2], *others, -1)

    def pool(self, values: Media) -> torch.Tensor:
        """Return sums over places, (B, K), of values for media inputs of B rows."""
        parts = [torch.zeros(0)] * 2
        for name, tensor in values.items():
            if modality_of(name).name == "image" and self.patches:
                rows, columns = (
                    torch.nn.functional.one_hot(bins(size, cells), cells).to(tensor)
                    for size, cells in zip(tensor.shape[-2:], self.grid[1:], strict=True)
                )
                parts[0] = (rows.T @ tensor.sum(2) @ columns).flatten(1)  # (B, I, H, W) -> (B, I * h * w)
            elif modality_of(name).name == "audio" and self.moments:
                frames = tensor.movedim(frame_axis(name), 2).flatten(3).sum(-1) if tensor.ndim > 3 else tensor
                pieces = [frames[:, window, start:stop].sum(-1) for window, start, stop in self.moments]
                parts[1] = torch.stack(pieces, dim=1)
        count = max(len(part) for part in parts)
        return torch.cat([part if len(part) else tensor.new_zeros(count, 0) for part in parts], dim=1)


def places_of(model: Any, media: Media) -> Places:
    """
    Return the places of one row of media, as fine as the encoders' tokens.

    Args:
        model: a joint model with a head
        media: its media inputs, with an axis of items: `pixel_values` (1, I, 3, H, W)

    Raises:
        ValueError: if the tokens of an image are not a grid, or those of audio not moments.
    """
    grid, leading, moments = (0, 0, 0), 0, []
    for name, items in media.items():
        modality = next((each for each in MODALITIES.values() if name in each.inputs), None)
        if modality is None or modality.name not in SHOWN:
            continue
        tower, _ = model.model.parts_of(modality)
        frames = media.get(modality.mask) if modality.has_frames else None
        frames = None if frames is None else frames.flatten(0, 1).bool()
        with torch.no_grad():
            _, tokens, mask = encode(tower, items.flatten(0, 1), frames)  # (N, L, W), (N, L)
        if modality.name == "image":
            leading, rows, columns = patch_grid(tokens.shape[1], *items.shape[-2:])
            grid = (items.shape[1], rows, columns)
            continue
        if hasattr(tower.config, OF_CLAP):
            raise ValueError("Tokens of a spectrogram transformer are patches of time and frequency, not moments.")
        for window, real in enumerate(mask.sum(-1).tolist()):
            length = items.shape[frame_axis(name)] if frames is None else int(frames[window].sum())
            bounds = [number * length // real for number in range(real + 1)] if real else [0]
            moments += [(window, start, stop) for start, stop in itertools.pairwise(bounds)]
    return Places(grid, leading, tuple(moments))


def blank_media(media: Media) -> dict[str, torch.Tensor]:
    """
    Return what replaces hidden content, for each raw input, in its shape.

    Images get zeros, the mean color of the processor; waves zeros; spectrograms their least value, which is silence.
    """
    blank = {}
    for name, tensor in media.items():
        if any(name in modality.inputs for modality in MODALITIES.values()):
            is_spectrogram = name == "input_features"
            blank[name] = torch.full_like(tensor, tensor.min().item() if is_spectrogram else 0.0)
    return blank


def modality_of(name: str) -> Modality:
    """Return the modality of a raw input."""
    return next(modality for modality in MODALITIES.values() if name in modality.inputs)


def frame_axis(name: str) -> int:
    """Return the axis of the frames in a raw input of audio, (B, A, ...)."""
    axis = modality_of(name).frame_axis(name)
    assert axis is not None, f"{name} has frames"
    return axis


def bins(size: int, cells: int) -> torch.Tensor:
    """Return the cell of each of `size` pixels in a line."""
    return torch.arange(size) * cells // size


def spread(patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the patches (..., h, w) that pixels belong to, (..., H, W)."""
    rows, columns = bins(height, patches.shape[-2]), bins(width, patches.shape[-1])
    return patches[..., rows[:, None], columns]


def patch_grid(num_tokens: int, height: int, width: int) -> tuple[int, int, int]:
    """
    Return the number of summary tokens before an image's patches, and the rows and columns of these.

    Raises:
        ValueError: if no grid of the image's proportions has that many patches.
    """
    for leading in range(min(MAX_SUMMARY_TOKENS, num_tokens - 1) + 1):
        patches = num_tokens - leading
        rows = round(math.sqrt(patches * height / width))
        if rows and patches % rows == 0 and rows * width == patches // rows * height:
            return leading, rows, patches // rows
    raise ValueError(
        f"{num_tokens} tokens do not form a grid with the proportions of an image of {height}x{width} pixels."
    )
