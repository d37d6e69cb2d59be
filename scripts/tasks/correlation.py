# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Canonical correlation analysis with a ridge, in closed form, as a baseline of retrieval.

scikit-learn's CCA iterates over one component after another and has no ridge, without which 1,280 features of 4,000
images are learned by heart.

Shape legend: N rows, P and Q features of two sides, K components.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from modeling_mm.evaluation import recall_at_k

from ..workshop.concepts import split_of

RIDGES, SIZES = (0.01, 0.1, 1.0), (32, 64, 128, 256)
CHOSEN_BY = 0.1  # share of the concepts of training on which ridge and size are chosen
CHARACTERS = (2, 4)  # lengths of the parts of words that stand for a name
TEXT_FEATURES = 300


@dataclass(frozen=True)
class Correlation:
    """Projections of two sides, (P, K) and (Q, K), with the means that are subtracted first."""

    means: tuple[np.ndarray, np.ndarray]
    weights: tuple[np.ndarray, np.ndarray]

    def project(self, values: np.ndarray, side: int) -> np.ndarray:
        """Return the rows (N, P or Q) of a side as unit vectors (N, K)."""
        found = (values - self.means[side]) @ self.weights[side]
        return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-12)


def correlate(one: np.ndarray, other: np.ndarray, ridge: float, size: int) -> Correlation:
    """
    Return the directions of two sides, (N, P) and (N, Q), that correlate most, weighted by their correlation.

    Args:
        ridge: added to the variances, relative to their mean.
        size: K, at most P and Q.
    """
    means = one.mean(0), other.mean(0)
    left, right = one - means[0], other - means[1]
    whiten = tuple(inverse_root(side.T @ side / len(side), ridge) for side in (left, right))
    shared = whiten[0] @ (left.T @ right / len(left)) @ whiten[1]  # (P, Q)
    turned, strength, back = np.linalg.svd(shared, full_matrices=False)
    kept = strength[:size]
    return Correlation(means, (whiten[0] @ turned[:, :size] * kept, whiten[1] @ back[:size].T * kept))


def inverse_root(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """Return the inverse square root of a covariance (P, P) with a ridge on its diagonal."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors / np.sqrt(values.clip(0) + ridge * values.mean())) @ vectors.T


def best_correlation(one: np.ndarray, other: np.ndarray, concepts: Sequence[str], names: Sequence[str]) -> Correlation:
    """
    Return the correlation of two sides of training, with the ridge and the size of the best recall at 1.

    They are chosen on concepts that are held out, and then all rows are used.
    """
    is_held_out = np.array([split_of(each, {"held out": CHOSEN_BY}, "correlation") != "train" for each in concepts])
    chosen = [name for name, is_out in zip(names, is_held_out, strict=True) if is_out]
    scores = {}
    for ridge, size in product(RIDGES, SIZES):
        fitted = correlate(one[~is_held_out], other[~is_held_out], ridge, size)
        scores[ridge, size] = recall(fitted, (one[is_held_out], other[is_held_out]), chosen)
    return correlate(one, other, *max(scores, key=lambda each: scores[each]))


def recall(fitted: Correlation, sides: tuple[np.ndarray, np.ndarray], names: Sequence[str], query: int = 0) -> float:
    """Return recall at 1 of one side as queries for the other; rows of one name match each other."""
    queries, items = fitted.project(sides[query], query), fitted.project(sides[1 - query], 1 - query)
    labels = np.array(names, dtype=object)
    return recall_at_k(queries @ items.T, 1, labels[:, None] == labels)


class NameFeatures:
    """
    Names as vectors: parts of their words, weighted by how rare they are in training, and reduced.

    Args:
        names: of training.
    """

    def __init__(self, names: Sequence[str]):
        self.parts = TfidfVectorizer(analyzer="char_wb", ngram_range=CHARACTERS, sublinear_tf=True)
        counts = self.parts.fit_transform(names)
        self.reduced = TruncatedSVD(min(TEXT_FEATURES, counts.shape[1] - 1, len(names) - 1), random_state=0)
        self.reduced.fit(counts)

    def __call__(self, names: Sequence[str]) -> np.ndarray:
        return self.reduced.transform(self.parts.transform(names))
