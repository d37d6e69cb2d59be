# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Reader of Qt's binary resource files (`.rcc`), which hold a tree of named files.

All numbers are big endian. A header names the offsets of three tables: the tree of entries, each a folder or a file,
the names in UTF-16, and the data, each file behind its length.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"qres"
VERSIONS = (1, 2, 3)
COMPRESSED, FOLDER, ZSTD = 1, 2, 4  # flags of an entry


@dataclass(frozen=True)
class QtResources:
    """
    Tables of a resource file.

    Args:
        path: named in errors
        content: of the file
        tree, data, names: offsets of the tables
        entry_size: bytes of an entry in the tree; from version 2 on each ends with a time
    """

    path: Path
    content: bytes
    tree: int
    data: int
    names: int
    entry_size: int

    def numbers(self, form: str, offset: int) -> tuple[int, ...]:
        """Return big-endian numbers at an offset."""
        return struct.unpack(">" + form, self.slice(offset, struct.calcsize(">" + form)))

    def slice(self, offset: int, length: int) -> bytes:
        """
        Return bytes of the file.

        Raises:
            ValueError: if the file ends before them.
        """
        if offset + length > len(self.content):
            raise ValueError(
                f"{self.path} is cut short: it has {len(self.content)} bytes, and its tables name byte "
                f"{offset + length}. Fetch it again."
            )
        return self.content[offset : offset + length]

    def name(self, offset: int) -> str:
        """Return a name: its length, its hash, its letters."""
        (length,) = self.numbers("H", self.names + offset)
        return self.slice(self.names + offset + 6, 2 * length).decode("utf-16-be")

    def files(self, entry: int = 0, folder: str = "") -> Iterator[tuple[str, bytes]]:
        """Yield path and content of each file below an entry of the tree, in its order; entry 0 is the root."""
        start = self.tree + entry * self.entry_size
        name, flags = self.numbers("IH", start)
        path = f"{folder}/{self.name(name)}".lstrip("/") if entry else ""
        if flags & FOLDER:
            count, first = self.numbers("II", start + 6)
            for child in range(first, first + count):
                if child <= entry:
                    raise ValueError(f"{self.path} is damaged: folder {path!r} lies within itself. Fetch it again.")
                yield from self.files(child, path)
        else:
            (offset,) = self.numbers("I", start + 10)  # behind the country and the language
            yield path, self.file(path, flags, self.data + offset)

    def file(self, path: str, flags: int, offset: int) -> bytes:
        """
        Return the content of a file.

        Raises:
            ValueError: if it is compressed by zstd, or damaged.
        """
        (length,) = self.numbers("I", offset)
        content = self.slice(offset + 4, length)
        if flags & ZSTD:
            raise ValueError(f"{self.path}: {path} is compressed by zstd, and only zlib can be read here.")
        if not flags & COMPRESSED:
            return content
        try:
            return zlib.decompress(content[4:])  # behind the length that it will have
        except zlib.error as error:
            raise ValueError(f"{self.path} is damaged: {path} cannot be decompressed ({error}).") from error


def read_qt_resources(path: Path) -> Iterator[tuple[str, bytes]]:
    """
    Yield path and content of each file in a `.rcc`.

    Raises:
        ValueError: for another kind of file, an unknown version, a file that is cut short or damaged, and for files
            in it that are compressed by zstd.
    """
    content = path.read_bytes()
    if content[:4] != MAGIC:
        raise ValueError(f"{path} is not a Qt resource file: it begins with {content[:4]!r}, not {MAGIC!r}.")
    version, tree, data, names = QtResources(path, content, 0, 0, 0, 0).numbers("IIII", 4)
    if version not in VERSIONS:
        raise ValueError(f"{path} has version {version} of the format; expected one of {VERSIONS}.")
    yield from QtResources(path, content, tree, data, names, 14 if version == 1 else 22).files()
