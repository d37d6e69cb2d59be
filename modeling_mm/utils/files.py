# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Files and folders that are written whole or not at all."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HALF_FILE = re.compile(r"\..+\.\d+")  # name of an unfinished file of `write_bytes`


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under another name, then rename it. Missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def remove_half_files(folder: Path) -> None:
    """Remove the files that a killed `write_bytes` leaves. No other process must write into the folder."""
    for path in [*folder.glob(".*.*"), *folder.glob("*/.*.*")]:
        if HALF_FILE.fullmatch(path.name):
            path.unlink()


@contextmanager
def folder_beside(target: Path) -> Iterator[Path]:
    """Yield a new folder next to the target, which is removed at the end if it is still there."""
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.absolute().parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(folder: Path, target: Path) -> None:
    """Put a folder in the place of the target, which is whole at any time but the moment between two renames."""
    if not target.exists():
        folder.rename(target)
        return
    with folder_beside(target) as former:
        target.rename(former / target.name)
        try:
            folder.rename(target)
        except OSError:
            (former / target.name).rename(target)  # what was there stays
            raise
