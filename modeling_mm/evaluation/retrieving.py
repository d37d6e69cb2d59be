# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Figures of retrieval: how early the matches of one side stand among all rows of another."""

from collections.abc import Mapping, Sequence
from itertools import permutations

import numpy as np

from .ranking import mean_average_precision, median_rank, recall_at_k

RECALLED_AT = (1, 5, 10)
FIGURES = (*(f"recall_at_{k}" for k in RECALLED_AT), "median_rank", "map")

# Shape legend: N rows, P the size of an embedding.


def score_retrieval(rows: Sequence[Mapping[str, np.ndarray]], groups: Sequence[str]) -> dict[str, float]:
    """
    Return recall at 1, 5 and 10, median rank and mean average precision for every pair of sides, in both directions.

    Args:
        rows: for each row the embeddings (P,) of the sides that it has, such as `text` and `image`, at unit length
        groups: a name for each row. Rows of one name match each other, as captions in the same words do

    Returns:
        `text_to_image_recall_at_1` and so on; nothing for a pair of sides that fewer than two rows have.

    Example:
        >>> rows = [{"text": [1.0, 0.0], "image": [0.9, 0.1]}, {"text": [0.0, 1.0], "image": [0.8, 0.2]}]
        >>> score_retrieval(rows, ["a cat", "a dog"])["image_to_text_recall_at_1"]
        0.5
    """
    figures: dict[str, float] = {}
    for query, item in permutations(dict.fromkeys(side for row in rows for side in row), 2):
        kept = [number for number, row in enumerate(rows) if query in row and item in row]
        if len(kept) < 2:
            continue
        queries = np.stack([rows[number][query] for number in kept])  # (N, P)
        items = np.stack([rows[number][item] for number in kept])
        names = np.array([groups[number] for number in kept], dtype=object)
        similarities, relevant = queries @ items.T, names[:, None] == names  # (N, N)
        found = {f"recall_at_{k}": recall_at_k(similarities, k, relevant) for k in RECALLED_AT}
        found["median_rank"] = median_rank(similarities, relevant)
        found["map"] = mean_average_precision(similarities, relevant)
        figures |= {f"{query}_to_{item}_{name}": value for name, value in found.items()}
    return figures
