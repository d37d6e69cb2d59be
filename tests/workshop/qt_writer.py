"""Write Qt's binary resource files by hand."""

import struct
import zlib
from pathlib import Path

PLAIN, COMPRESSED, FOLDER, ZSTD = 0, 1, 2, 4


def write_qt_resources(path: Path, files: dict[str, bytes], kind: int = COMPRESSED, version: int = 3) -> Path:
    """
    Write files as a `.rcc`: the header, the data, the names, the tree, as rcc itself orders them.

    Args:
        files: path -> content
        kind: flag of all files
        version: of the format
    """
    root: dict = {}
    for name, content in files.items():
        *folders, last = name.split("/")
        place = root
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = content
    entries, waiting = [("", root)], [root]  # breadth first: the children of a folder are neighbors
    first = {}
    while waiting:
        folder = waiting.pop(0)
        first[id(folder)] = len(entries)
        entries += folder.items()
        waiting += [child for child in folder.values() if isinstance(child, dict)]
    data, names, tree = b"", b"", b""
    for name, content in entries:
        start = len(names)
        if name:
            names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")  # the hash is not read
        if isinstance(content, dict):
            tree += struct.pack(">IHII", start, FOLDER, len(content), first[id(content)])
        else:
            packed = struct.pack(">I", len(content)) + zlib.compress(content) if kind == COMPRESSED else content
            tree += struct.pack(">IHHHI", start, kind, 0, 1, len(data))  # of any country, of language C
            data += struct.pack(">I", len(packed)) + packed
        tree += bytes(8) if version > 1 else b""  # the time
    head = 24 if version > 2 else 20
    offsets = (head + len(data) + len(names), head, head + len(data))
    header = b"qres" + struct.pack(">IIII", version, *offsets) + bytes(head - 20)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + data + names + tree)
    return path
