# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Encoder states on disk.

A store is two files: `states.bin`, float16, one item behind the other, and `index.jsonl`, one line an item, with its
checksum. Items are appended, so that an interrupted run resumes.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from filelock import FileLock

# Shape legend: L encoder tokens, W the encoder's width.

STORED = np.float16
LOCK_SECONDS = 600  # how long a writer waits for others; the lock of a killed process is free at once
Entry = tuple[int, list[int], int, str]  # offset in values, length of each window, W, checksum


class StateStore:
    """
    Encoder states by key. An item is a list of windows (L, W), one for an image.

    Any number of processes may read and fill a store at the same time; a lock lets one append after the other.

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
        self.entries: dict[str, Entry] = {}
        self.num_values, self.index_size = 0, 0  # the whole part of its two files, in values and in bytes
        self.read_index()
        self._values: np.memmap | None = None

    def read_index(self) -> None:
        """
        Read the index up to the first line whose states are not there. An append removes such remains.

        Raises:
            ValueError: if a line is damaged, with its file and number.
        """
        self.entries, self.num_values, self.index_size = {}, 0, 0
        path, data = self.folder / "index.jsonl", self.folder / "states.bin"
        available = data.stat().st_size // STORED().itemsize if data.is_file() else 0
        if not path.is_file():
            return
        with open(path, "rb") as index:
            for number, line in enumerate(index, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    key, offset, lengths, width, digest = json.loads(line)
                    end = offset + sum(lengths) * width
                    is_next = offset == self.num_values and min(lengths, default=1) >= 0 < width
                except (ValueError, TypeError) as error:
                    raise self.damaged(f"{path}, line {number}") from error
                if not is_next:
                    raise self.damaged(f"{path}, line {number}")
                if end > available:
                    break
                self.entries[key] = (offset, lengths, width, digest)
                self.num_values, self.index_size = end, self.index_size + len(line)

    def damaged(self, what: str) -> ValueError:
        return ValueError(f"{what}: damaged. Delete the folder {self.folder}, so that its files are encoded again.")

    def append(self, items: Iterable[tuple[str, list[torch.Tensor]]]) -> None:
        """
        Add items, as key and windows (L, W). The index is written last, so that every line of it has its states.

        Raises:
            TimeoutError: if other processes hold the lock for too long.
        """
        index_path = self.folder / "index.jsonl"
        with FileLock(self.folder / "lock", timeout=LOCK_SECONDS):
            if index_path.is_file() and index_path.stat().st_size != self.index_size:
                self.read_index()  # another process has filled it since, or was interrupted
            added: dict[str, Entry] = {}
            offset = self.num_values
            with open(self.folder / "states.bin", "ab") as states:
                states.truncate(offset * STORED().itemsize)
                for key, windows in items:
                    lengths, width = [len(window) for window in windows], windows[0].shape[1]
                    content = b"".join(to_stored(window).tobytes() for window in windows)
                    added[key] = (offset, lengths, width, checksum(key, lengths, width, content))
                    offset += sum(lengths) * width
                    states.write(content)
            lines = "".join(json.dumps([key, *entry]) + "\n" for key, entry in added.items()).encode()
            with open(index_path, "ab") as index:
                index.truncate(self.index_size)
                index.write(lines)
            self.entries |= added
            self.num_values, self.index_size, self._values = offset, self.index_size + len(lines), None

    def __getitem__(self, key: str) -> list[torch.Tensor]:
        """Return the windows of an item, (L, W) each, in float32; raise a ValueError if they are damaged."""
        offset, lengths, width, digest = self.entries[key]
        path = self.folder / "states.bin"
        if self._values is None:
            self._values = np.memmap(path, STORED, "r", shape=(self.num_values,))
        values = self._values[offset : offset + sum(lengths) * width]
        if checksum(key, lengths, width, values.tobytes()) != digest:
            raise self.damaged(f"{path}, item {key}")
        return list(torch.from_numpy(values.astype(np.float32)).view(-1, width).split(lengths))

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_values": None}  # a worker opens the file itself


def checksum(key: str, lengths: list[int], width: int, content: bytes) -> str:
    """Return the checksum of an item's states and of what the index says about them."""
    return xxhash.xxh3_64(f"{key} {lengths} {width} ".encode() + content).hexdigest()


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
