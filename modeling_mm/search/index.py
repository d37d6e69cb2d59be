# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Index of texts, images, audio and mixed rows by their embeddings.

Shape legend: P the size of an embedding.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..utils.spelling import suggestion
from .columns import parse_conditions
from .content import read_content, row_of, sign
from .embedding import Embedder
from .items import Item
from .locking import locked
from .manifest import MEDIA, PARTS, Manifest, read_manifest
from .segments import list_segments, to_table
from .stores import MOST_HITS, Hit, Store, check_vectors, open_store

BY_HAND = ""  # the source of rows that no build has read


class Index:
    """
    An index on disk or in a server.

    ```python
    with Index("my-index") as index:
        for hit in index.search(embedder.embed_item(Item("a dog at night")), top=5, where=["year >= 2000"]):
            print(hit.score, hit.row.id, hit.row.media)
        index.recommend(like=["a.jpg", "b.jpg"], unlike=["c.jpg"])
    ```

    Args:
        folder: of `build_index`
        embedder: model of the queries, which must be the one that made the index; None to search by ids alone

    Raises:
        FileNotFoundError: if the folder holds no index.
        ImportError: if the packages of its store are not installed.
        ValueError: for an index of another model, and one whose first build did not come to its end.
    """

    def __init__(self, folder: str | Path, embedder: Embedder | None = None):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if embedder is not None:
            check_model(self.folder, self.manifest, embedder)
        if not self.manifest.is_complete:
            raise ValueError(
                f"{folder}: its build was interrupted, so that rows are missing. Run the same `modeling-mm index "
                "build` again; it resumes."
            )
        self.embedder = embedder
        self.store = open_manifest_store(self.folder, self.manifest)

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.store.close()

    def __len__(self) -> int:
        return len(self.store)

    @property
    def pending(self) -> int:
        """The number of files with embeddings that an interrupted update has left; the next build takes them in."""
        return len(list_segments(self.folder / PARTS))

    # ---- Questions --------------------------------------------------------------------------------------------------

    def search(self, query: np.ndarray | Item, top: int = 10, where: Sequence[str] = ()) -> list[Hit]:
        """
        Return the rows that are most alike to a query, the best first.

        Args:
            query: an item, or an embedding (P,)
            top: the number of rows
            where: conditions on columns that a row must meet together, such as `year >= 2000`

        Raises:
            ValueError: for a query with nothing in it, or of another size than the index's embeddings.
        """
        check_top(top)
        conditions = parse_conditions(where, self.manifest.columns)
        if isinstance(query, Item):
            if self.embedder is None:
                raise ValueError("The query is an item, and the index was opened without a model. Pass an `embedder`.")
            query = self.embedder.embed_item(query)
        query = np.asarray(query, dtype=np.float32)
        if query.shape != (self.manifest.dimension,) or not np.isfinite(query).all():
            raise ValueError(
                f"The index holds embeddings of {self.manifest.dimension} numbers; expected a query of as many, all "
                f"finite, got an array of shape {query.shape}."
            )
        return self.store.search(query, top, conditions)

    def recommend(
        self, like: Sequence[str], unlike: Sequence[str] = (), top: int = 10, where: Sequence[str] = ()
    ) -> list[Hit]:
        """
        Return rows that are alike to some rows and unlike others, without these.

        The score is the mean similarity to the liked rows less the mean similarity to the others.

        Args:
            like: ids, at least one
            unlike: ids
            top: the number of rows
            where: conditions, as of [`search`]

        Raises:
            ValueError: for an id that is not in the index, and for the same rows on both sides.
        """
        if not like:
            raise ValueError("Recommending needs at least one row that is liked. Pass its id.")
        if both := sorted(set(like) & set(unlike)):
            raise ValueError(f"{both[0]!r} is liked and not liked. Pass it once.")
        named = list(dict.fromkeys([*like, *unlike]))
        check_top(top + len(named))
        conditions = parse_conditions(where, self.manifest.columns)
        found = self.store.get(named)
        if missing := [name for name in named if name not in found]:
            hint = suggestion(missing[0], self.store.signatures())
            raise ValueError(f"{self.folder} has no row {missing[0]!r}.{hint}")
        query = np.mean([found[name][1] for name in like], axis=0)
        if unlike:
            query = query - np.mean([found[name][1] for name in unlike], axis=0)
        if not np.abs(query).max() > 1e-6:
            raise ValueError("The rows that are liked and the others have the same embeddings. Choose others.")
        hits = self.store.search(query.astype(np.float32), top + len(named), conditions)
        return [hit for hit in hits if hit.row.id not in found][:top]

    # ---- Changes ----------------------------------------------------------------------------------------------------

    def add(self, items: Sequence[Item]) -> None:
        """
        Add items, in place of rows with the same ids. All are added or none.

        Raises:
            ValueError: for an item without content, with its place, and for metadata that do not fit the columns.
        """
        if self.embedder is None:
            raise ValueError("Adding needs the model. Open the index with an `embedder`.")
        contents, rows = [], []
        for item in items:
            signature, media = sign(item)
            contents.append(read_content(item, media, signature))
            rows.append(row_of(contents[-1], self.manifest.columns, BY_HAND, self.folder / MEDIA))
        vectors, failures = self.embedder.embed(contents)
        if failures:
            raise failures[0][1]
        check_vectors(vectors, self.manifest.dimension, [row.id for row in rows])
        last = {row.id: number for number, row in enumerate(rows)}
        kept = sorted(last.values())
        table = to_table([rows[number] for number in kept], self.manifest.columns)
        with locked(self.folder):
            self.store.upsert(table, vectors[kept])

    def delete(self, ids: Sequence[str]) -> int:
        """Delete rows; return the number of those that were there."""
        with locked(self.folder):
            deleted = self.store.delete(ids)
            self.store.tidy()
        return deleted


def open_manifest_store(folder: Path, manifest: Manifest) -> Store:
    return open_store(
        folder, manifest.store, manifest.dimension, manifest.columns, manifest.index_type, manifest.collection
    )


def check_model(folder: Path, manifest: Manifest, embedder: Embedder) -> None:
    """Raise a ValueError if an index was made by another model than this one."""
    if embedder.dimension != manifest.dimension:
        raise ValueError(
            f"{folder} holds embeddings of {manifest.dimension} numbers, of the model {manifest.model}; this model's "
            f"have {embedder.dimension}. Use that model, or build a new index."
        )
    if embedder.fingerprint != manifest.fingerprint:
        raise ValueError(
            f"{folder} was built with other weights (of {manifest.model}, fingerprint {manifest.fingerprint[:12]}) "
            f"than this model's ({embedder.fingerprint[:12]}), so that similarities would mean nothing. Use that "
            "model, or build a new index."
        )


def check_top(top: int) -> None:
    if not 1 <= top <= MOST_HITS:
        raise ValueError(f"Expected 1 to {MOST_HITS} rows, got {top}.")
