# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Exact search over files that are mapped into memory, without a database.

A folder of numbered commits: pairs of files with rows (see `segments`), and JSON files with ids that were deleted. A
row stands in the last commit that has its id. A commit is there whole or not at all, so that an interruption loses
nothing that was committed before.

Shape legend: N rows, P the size of an embedding, B rows of a block.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..utils.files import remove_half_files, write_text
from .columns import Condition
from .segments import Row, list_segments, read_segment, remove_segment, rows_of, to_table, write_segment
from .stores import Hit

BLOCK = 1 << 16  # rows that are compared at a time
SEGMENT_ROWS = 1 << 16  # of a segment, before it is written as another one
MOST_SEGMENTS = 256
DELETED = ".json"
REPLACES = b"replaces"  # of an Arrow file that stands for all earlier commits
COMPARISONS = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


@dataclass
class Segment:
    """A committed pair of files: N rows, their embeddings (N, P), and which of them still stand, (N,)."""

    path: Path
    table: pa.Table
    vectors: np.ndarray
    live: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.live = np.ones(len(self.table), dtype=bool)


class ExactStore:
    """
    A store that compares a query with every row.

    Args:
        folder: of the commits
        dimension: P
        columns: types of the metadata

    Example:
        >>> store = ExactStore(Path("rows"), 2, {})
        >>> store.upsert(table, vectors)
        >>> store.search(vectors[0], top=3)
    """

    def __init__(self, folder: Path, dimension: int, columns: Mapping[str, str]):
        self.folder, self.dimension, self.columns = folder, dimension, columns
        self.segments: list[Segment] = []
        self.places: dict[str, tuple[int, int]] = {}  # of an id: the index of its segment, and its row there
        folder.mkdir(parents=True, exist_ok=True)
        for path in self.commits():
            self.replay(path)

    def commits(self) -> list[Path]:
        """Return the commits in order, from the last one on that stands for all before it."""
        found = sorted(self.all_commits(), key=lambda path: path.stem)
        first = 0
        for number, path in enumerate(found):
            if path.suffix != DELETED and REPLACES in (read_segment(path)[0].schema.metadata or {}):
                first = number
        return found[first:]

    def all_commits(self) -> list[Path]:
        return [*list_segments(self.folder), *self.folder.glob(f"[0-9]*{DELETED}")]

    def replay(self, path: Path) -> None:
        """Take a commit in."""
        if path.suffix == DELETED:
            for name in json.loads(path.read_text(encoding="utf-8")):
                self.forget(name)
            return
        table, vectors = read_segment(path)
        if vectors.shape[1] != self.dimension:
            raise ValueError(
                f"{path}: embeddings of {vectors.shape[1]} numbers in an index of {self.dimension}. Build it again."
            )
        self.segments.append(Segment(path, table, vectors))
        for row, name in enumerate(table["id"].to_pylist()):
            self.forget(name)
            self.places[name] = (len(self.segments) - 1, row)

    def forget(self, name: str) -> bool:
        """Mark the row of an id as deleted; return if there was one."""
        place = self.places.pop(name, None)
        if place is not None:
            self.segments[place[0]].live[place[1]] = False
        return place is not None

    def next_path(self) -> Path:
        """Return the path of the next commit, without an ending."""
        last = max((int(path.name.partition(".")[0]) for path in self.folder.glob("[0-9]*")), default=0)
        return self.folder / f"{last + 1:09}"

    def __len__(self) -> int:
        return len(self.places)

    # ---- Changes ----------------------------------------------------------------------------------------------------

    def upsert(self, table: pa.Table, vectors: np.ndarray) -> None:
        for start in range(0, len(table), SEGMENT_ROWS):
            path, rows = self.next_path(), slice(start, start + SEGMENT_ROWS)
            write_segment(path, table.slice(start, SEGMENT_ROWS), vectors[rows])
            self.replay(path)

    def delete(self, ids: Sequence[str]) -> int:
        found = [name for name in dict.fromkeys(ids) if name in self.places]
        if found:
            path = self.next_path().with_suffix(DELETED)
            write_text(path, json.dumps(found, ensure_ascii=False))
            self.replay(path)
        return len(found)

    def tidy(self) -> None:
        """Write the rows that stand once more, and remove all commits, if more rows are dead, or they are too many."""
        remove_half_files(self.folder)
        stored = sum(len(segment.table) for segment in self.segments)
        if stored <= 2 * len(self) and len(self.segments) <= MOST_SEGMENTS:
            return
        old = self.all_commits()
        parts = [(segment, np.flatnonzero(segment.live)) for segment in self.segments]
        tables = [segment.table.take(pa.array(rows)) for segment, rows in parts]
        table = pa.concat_tables([to_table([], self.columns), *tables])
        vectors = np.concatenate(
            [np.empty((0, self.dimension), np.float32), *(segment.vectors[rows] for segment, rows in parts)]
        )
        write_segment(self.next_path(), table.replace_schema_metadata({REPLACES: b"all"}), vectors)
        for path in old:
            path.unlink() if path.suffix == DELETED else remove_segment(path)
        self.segments, self.places = [], {}
        for path in self.commits():
            self.replay(path)

    # ---- Questions --------------------------------------------------------------------------------------------------

    def search(self, query: np.ndarray, top: int, conditions: Sequence[Condition] = ()) -> list[Hit]:
        wanted = torch.from_numpy(np.ascontiguousarray(query, dtype=np.float32))  # (P,)
        best: list[tuple[float, int, int]] = []  # score, segment, row
        for number, segment in enumerate(self.segments):
            for rows, block in blocks(segment, np.flatnonzero(segment.live & meets(segment.table, conditions))):
                scores = torch.from_numpy(block) @ wanted  # (B,)
                values, places = scores.topk(min(top, len(scores)))
                best += zip(values.tolist(), [number] * top, rows[places.numpy()].tolist(), strict=False)
        best = sorted(best, key=lambda each: (-each[0], each[1:]))[:top]
        found = [self.segments[number].table.slice(row, 1) for _, number, row in best]
        return [Hit(score, rows_of(table)[0]) for (score, _, _), table in zip(best, found, strict=True)]

    def get(self, ids: Sequence[str]) -> dict[str, tuple[Row, np.ndarray]]:
        found = {}
        for name in ids:
            if name in self.places:
                number, row = self.places[name]
                segment = self.segments[number]
                found[name] = (rows_of(segment.table.slice(row, 1))[0], np.array(segment.vectors[row]))
        return found

    def signatures(self) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        for segment in self.segments:
            table = segment.table.select(["id", "source", "signature"]).take(pa.array(np.flatnonzero(segment.live)))
            found |= {each["id"]: (each["source"], each["signature"]) for each in table.to_pylist()}
        return found

    def close(self) -> None:
        self.segments, self.places = [], {}


def blocks(segment: Segment, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the numbers (B,) and the embeddings (B, P) of rows of a segment; neighbors are not copied."""
    for start in range(0, len(rows), BLOCK):
        chosen = rows[start : start + BLOCK]
        are_neighbors = chosen[-1] - chosen[0] == len(chosen) - 1
        yield chosen, segment.vectors[chosen[0] : chosen[-1] + 1] if are_neighbors else segment.vectors[chosen]


def meets(table: pa.Table, conditions: Sequence[Condition]) -> np.ndarray:
    """Return which of N rows meet all conditions, (N,) bool; a row without a value meets none."""
    met = np.ones(len(table), dtype=bool)
    for condition in conditions:
        column = table[condition.column]
        if condition.operator == "in":
            found = pc.is_in(column, pa.array(condition.value, column.type))
        else:
            found = COMPARISONS[condition.operator](column, pa.scalar(condition.value, column.type))
        met &= found.fill_null(False).to_numpy().astype(bool)
    return met
