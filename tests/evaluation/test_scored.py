"""Metrics of scores: values by hand, every order, every range of scores."""

import sys

import numpy as np
import pytest
import torch

from modeling_mm.evaluation import (
    auroc,
    class_auroc,
    class_equal_error_rate,
    equal_error_rate,
    equal_error_threshold,
)

pytest.importorskip("torchmetrics")

SCORES, SAME = [0.9, 0.8, 0.7, 0.6, 0.55, 0.3, 0.2], [1, 1, 0, 1, 0, 0, 0]


def test_auroc_counts_the_pairs_in_order():
    """Of 3 x 4 pairs one is in the wrong order; a tie is half a pair."""
    assert auroc(SCORES, SAME) == pytest.approx(11 / 12, abs=1e-6)
    assert auroc([1, 1, 0], [1, 0, 0]) == pytest.approx(3 / 4, abs=1e-6)
    assert auroc([3.0] * 5, [1, 0, 0, 1, 0]) == pytest.approx(0.5, abs=1e-6)


def test_equal_errors_by_hand():
    """From 0.6 on: 1 of 4 false accepts and 0 of 3 false rejects; from 0.7 on: 1 of 4 and 1 of 3; in between 1/4."""
    assert equal_error_rate(SCORES, SAME) == pytest.approx(1 / 4, abs=1e-6)
    assert equal_error_threshold(SCORES, SAME) == 0.7
    assert equal_error_rate([0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0]) == pytest.approx(0, abs=1e-6)
    assert equal_error_threshold([0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0]) == 0.8
    assert equal_error_rate([0.9, 0.8, 0.3, 0.1], [0, 0, 1, 1]) == pytest.approx(1, abs=1e-6)
    assert equal_error_rate([0.0] * 6, [1, 0, 0, 0, 0, 0]) == pytest.approx(0.5, abs=1e-6)
    tied = equal_error_rate([2, 1, 1, 1, 0], [1, 1, 0, 0, 0])  # at the tie from (0, 1/2) to (2/3, 1)
    assert tied == pytest.approx(2 / 7, abs=1e-6)


def test_the_threshold_has_the_rates_that_are_promised():
    draws = np.random.default_rng(0)
    same = draws.random(4000) < 0.3
    scores = draws.normal(size=4000) + 1.5 * same
    threshold, rate = equal_error_threshold(scores, same), equal_error_rate(scores, same)
    assert np.mean(scores[~same] >= threshold) == pytest.approx(rate, abs=0.002)
    assert np.mean(scores[same] < threshold) == pytest.approx(rate, abs=0.002)
    assert rate == pytest.approx(0.2266, abs=0.02), "half a distance of 1.5 beyond the middle of a bell curve"


@pytest.mark.parametrize("scale, shift", [(1000, 0), (1e-9, 0), (1, -50), (1e4, 1e4)])
def test_only_the_order_of_scores_counts(scale, shift):
    """Also outside 0 to 1, where torchmetrics would take them for logits and make them equal."""
    moved = np.array(SCORES) * scale + shift
    assert auroc(moved, SAME) == pytest.approx(auroc(SCORES, SAME))
    assert equal_error_rate(moved, SAME) == pytest.approx(equal_error_rate(SCORES, SAME))
    assert equal_error_threshold(moved, SAME) == moved[2]
    order = np.random.default_rng(1).permutation(len(SCORES))
    assert equal_error_rate(moved[order], np.array(SAME)[order]) == equal_error_rate(moved, SAME)


def test_values_of_torchmetrics():
    theirs = pytest.importorskip("torchmetrics.functional.classification")
    draws = np.random.default_rng(2)
    scores, same = draws.integers(0, 40, 300) / 40, draws.random(300) < 0.4
    pair = torch.tensor(scores), torch.tensor(same.astype(int))
    assert auroc(scores, same) == pytest.approx(float(theirs.binary_auroc(*pair)), abs=1e-6)
    if hasattr(theirs, "binary_eer"):  # from 1.7 on; that of the nearest threshold, without a line between two
        assert equal_error_rate(scores, same) == pytest.approx(float(theirs.binary_eer(*pair)), abs=0.02)
    scores = draws.dirichlet(np.ones(4), 60)
    truths = draws.integers(0, 4, 60)
    value = theirs.multiclass_auroc(torch.tensor(scores), torch.tensor(truths), num_classes=4, average="macro")
    assert class_auroc(scores, truths) == pytest.approx(float(value), abs=1e-6)


def test_classes_without_an_example_are_left_out_of_the_mean():
    scores = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.6, 0.3, 0.1]])
    assert class_auroc(scores, [0, 1, 1]) == pytest.approx(class_auroc(scores[:, :2], [0, 1, 1]))
    assert class_auroc(scores, [0, 1, 1]) == pytest.approx(1.0)


def test_claims_of_all_classes_share_a_threshold():
    """True claims have 0.7, 0.6 and 0.3; false ones 0.3, 0.4, 0.7: from 0.4 on one of three is wrong each way."""
    scores = np.array([[0.7, 0.3], [0.4, 0.6], [0.7, 0.3]])
    assert class_equal_error_rate(scores, [0, 1, 1]) == pytest.approx(1 / 3, abs=1e-6)


@pytest.mark.parametrize("metric", [auroc, equal_error_rate, equal_error_threshold])
@pytest.mark.parametrize(
    "scores, truths, message",
    [
        ([0.1, 0.2], [1, 1], "needs positive and negative trials, but all 2 are positive"),
        ([0.1, 0.2], [0, 0], "but all 2 are negative"),
        ([], [], "but all 0 are negative"),
        ([0.1, 0.2], [1], r"one score and one truth for each trial, got \(2,\), \(1,\)"),
        ([[0.1], [0.2]], [[1], [0]], "one score and one truth"),
        ([0.1, np.nan], [1, 0], "the score of trial 1 is nan"),
        ([0.1, 0.2], [2, 0], r"truths are True or False \(1 or 0\), got 2.0"),
    ],
)
def test_what_has_no_curve_is_refused(metric, scores, truths, message):
    with pytest.raises(ValueError, match=message):
        metric(scores, truths)


def test_one_class_has_no_ranking():
    with pytest.raises(ValueError, match="auroc ranks examples of several classes, but all 2 examples are of one"):
        class_auroc(np.array([[0.2, 0.8], [0.4, 0.6]]), [1, 1])


def test_the_missing_library_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchmetrics"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"'auroc' needs torchmetrics.*pip install modeling_mm\[train\]"):
        auroc(SCORES, SAME)
