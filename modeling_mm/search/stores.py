# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Stores of an index: rows and embeddings, searched by inner product.

Shape legend: N rows, P the size of an embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from .columns import Condition
from .segments import Row

EXACT, MILVUS = "exact", "milvus"
STORES = (EXACT, MILVUS)
MILVUS_PACKAGES = ("pymilvus", "milvus_lite")
MOST_HITS = 16_384  # of a search in Milvus


@dataclass(frozen=True)
class Hit:
    """A row that a search has found, with its score: the inner product of the query and its embedding."""

    score: float
    row: Row


class Store(Protocol):
    """Rows and embeddings of an index, kept on disk or by a server."""

    def upsert(self, table: pa.Table, vectors: np.ndarray) -> None:
        """Add rows with their embeddings (N, P), in place of those with the same ids, and make them durable."""

    def delete(self, ids: Sequence[str]) -> int:
        """Delete the rows with these ids; return the number of those that were there."""

    def search(self, query: np.ndarray, top: int, conditions: Sequence[Condition] = ()) -> list[Hit]:
        """Return the rows with the largest inner products with a query (P,), the largest first."""

    def get(self, ids: Sequence[str]) -> dict[str, tuple[Row, np.ndarray]]:
        """Return rows with their embeddings (P,) by id; those that are not there are left out."""

    def signatures(self) -> dict[str, tuple[str, str]]:
        """Return source and signature of every row by id."""

    def __len__(self) -> int: ...

    def tidy(self) -> None:
        """Give back the space of rows that were deleted or replaced, if that is worth its while."""

    def close(self) -> None: ...


def default_store() -> str:
    """Return the store that a new index gets: Milvus if it is installed."""
    return MILVUS if all(map(find_spec, MILVUS_PACKAGES)) else EXACT


def open_store(
    folder: Path, store: str, dimension: int, columns: Mapping[str, str], index_type: str | None, collection: str
) -> Store:
    """
    Open the store of an index, or make it.

    Args:
        folder: of the index
        store: `exact`, `milvus`, or the address of a Milvus server
        dimension: P
        columns: types of the metadata
        index_type: of Milvus
        collection: name of the index in Milvus

    Raises:
        ImportError: for Milvus without its packages.
        ValueError: for a store that cannot be opened.
    """
    if store == EXACT:
        from .exact import ExactStore

        return ExactStore(folder / "rows", dimension, columns)
    from .milvus import MilvusStore

    return MilvusStore(folder / "milvus.db" if store == MILVUS else store, dimension, columns, index_type, collection)


def check_vectors(vectors: np.ndarray, dimension: int, ids: Sequence[str]) -> None:
    """
    Check embeddings (N, P) before they are stored.

    Raises:
        ValueError: for another dimension than the index's, and for one that is not finite or not of unit length, with
            the id of its row.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise ValueError(
            f"The index holds embeddings of {dimension} numbers, got an array of shape {tuple(vectors.shape)}. Use "
            "the model that the index was built with, or build a new index."
        )
    lengths = np.linalg.norm(vectors, axis=1)
    if len(bad := np.flatnonzero(~(np.abs(lengths - 1) < 1e-2))):  # NaN is nowhere near
        raise ValueError(
            f"Row {ids[bad[0]]!r}: its embedding has the length {lengths[bad[0]]:g}, expected 1. The model's weights "
            "may be damaged, or overflow in their dtype."
        )
