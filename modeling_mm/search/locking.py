# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""A lock on an index, so that one process at a time changes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """
    Hold the lock of an index.

    Raises:
        ValueError: if another process holds it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"{folder} is being changed by another process. Wait for it.") from error
    try:
        yield
    finally:
        lock.release()
