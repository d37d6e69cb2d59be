# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Examples as columns that all streams share, so that `datasets` can mix streams of any origin.

Arrow has one type a column, but contents of messages are text or lists, with different keys. In a stream an example is
therefore JSON text, with its media beside it as files.
"""

import json
import os
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import fsspec

from ..sources import WEB, is_file_url
from .chat_row import SOURCE_KEYS, ChatRow, media_parts, to_row

if TYPE_CHECKING:
    from datasets import Features, IterableDataset

# Number of pieces that a file is cut into, so that workers can share it. Small files stay whole.
MAX_SHARDS = 64
SHARD_BYTES = 1 << 16


def features() -> "Features":
    """Return the types of the columns."""
    from datasets import Features, List, Value

    # Text, not `datasets.Json`, which rounds floats to 10 digits, turns unknown objects into dicts and "5" into 5.
    return Features({"example": Value("string"), "media": List({"bytes": Value("binary"), "path": Value("string")})})


def file_stream(path: str | os.PathLike) -> "IterableDataset":
    """Return a JSONL file as a stream; its media stay where they are."""
    from datasets import IterableDataset

    size = os.path.getsize(path)
    count = max(1, min(MAX_SHARDS, size // SHARD_BYTES))
    edges = [size * number // count for number in range(count + 1)]
    shards = [(os.fspath(path), start, stop) for start, stop in pairwise(edges)]
    return IterableDataset.from_generator(read_shards, features(), {"shards": shards})


def read_shards(shards: list[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
    """Yield the examples of pieces of files: lines whose first byte lies in the piece."""
    for path, start, stop in shards:
        with open(path, "rb") as file:
            if start > 0:
                file.seek(start - 1)
                file.readline()  # the rest of a line of the piece before
            while (position := file.tell()) < stop:
                line = file.readline()
                if line.strip():
                    yield pack(line, f"{path}, the line at byte {position}", os.path.dirname(path))


def to_stream(dataset: "IterableDataset") -> "IterableDataset":
    """Return a stream of examples in any form that `to_row` knows."""
    dataset = dataset.with_format(None)
    # Without known types, as those of JSON on the Hub, nothing is decoded.
    plain = dataset.decode(False) if dataset.features else dataset
    columns = features()
    packed = plain.map(
        lambda sample, number: pack(sample, f"Example {number} of the dataset"), with_indices=True, features=columns
    )
    return packed.select_columns(list(columns))


def pack(sample: dict[str, Any] | bytes, where: str, folder: str | None = None) -> dict[str, Any]:
    """Return an example, or a line of JSON, as columns. Media parts hold the number of their file."""
    try:
        row = to_row(json.loads(sample) if isinstance(sample, bytes) else sample, folder)
        files: list[dict[str, Any]] = []
        for part in media_parts(row.messages):
            if (file := file_of(part)) is not None:
                for key in (part["type"], *SOURCE_KEYS):
                    part.pop(key, None)
                part["file"] = len(files)
                files.append(file)
        example = json.dumps({"messages": row.messages, "task": row.task, "id": row.id}, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"{where}: its media are neither files, nor bytes, nor addresses ({error})") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return {"example": example, "media": files}


def unpack(columns: dict[str, Any]) -> ChatRow:
    """Return the example that `pack` has packed."""
    sample = json.loads(columns["example"])
    for part in media_parts(sample["messages"]):
        if "file" in part:
            part[part["type"]] = columns["media"][part.pop("file")]
    return to_row(sample)


def file_of(part: dict[str, Any]) -> dict[str, Any] | None:
    """Return the bytes and the path of a part whose media are bytes, or lie where only `fsspec` reads them."""
    source, path = part.get(part["type"]), part.get("path")
    if isinstance(source, dict) and source.get("bytes") is not None:
        return {"bytes": source["bytes"], "path": source.get("path")}
    if isinstance(path, str) and "://" in path and not path.startswith(WEB) and not is_file_url(path):
        with fsspec.open(path, "rb") as file:
            return {"bytes": file.read(), "path": path}
    return None
