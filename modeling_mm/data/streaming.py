# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Chat samples as columns that every stream shares, so that streams from anywhere can be mixed by `datasets`.

Arrow has one type a column, and conversations do not: some contents are text, others lists, each with keys of its
own. In a stream a sample is therefore JSON text, with its media beside it as files.
"""

import json
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from .chat_row import SOURCE_KEYS, media_parts, to_row

STREAM_COLUMNS = ("sample", "media")
# A file is cut into this many pieces, for as many workers as that to share it; small files stay whole.
MOST_SHARDS = 64
SHARD_BYTES = 1 << 16


def stream_features() -> Any:
    """The types of `STREAM_COLUMNS`."""
    import datasets

    file = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    return datasets.Features({"sample": datasets.Value("string"), "media": datasets.List(file)})


def file_stream(path: Path) -> Any:
    """A JSONL file as a `datasets.IterableDataset` of `STREAM_COLUMNS`; its media stay where they are."""
    import datasets

    size = path.stat().st_size
    count = max(1, min(MOST_SHARDS, size // SHARD_BYTES))
    edges = [size * number // count for number in range(count + 1)]
    shards = [(str(path), start, stop) for start, stop in pairwise(edges)]
    return datasets.IterableDataset.from_generator(read_shards, stream_features(), {"shards": shards})


def read_shards(shards: list[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
    """The samples of pieces of files: lines whose first byte lies in the piece."""
    for path, start, stop in shards:
        with open(path, "rb") as file:
            if start > 0:
                file.seek(start - 1)
                file.readline()  # the rest of a line of the piece before
            while file.tell() < stop:
                position = file.tell()
                line = file.readline()
                if line.strip():
                    yield pack_line(line, Path(path), position)


def pack_line(line: bytes, path: Path, position: int) -> dict[str, Any]:
    """A line of a JSONL file in `STREAM_COLUMNS`. Raises ValueError for a broken one, with where it starts."""
    try:
        return to_columns(to_row(json.loads(line), path.parent))
    except ValueError as error:
        raise ValueError(f"{path}, the line at byte {position}: {error}") from error


def to_stream(dataset: Any) -> Any:
    """A `datasets.IterableDataset` of samples in any known form as one of `STREAM_COLUMNS`."""
    # Without known types, as those of JSON on the Hub, nothing is decoded.
    plain = dataset.decode(False) if dataset.features else dataset
    packed = plain.map(pack_sample, with_indices=True, features=stream_features())
    return packed.select_columns(list(STREAM_COLUMNS))


def pack_sample(sample: dict[str, Any], number: int) -> dict[str, Any]:
    """A sample of a data set in `STREAM_COLUMNS`."""
    try:
        return to_columns(to_row(sample))
    except ValueError as error:
        raise ValueError(f"Sample {number} of the data set: {error}") from error


def to_columns(row: Any) -> dict[str, Any]:
    """A row as text and files: media parts in the text hold the number of their file instead of its bytes."""
    files: list[dict[str, Any]] = []
    for part in media_parts(row.messages):
        source = part.get(part["type"])
        if isinstance(source, dict) and source.get("bytes") is not None:
            file = {"bytes": source["bytes"], "path": source.get("path")}
        elif is_remote(part.get("path")):
            file = {"bytes": read_remote(part["path"]), "path": part["path"]}
        else:
            continue
        for key in (part["type"], *SOURCE_KEYS):
            part.pop(key, None)
        part["file"] = len(files)
        files.append(file)
    sample = {"messages": row.messages, "task": row.task, "id": row.id}
    try:
        return {"sample": json.dumps(sample, ensure_ascii=False), "media": files}
    except TypeError as error:
        raise ValueError(f"its media are neither files, nor bytes, nor addresses ({error})") from error


def from_stream(columns: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `to_columns`, as a sample for `to_row`."""
    sample = json.loads(columns["sample"])
    for part in media_parts(sample["messages"]):
        if "file" in part:
            file = columns["media"][part.pop("file")]
            part[part["type"]] = {"bytes": file["bytes"], "path": file["path"]}
    return sample


def is_remote(path: Any) -> bool:
    """Whether a path leads through `fsspec`, into the Hub or an archive there, rather than to a file or a web page."""
    return isinstance(path, str) and "://" in path and not path.startswith(("http://", "https://", "file://"))


def read_remote(path: str | os.PathLike) -> bytes:
    import fsspec

    with fsspec.open(path, "rb") as file:
        return file.read()
