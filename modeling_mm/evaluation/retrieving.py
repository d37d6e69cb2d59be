# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Figures of retrieval: how early the matches of one side stand among all rows of another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from ..utils.tables import markdown_table
from .ranking import mean_average_precision, median_rank, recall_at_k

RECALLED_AT = (1, 5, 10)
FIGURES = (*(f"recall_at_{k}" for k in RECALLED_AT), "median_rank", "map")
HEADER = ("queries", "items", "dimensions", *(f"R@{k}" for k in RECALLED_AT), "median rank", "mAP", "R@1 by chance")

# Shape legend: N rows, P the size of an embedding.


@dataclass(frozen=True)
class RetrievalFigure:
    """
    Figures of one side of a test set as queries for another.

    Args:
        query, item: names of the sides
        rows: N, that have both
        dimensions: P
        figures: those of `FIGURES`
        chance: recall at 1 of items in any order
    """

    dataset: str
    query: str
    item: str
    rows: int
    dimensions: int
    figures: dict[str, float]
    chance: float


def measure_retrieval(
    rows: Sequence[Mapping[str, np.ndarray]], groups: Sequence[str], dataset: str = "", dimensions: int | None = None
) -> list[RetrievalFigure]:
    """
    Return the figures of every pair of sides, in both directions.

    Args:
        rows: for each row the embeddings (P,) of the sides that it has, such as `text` and `image`, at unit length
        groups: a name for each row. Rows of one name match each other, as captions in the same words do
        dimensions: keep so many leading dimensions of the embeddings, at unit length

    Returns:
        two figures for each pair of sides that at least two rows have.
    """
    found = []
    for query, item in permutations(dict.fromkeys(side for row in rows for side in row), 2):
        kept = [number for number, row in enumerate(rows) if query in row and item in row]
        if len(kept) < 2:
            continue
        queries, items = (unit_rows([rows[number][side] for number in kept], dimensions) for side in (query, item))
        names = np.array([groups[number] for number in kept], dtype=object)
        similarities, relevant = queries @ items.T, names[:, None] == names  # (N, N)
        figures = {f"recall_at_{k}": recall_at_k(similarities, k, relevant) for k in RECALLED_AT}
        figures["median_rank"] = median_rank(similarities, relevant)
        figures["map"] = mean_average_precision(similarities, relevant)
        chance = float(relevant.mean())
        found.append(RetrievalFigure(dataset, query, item, len(kept), queries.shape[1], figures, chance))
    return found


def unit_rows(vectors: Sequence[np.ndarray], dimensions: int | None) -> np.ndarray:
    """Return vectors (P,) of unit length as (N, P), or their leading dimensions at unit length."""
    if dimensions is None:
        return np.stack(vectors)
    short = np.stack(vectors)[:, :dimensions]
    return short / np.linalg.norm(short, axis=1, keepdims=True).clip(1e-12)


def score_retrieval(rows: Sequence[Mapping[str, np.ndarray]], groups: Sequence[str]) -> dict[str, float]:
    """
    Return recall at 1, 5 and 10, median rank and mean average precision for every pair of sides, in both directions.

    Arguments are those of [`measure_retrieval`].

    Returns:
        `text_to_image_recall_at_1` and so on; nothing for a pair of sides that fewer than two rows have.

    Example:
        >>> rows = [{"text": [1.0, 0.0], "image": [0.9, 0.1]}, {"text": [0.0, 1.0], "image": [0.8, 0.2]}]
        >>> score_retrieval(rows, ["a cat", "a dog"])["image_to_text_recall_at_1"]
        0.5
    """
    return {
        f"{each.query}_to_{each.item}_{name}": value
        for each in measure_retrieval(rows, groups)
        for name, value in each.figures.items()
    }


def retrieval_section(figures: Sequence[RetrievalFigure]) -> str:
    """Return a section of a model card: a table for each test set, and the meaning of its columns."""
    tables = []
    for name in dict.fromkeys(figure.dataset for figure in figures):
        chosen = [figure for figure in figures if figure.dataset == name]
        sizes = sorted({figure.rows for figure in chosen})
        among = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        title = f"**{name[:1].upper()}{name[1:]}**, among {among} rows"
        tables.append(f"{title}\n\n" + markdown_table(HEADER, [cells_of(figure) for figure in chosen]))
    columns = (
        "`R@k` is the share of queries with a match among their k most similar items, `mAP` the mean average "
        "precision; rows with the same answer match each other. `R@1 by chance` is that of items in any order."
    )
    return "\n\n".join(["## Evaluation", columns, *tables]) + "\n"


def cells_of(figure: RetrievalFigure) -> tuple[str, ...]:
    """Return figures as the cells of a row of a table, see `HEADER`."""
    values = {name: f"{value:.3f}" for name, value in figure.figures.items()}
    values["median_rank"] = f"{figure.figures['median_rank']:g}"
    return (figure.query, figure.item, str(figure.dimensions), *values.values(), f"{figure.chance:.3f}")
