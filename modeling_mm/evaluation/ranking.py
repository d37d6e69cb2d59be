# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Metrics of retrieval, as pure functions of a matrix of similarities. They need numpy alone."""

from typing import Any

import numpy as np

# Shape legend: Q queries, N items.


def recall_at_k(similarities: Any, k: int, relevant: Any = None) -> float:
    """
    Return the share of queries with a relevant item among their `k` most similar ones.

    This is R@k of image-text retrieval, and hit@k of recommendation. With one relevant item for each query it is also
    the share of relevant items that are found.

    Args:
        similarities: (Q, N) array or tensor, greater for items that fit better.
        k: length of the list, at least 1. A `k` of N or more gives 1.
        relevant: relevant items of each query, as a boolean (Q, N) or as one index for each query, (Q,). By default
            item i is the one of query i, which needs Q = N.

    Raises:
        ValueError: for another shape, a similarity that is not a number, a query without a relevant item, `k` below 1.

    Example:
        >>> recall_at_k([[0.9, 0.1], [0.8, 0.2]], k=1)
        0.5
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k is the length of the list of results and must be an integer of at least 1, got {k!r}.")
    return float(np.mean(first_ranks(similarities, relevant) <= k))


def median_rank(similarities: Any, relevant: Any = None) -> float:
    """
    Return the median over queries of the rank of the best relevant item. The first place is rank 1.

    Arguments and errors are those of [`recall_at_k`].

    Example:
        >>> median_rank([[0.9, 0.1], [0.8, 0.2]])
        1.5
    """
    return float(np.median(first_ranks(similarities, relevant)))


def mean_average_precision(similarities: Any, relevant: Any = None) -> float:
    """
    Return the mean over queries of the average precision of all items.

    The average precision of a query is the mean, over its relevant items, of the share of relevant ones among the
    items up to that rank. Arguments and errors are those of [`recall_at_k`].

    Example:
        >>> mean_average_precision([[0.9, 0.1], [0.8, 0.2]])
        0.75
    """
    scores, wanted = checked(similarities, relevant)
    _, found = ranking(scores, wanted)  # (Q, N)
    precision = np.cumsum(found, axis=1) / np.arange(1, found.shape[1] + 1)
    return float(np.mean((precision * found).sum(1) / found.sum(1)))


def first_ranks(similarities: Any, relevant: Any = None) -> np.ndarray:
    """
    Return the rank of the best relevant item of each query, (Q,), from 1.

    An irrelevant item that is exactly as similar takes the better rank. So no order of the items flatters a model, and
    one whose embeddings are all the same has the worst figures. Arguments and errors are those of [`recall_at_k`].
    """
    scores, wanted = checked(similarities, relevant)
    best = np.where(wanted, scores, -np.inf).max(1, keepdims=True)  # (Q, 1)
    return 1 + ((scores >= best) & ~wanted).sum(1)


def ranking(scores: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the items of each query, best first, and which of them are relevant, (Q, N) both; ties as above."""
    order = np.lexsort((wanted, -scores), axis=1)
    return order, np.take_along_axis(wanted, order, axis=1)


def checked(similarities: Any, relevant: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return similarities and relevance as arrays, (Q, N) both, or raise a ValueError."""
    scores = as_array(similarities)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"similarities must be (queries, items) with one of each at least, got {scores.shape}.")
    scores = scores.astype(np.float64) if scores.dtype.kind in "iub" else scores
    if scores.dtype.kind != "f":
        raise ValueError(f"similarities must be numbers, got {scores.dtype}.")
    if not np.isfinite(scores).all():
        query, item = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(
            f"The similarity of query {query} and item {item} is {scores[query, item]}. Check for empty or zero "
            "embeddings before they are normalized."
        )
    return scores, relevance(relevant, *scores.shape)


def relevance(relevant: Any, queries: int, items: int) -> np.ndarray:
    """Return the relevant items of each query as a boolean (Q, N), or raise a ValueError."""
    if relevant is None:
        if queries != items:
            raise ValueError(
                f"{queries} queries and {items} items do not pair up one by one. Pass `relevant` with the items of "
                "each query."
            )
        return np.eye(queries, dtype=bool)
    wanted = as_array(relevant)
    if wanted.dtype.kind in "iu" and wanted.shape == (queries,):
        if wanted.min() < 0 or wanted.max() >= items:
            query = int(np.argmax((wanted < 0) | (wanted >= items)))
            raise ValueError(f"The relevant item of query {query} is {wanted[query]}, but items are 0 to {items - 1}.")
        return wanted[:, None] == np.arange(items)
    if wanted.dtype.kind != "b" or wanted.shape != (queries, items):
        raise ValueError(
            f"`relevant` must be booleans of shape ({queries}, {items}) or one index for each of {queries} queries, "
            f"got {wanted.dtype} of shape {wanted.shape}."
        )
    if not wanted.any(1).all():
        raise ValueError(
            f"Query {int(np.argmin(wanted.any(1)))} has no relevant item. Leave it out: its rank is undefined."
        )
    return wanted


def as_array(values: Any) -> np.ndarray:
    """Return an array of a tensor on any device and of any precision, or of nested lists."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    return np.asarray(values)
