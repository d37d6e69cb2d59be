# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Sizes and checksums of a checkpoint's files, in a file beside them, and the search for damage.

XXH3 reads several GB a second, so that a checkpoint is checked faster than it is read from a disk.
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import xxhash
from safetensors import SafetensorError, safe_open

from ..utils.files import write_text

CHECKSUMS_FILE = "checksums.json"
CHUNK = 1 << 22  # bytes
ARCHIVES = (".pt", ".pth", ".bin")  # of `torch.save`, which are ZIP files with a checksum for each tensor


def write_checksums(folder: Path) -> None:
    """Write size and checksum of each file in a folder, and in its subfolders, into `checksums.json`."""
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)
    found = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "xxh3_128": checksum(path)}
        for path in files_in(folder)
    }
    write_text(folder / CHECKSUMS_FILE, json.dumps(found, indent=1) + "\n")


def checksum(path: Path) -> str:
    """Return the XXH3 checksum of a file, in hexadecimal digits."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def damage(folder: Path) -> str | None:
    """
    Return the first problem of a folder's files, such as "optimizer.pt: missing", or None.

    With `checksums.json` every file is compared with it. Without it, as the stock `Trainer` and earlier versions leave
    a folder, every file must be whole by its format: JSON, safetensors, or an archive of `torch.save`.
    """
    if not (folder / CHECKSUMS_FILE).exists():
        return next(filter(None, map(structural_damage, files_in(folder))), None)
    try:
        noted = json.loads((folder / CHECKSUMS_FILE).read_text(encoding="utf-8"))
        expected = {folder / name: (each["bytes"], each["xxh3_128"]) for name, each in noted.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{CHECKSUMS_FILE}: cannot be read"
    for path, (size, digest) in expected.items():
        name = path.relative_to(folder).as_posix()
        if not path.is_file():
            return f"{name}: missing"
        try:
            if path.stat().st_size != size:
                return f"{name}: {path.stat().st_size} bytes, but {size} were saved"
            if checksum(path) != digest:
                return f"{name}: other content than was saved"
        except OSError as error:
            return f"{name}: cannot be read ({error.strerror})"
    return None


def structural_damage(path: Path) -> str | None:
    """Return the problem of a file that is not whole by its format, or None."""
    try:
        if path.suffix == ".json":
            listed = json.loads(path.read_text(encoding="utf-8"))
            if path.name.endswith(".index.json"):
                lost = sorted(
                    name for name in set(listed["weight_map"].values()) if not (path.parent / name).is_file()
                )
                return f"{lost[0]}: missing, but {path.name} names it" if lost else None
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="np"):
                pass
        elif path.suffix in ARCHIVES:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
                return f"{path.name}: damaged in {broken}" if broken else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, SafetensorError) as error:
        return f"{path.name}: damaged ({error})"
    return None


def files_in(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
