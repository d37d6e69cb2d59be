# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Files that are written whole or not at all."""

import json
import os
import re
from collections.abc import Iterable
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
