# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Metrics of scores instead of answers: ranking by a classifier, and verification (is this the same speaker)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .libraries import library

# Shape legend: N examples or trials, C classes, P points of a curve.


def auroc(scores: Any, is_positive: Any) -> float:
    """
    Return the area under the ROC curve: the chance that a positive has a higher score than a negative.

    Equal scores count half, so that constant scores give 0.5.

    Args:
        scores: (N,) of any range, higher for positives.
        is_positive: (N,) booleans, or 0 and 1.

    Raises:
        ValueError: unless there are positives and negatives, and every score is a number.
        ImportError: if torchmetrics is not installed.

    Example:
        >>> auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
        0.75
    """
    false_accepts, true_accepts, _ = roc_curve(scores, is_positive, "auroc")
    return float(np.trapezoid(true_accepts, false_accepts))


def equal_error_rate(scores: Any, is_same: Any) -> float:
    """
    Return the rate of errors of verification where false accepts are as frequent as false rejects.

    A trial is accepted if its score reaches a threshold. Between two thresholds the curve is a straight line. Chance
    and constant scores have 0.5, perfect scores 0. Arguments and errors are those of [`auroc`].

    Example:
        >>> equal_error_rate([0.9, 0.6, 0.7, 0.1], [True, True, False, False])
        0.5
    """
    false_accepts, true_accepts, _ = roc_curve(scores, is_same, "eer")
    gap = false_accepts + true_accepts - 1  # false accepts minus false rejects: from -1 up to 1
    after = int(np.argmax(gap >= 0))
    before = after - 1
    share = -gap[before] / (gap[after] - gap[before])
    return float(false_accepts[before] + share * (false_accepts[after] - false_accepts[before]))


def equal_error_threshold(scores: Any, is_same: Any) -> float:
    """
    Return the score from which on trials are accepted, so that both kinds of errors are as equal as they can be.

    Choose it on other trials than those that are then measured. Arguments and errors are those of [`auroc`].

    Example:
        >>> equal_error_threshold([0.9, 0.8, 0.3, 0.1], [True, True, False, False])
        0.8
    """
    false_accepts, true_accepts, thresholds = roc_curve(scores, is_same, "eer")
    gap = np.abs(false_accepts + true_accepts - 1)[1:]  # the first point accepts nothing
    return float(thresholds[1:][np.argmin(gap)])


def class_auroc(scores: np.ndarray, truths: Sequence[int]) -> float:
    """
    Return the mean over classes of the AUROC of each against all others.

    Args:
        scores: (N, C).
        truths: number of the right class of each example.

    Raises:
        ValueError: if all truths are one class. Classes without an example are left out of the mean.
    """
    right = one_hot(truths, scores.shape[1])
    present = np.flatnonzero(right.any(0) & ~right.all(0))
    if not present.size:
        raise ValueError(f"auroc ranks examples of several classes, but all {len(truths)} examples are of one.")
    return float(np.mean([auroc(scores[:, number], right[:, number]) for number in present]))


def class_equal_error_rate(scores: np.ndarray, truths: Sequence[int]) -> float:
    """
    Return the equal error rate of all claims "this example is of that class", one threshold for all classes.

    Each example is one true claim and C - 1 false ones. Arguments are those of [`class_auroc`].

    Raises:
        ValueError: if there is only one class.
    """
    return equal_error_rate(scores.reshape(-1), one_hot(truths, scores.shape[1]).reshape(-1))


def one_hot(truths: Sequence[int], classes: int) -> np.ndarray:
    """Return booleans of shape (N, C), true for the right class."""
    return np.asarray(truths)[:, None] == np.arange(classes)


def roc_curve(scores: Any, is_positive: Any, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rates of false and of true accepts, from none to all, and the thresholds, (P,) each."""
    values, positive = checked_trials(scores, is_positive, metric)
    # torchmetrics takes scores outside 0 to 1 for logits, and its sigmoid makes large ones equal.
    levels, places = np.unique(values, return_inverse=True)
    roc = library("torchmetrics.functional.classification", metric).binary_roc
    curve = roc(torch.from_numpy(places / len(levels)), torch.from_numpy(positive.astype(np.int64)))
    false_accepts, true_accepts, thresholds = (part.double().numpy() for part in curve)
    places = np.rint(thresholds[1:] * len(levels)).astype(np.int64)
    return false_accepts, true_accepts, np.concatenate([[np.inf], levels[places]])


def checked_trials(scores: Any, is_positive: Any, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and truths as arrays of one length, or raise a ValueError."""
    values, positive = (np.asarray(each, np.float64) for each in (scores, is_positive))
    if values.ndim != 1 or values.shape != positive.shape:
        raise ValueError(
            f"{metric} needs one score and one truth for each trial, got {values.shape}, {positive.shape}."
        )
    if not np.isfinite(values).all():
        number = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"{metric}: the score of trial {number} is {values[number]}.")
    if not np.isin(positive, (0, 1)).all():
        raise ValueError(
            f"{metric}: truths are True or False (1 or 0), got {positive[~np.isin(positive, (0, 1))][0]}."
        )
    if len(set(positive)) != 2:
        kind = "positive" if positive.any() else "negative"
        raise ValueError(f"{metric} needs positive and negative trials, but all {len(values)} are {kind}.")
    return values, positive


@dataclass(frozen=True)
class ClassMetric:
    """
    A metric of a classifier's scores.

    Args:
        compute: function of scores (N, C) and the numbers of the right classes.
        is_error: true if a smaller figure is better.
    """

    compute: Callable[[np.ndarray, Sequence[int]], float]
    is_error: bool = False


CLASS_METRICS = {
    "auroc": ClassMetric(class_auroc),
    "eer": ClassMetric(class_equal_error_rate, is_error=True),
}
