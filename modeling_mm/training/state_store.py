# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Encoder states on disk.

A store is two files: `states.bin`, float16, one item behind the other, and `index.jsonl`, one line an item. Items are
appended, so that an interrupted run resumes.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Shape legend: L encoder tokens, W the encoder's width.

STORED = np.float16


class StateStore:
    """
    Encoder states by key. An item is a list of windows (L, W), one for an image.

    Any number of processes may read a store, also while one fills it. Only one may fill it at a time.

    Args:
        folder: folder of the two files, made if it does not exist.

    Example:
        >>> store = StateStore(Path("states"))
        >>> store.append([("cat", [torch.zeros(2, 3)])])
        >>> store["cat"][0].shape
        torch.Size([2, 3])
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.entries: dict[str, tuple[int, list[int], int]] = {}  # key -> offset in values, length of each window, W
        self.num_values, self.index_size = 0, 0  # the whole part of its two files, in values and in bytes
        self.read_index()
        self._values: np.memmap | None = None

    def read_index(self) -> None:
        """Read the index up to the first broken line. The next append removes the remains of an interrupted one."""
        self.entries, self.num_values, self.index_size = {}, 0, 0
        path, data = self.folder / "index.jsonl", self.folder / "states.bin"
        available = data.stat().st_size // STORED().itemsize if data.is_file() else 0
        if not path.is_file():
            return
        with open(path, "rb") as index:
            for line in index:
                if not line.endswith(b"\n"):
                    break
                key, offset, lengths, width = json.loads(line)
                if offset + sum(lengths) * width > available:
                    break
                self.entries[key] = (offset, lengths, width)
                self.num_values, self.index_size = offset + sum(lengths) * width, self.index_size + len(line)

    def append(self, items: Iterable[tuple[str, list[torch.Tensor]]]) -> None:
        """Add items, as key and windows (L, W). The index is written last, so that every line of it has its states."""
        index_path = self.folder / "index.jsonl"
        if index_path.is_file() and index_path.stat().st_size != self.index_size:
            self.read_index()  # another process has filled it since, or was interrupted
        added: dict[str, tuple[int, list[int], int]] = {}
        offset = self.num_values
        with open(self.folder / "states.bin", "ab") as states:
            states.truncate(offset * STORED().itemsize)
            for key, windows in items:
                lengths, width = [len(window) for window in windows], windows[0].shape[1]
                added[key] = (offset, lengths, width)
                offset += sum(lengths) * width
                for window in windows:
                    states.write(to_stored(window).tobytes())
        lines = "".join(json.dumps([key, *entry]) + "\n" for key, entry in added.items()).encode()
        with open(index_path, "ab") as index:
            index.truncate(self.index_size)
            index.write(lines)
        self.entries |= added
        self.num_values, self.index_size, self._values = offset, self.index_size + len(lines), None

    def __getitem__(self, key: str) -> list[torch.Tensor]:
        """Return the windows of an item, (L, W) each, in float32."""
        offset, lengths, width = self.entries[key]
        if self._values is None:
            self._values = np.memmap(self.folder / "states.bin", STORED, "r", shape=(self.num_values,))
        values = torch.from_numpy(self._values[offset : offset + sum(lengths) * width].astype(np.float32))
        return list(values.view(-1, width).split(lengths))

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_values": None}  # a worker opens the file itself


def to_stored(states: torch.Tensor) -> np.ndarray:
    """Return states in float16, or raise a ValueError if it cannot hold a value."""
    values = states.to(torch.float32).numpy()
    largest = np.abs(values).max(initial=0.0)
    if not largest <= np.finfo(STORED).max:
        raise ValueError(
            f"The encoder's states reach {largest}, but an encoder cache holds values up to {np.finfo(STORED).max}. "
            "Train without an encoder cache."
        )
    return values.astype(STORED)
