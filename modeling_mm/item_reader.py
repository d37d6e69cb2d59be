# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Loading of items of a user's own modality: arrays of numbers, or what the modality's `read` makes of a source."""

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .batching import pad_rows, stack_padded
from .images import to_numpy
from .modalities import Modality
from .placeholders import Rows, load_rows
from .sources import describe, read_bytes

# Shape legend: B rows, I items of a row, N items of a batch, T frames.

NPY = b"\x93NUMPY"


class ItemReader:
    """
    Part of a processor for a modality without an image processor or a feature extractor: items as they are, padded.

    It has no settings to save: the modality's row makes it again.

    Args:
        modality: its row

    Example:
        >>> reader = ItemReader(Modality("motion", dimensions=(2,), frame_axes=(2,)))
        >>> features, _ = reader.features([[np.zeros((100, 6))], [np.zeros((80, 6))]])
        >>> features["motion_values"].shape, features["motion_mask"].sum(-1).tolist()
        (torch.Size([2, 1, 100, 6]), [[100], [80]])
    """

    def __init__(self, modality: Modality):
        self.modality = modality
        self.model_input_names = [modality.inputs[0], modality.mask]

    def to_dict(self) -> dict[str, Any]:
        """Return what changes the outputs, for the name of an encoder cache."""
        read = self.modality.read
        name = None if read is None else f"{read.__module__}.{getattr(read, '__qualname__', type(read).__qualname__)}"
        return {"modality": self.modality.name, "read": name}

    def is_item(self, value: Any) -> bool:
        """Return True for one item and False for a list of items: nested lists of numbers are one item."""
        return not isinstance(value, (list, tuple)) or depth(value) == self.modality.dimensions[0]

    def load(self, source: Any) -> np.ndarray:
        """
        Load one item as float32, with the modality's `dimensions`.

        Raises:
            ValueError: for a source that cannot be read, and for an array of another shape, without a frame, or with
                values that are not numbers.
        """
        item = np.asarray(to_numpy(self.modality.read(source) if self.modality.read else read_array(source)))
        if item.dtype.kind not in "biuf":
            raise ValueError(f"expected numbers, got an array of {item.dtype}")
        item = item.astype(np.float32, copy=False)
        expected = self.modality.dimensions[0]
        if item.ndim != expected or item.size == 0:
            raise ValueError(
                f"expected an array of {expected} dimensions with at least one value, got shape {item.shape}; let "
                f"`read` of the modality {self.modality.name!r} make one"
            )
        if broken := item.size - int(np.isfinite(item).sum()):
            raise ValueError(f"{broken} of {item.size} values are NaN or infinite; repair or replace them before")
        return item

    def features(self, rows: Rows) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
        """
        Load the items of rows and pad them.

        Returns:
            The raw input (B, I, ...) with its mask, (B, I) or, of items with frames, (B, I, T); and the placeholder
            tokens of each item: one.

        Raises:
            ValueError: for an item that cannot be loaded, and for items that differ in more than their frames.
        """
        modality = self.modality
        loaded = load_rows(rows, self.load, modality)
        items, counts = [item for row in loaded for item in row], list(map(len, loaded))
        axis = modality.frame_axes[0] - 2 if modality.frame_axes else None
        shapes = {tuple(size for i, size in enumerate(item.shape) if i != axis) for item in items}
        if len(shapes) > 1:
            apart = "" if axis is None else f" apart from axis {axis}, the frames"
            raise ValueError(
                f"The {modality.plural} of a batch have shapes {', '.join(map(str, sorted(shapes)))}{apart}; give "
                "them one shape"
            )
        values = stack_padded([torch.from_numpy(np.ascontiguousarray(item)) for item in items])  # (N, ...)
        lengths = torch.tensor([1 if axis is None else item.shape[axis] for item in items])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (N, T)
        mask = mask[:, 0] if axis is None else mask
        made = {modality.inputs[0]: pad_rows(values, counts), modality.mask: pad_rows(mask, counts)}
        return made, [[1] * count for count in counts]


def depth(value: Any) -> int:
    """Return how deep lists of numbers are nested; -1 for lists of anything else, and for empty ones."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        return 0 if isinstance(value, (int, float)) else -1
    inner = depth(value[0]) if len(value) else -1
    return inner + 1 if inner >= 0 else -1


def read_array(source: Any) -> Any:
    """
    Return an array, a tensor or nested lists as they are, and the array in a `.npy` file.

    Raises:
        ValueError: for another source.
    """
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, dict)):
        return source
    data = read_bytes(source)
    if not data.startswith(NPY):
        raise ValueError(
            f"{describe(source)}: expected an array, nested lists of numbers, or a `.npy` file; for files of another "
            "format give the modality a `read`"
        )
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{describe(source)}: damaged or cut short ({error})") from error
