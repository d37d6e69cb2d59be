# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Rows of an index and their embeddings as a pair of files that is written whole or not at all.

The rows are an Arrow stream, the embeddings an array of NumPy; both are mapped into memory and not read. The Arrow
file is written last: without it there is no pair.

Shape legend: N rows, P the size of an embedding.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..utils.files import write_bytes
from .columns import FIXED, Scalar

ROWS, VECTORS = ".arrow", ".npy"
ARROW_TYPES = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string()}


@dataclass(frozen=True)
class Row:
    """
    A row of an index without its embedding.

    Args:
        id: unique in the index
        kind: modalities of its media, then `text`, joined by `+`, such as `image+text`
        text: "" if it has none
        media: paths or URLs of its media by modality, empty texts for those without
        source: folder or dataset that it was read from
        signature: hash of its content, by which a build knows that it has changed
        metadata: values by column
    """

    id: str
    kind: str
    text: str
    media: Mapping[str, list[str]]
    source: str
    signature: str
    metadata: Mapping[str, Scalar] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the values by column, the media as JSON."""
        values = {name: getattr(self, name) for name in FIXED}
        return {**values, "media": json.dumps(dict(self.media), ensure_ascii=False), **self.metadata}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Row":
        """Return a row from its values by column."""
        fixed = {name: values[name] for name in FIXED if name != "media"}
        metadata = {name: value for name, value in values.items() if name not in FIXED}
        return cls(**fixed, media=json.loads(values["media"]), metadata=metadata)


def schema_of(columns: Mapping[str, str]) -> pa.Schema:
    """Return the columns of an Arrow file."""
    fixed = [pa.field(name, pa.string()) for name in FIXED]
    return pa.schema([*fixed, *(pa.field(name, ARROW_TYPES[kind]) for name, kind in columns.items())])


def to_table(rows: Sequence[Row], columns: Mapping[str, str]) -> pa.Table:
    return pa.Table.from_pylist([row.as_dict() for row in rows], schema_of(columns))


def rows_of(table: pa.Table) -> list[Row]:
    return [Row.from_dict(values) for values in table.to_pylist()]


def write_segment(path: Path, table: pa.Table, vectors: np.ndarray) -> None:
    """
    Write a pair of files.

    Args:
        path: of the pair, without an ending
        table: N rows
        vectors: (N, P)
    """
    if len(table) != len(vectors):
        raise ValueError(f"{path}: {len(table)} rows have {len(vectors)} embeddings.")
    data = io.BytesIO()
    np.save(data, np.ascontiguousarray(vectors, dtype=np.float32))
    write_bytes(path.with_suffix(VECTORS), data.getvalue())
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    write_bytes(path.with_suffix(ROWS), sink.getvalue().to_pybytes())


def read_segment(path: Path) -> tuple[pa.Table, np.ndarray]:
    """
    Map a pair of files into memory: N rows and their embeddings (N, P).

    Raises:
        ValueError: for a file that is damaged, with its path.
    """
    try:
        with pa.memory_map(str(path.with_suffix(ROWS))) as file:
            table = pa.ipc.open_stream(file).read_all()
        vectors = np.load(path.with_suffix(VECTORS), mmap_mode="c")  # torch wants arrays that may be written to
    except (pa.ArrowInvalid, OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: damaged or incomplete ({error}). Build the index again in a new folder.") from error
    if vectors.ndim != 2 or len(vectors) != len(table):
        raise ValueError(f"{path}: {len(table)} rows have embeddings of shape {vectors.shape}. Build the index again.")
    return table, vectors


def list_segments(folder: Path) -> list[Path]:
    """Return the whole pairs of a folder, without endings, in the order of their names."""
    return sorted(path.with_suffix("") for path in folder.glob(f"[0-9]*{ROWS}"))


def remove_segment(path: Path) -> None:
    """Remove a pair; the rows first, so that no moment has embeddings alone without them."""
    path.with_suffix(ROWS).unlink(missing_ok=True)
    path.with_suffix(VECTORS).unlink(missing_ok=True)


def merged(paths: Sequence[Path], most_rows: int) -> Iterator[tuple[list[Path], pa.Table, np.ndarray]]:
    """Yield pairs of a folder together, in order, as few at a time as hold `most_rows` rows, with their paths."""
    taken: list[tuple[Path, pa.Table, np.ndarray]] = []
    for number, path in enumerate(paths):
        taken.append((path, *read_segment(path)))
        if sum(len(table) for _, table, _ in taken) >= most_rows or number == len(paths) - 1:
            yield (
                [each for each, _, _ in taken],
                pa.concat_tables([table for _, table, _ in taken]),
                np.concatenate([vectors for _, _, vectors in taken]),
            )
            taken = []
