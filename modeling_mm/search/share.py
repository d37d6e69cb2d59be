# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The share of a source's items that one process embeds, into part files."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from ..utils.progress import show_progress
from .content import Content, read_content, row_of, sign
from .embedding import Embedder
from .items import Item, ItemSource
from .manifest import MEDIA, PARTS, Manifest
from .processes import Processes
from .segments import Row, to_table, write_segment
from .stores import check_vectors

PART_ROWS = 256  # rows of a part file; an interruption loses at most those that are not yet in one


@dataclass(frozen=True)
class Skipped:
    """An item that is not in the index: its place, its id and the reason."""

    where: str
    id: str | None
    reason: str


@dataclass(frozen=True)
class Outcome:
    """Rows of a share by id, each `added`, `updated` or `unchanged`, beside its duplicates and skipped items."""

    rows: dict[str, str]
    duplicates: int
    skipped: list[Skipped]


@dataclass
class BuildReport:
    """
    Numbers of a build.

    Args:
        added, updated, unchanged, deleted: rows
        duplicates: items without an id whose content is that of an earlier one, which are left out
        skipped: items without content, or that cannot be read or embedded
        left_out: files and columns that items do not keep
        rows: of the index now
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    deleted: int = 0
    duplicates: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    rows: int = 0

    def __str__(self) -> str:
        counts = [f"{getattr(self, name)} {name}" for name in ("added", "updated", "unchanged", "deleted")]
        counts += [f"{self.duplicates} duplicates left out"] if self.duplicates else []
        counts += [f"{len(self.skipped)} skipped"] if self.skipped else []
        return f"{self.rows} rows: {', '.join(counts)}."


@dataclass(frozen=True)
class Plan:
    """Knowledge that all processes share: the index, and source and signature of its rows by id."""

    manifest: Manifest
    known: dict[str, tuple[str, str]]


class Share:
    """
    Embeds the items of one process.

    Args:
        folder: of the index
        source: name of the items' source
        embedder: the model
        plan: of all processes
        rank: of this process

    Attributes:
        outcomes: by id, if a row was `added`, `updated` or `unchanged`
        duplicates, skipped: of the report
    """

    def __init__(self, folder: Path, source: str, embedder: Embedder, plan: Plan, rank: int):
        self.folder, self.source, self.embedder, self.plan, self.rank = folder, source, embedder, plan, rank
        self.outcomes: dict[str, str] = {}
        self.places: dict[str, str] = {}  # of items by id
        self.duplicates = 0
        self.skipped: list[Skipped] = []
        self.rows: list[Row] = []  # not yet in a part
        self.vectors: list[np.ndarray] = []
        self.parts = 0

    def embed(self, items: Sequence[Item], batch_size: int) -> None:
        """Embed those items that are new or have changed. Only these are decoded at a time."""
        rows, kept = [], []
        for content in self.changed(items):
            try:
                rows.append(row_of(content, self.plan.manifest.columns, self.source, self.folder / MEDIA))
                kept.append(content)
            except ValueError as error:
                self.skip(content.item, error)
        vectors, failures = self.embedder.embed(kept, batch_size)
        for number, failure in failures:
            self.skip(kept[number].item, failure)
        fine = sorted(set(range(len(kept))) - {number for number, _ in failures})
        check_vectors(vectors[fine], self.plan.manifest.dimension, [rows[number].id for number in fine])
        self.rows += [rows[number] for number in fine]
        self.vectors += list(vectors[fine])
        known = self.plan.known
        self.outcomes |= {rows[n].id: "updated" if rows[n].id in known else "added" for n in fine}
        if len(self.rows) >= PART_ROWS:
            self.write_part()

    def changed(self, items: Sequence[Item]) -> Iterator[Content]:
        """Yield the content of items that are new or have changed; count the others."""
        for item in items:
            try:
                signature, media = sign(item)
                name = signature if item.id is None else item.id
                if name in self.places and item.id is None:
                    self.duplicates += 1
                    continue
                self.check_id(item, name)
                self.places[name] = item.where
                if self.plan.known.get(name) == (self.source, signature):
                    self.outcomes[name] = "unchanged"
                else:
                    yield read_content(item, media, signature)
            except ValueError as error:
                self.skip(item, error)

    def check_id(self, item: Item, name: str) -> None:
        """Raise a ValueError if an earlier item, or a row of another source, has an item's id."""
        if name in self.places:
            raise ValueError(f"{item.where}: its id {name!r} is that of {self.places[name]}. Give it another.")
        other, _ = self.plan.known.get(name, (self.source, ""))
        if other != self.source:
            raise ValueError(f"{item.where}: its id {name!r} is that of a row of {other or 'the API'}.")

    def skip(self, item: Item, error: ValueError) -> None:
        self.skipped.append(Skipped(item.where, item.id, str(error)))

    def write_part(self) -> None:
        """Write the rows that are not yet in a part, if there are some."""
        if not self.rows:
            return
        table = to_table(self.rows, self.plan.manifest.columns)
        write_segment(self.folder / PARTS / f"{self.rank:05}-{self.parts:09}", table, np.stack(self.vectors))
        self.rows, self.vectors, self.parts = [], [], self.parts + 1


def embed_share(
    items: ItemSource,
    folder: Path,
    embedder: Embedder,
    plan: Plan,
    processes: Processes,
    batch_size: int,
    progress: bool,
) -> Outcome:
    """Embed this process' share of the items into part files, and return what became of them."""
    share = Share(folder, items.name, embedder, plan, processes.rank)
    total = None if items.total is None else len(range(processes.rank, items.total, processes.count))
    is_shown = progress and processes.is_main
    with show_progress(total=total, desc="embedding items", disable=not is_shown) as bar:
        for batch in batches(items.read(processes.rank, processes.count), batch_size):
            share.embed(batch, batch_size)
            bar.update(len(batch))
    share.write_part()
    return Outcome(share.outcomes, share.duplicates, share.skipped)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
