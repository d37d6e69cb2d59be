"""Metrics of answers: exact values on answers that can be scored by hand."""

import sys

import pytest

from modeling_mm.evaluation import METRICS, check_metrics, score


@pytest.mark.parametrize(
    "name, answers, truths, expected",
    [
        ("exact_match", ["a cat ", "A cat", "dog"], ["a cat", "a cat", "dog"], 2 / 3),
        ("accuracy", ["animal", "plant"], ["animal", "animal"], 1 / 2),
        ("wer", ["a red cat sat", "one"], ["a red dog", "one two"], 3 / 5),
        ("cer", ["你们", "ab"], ["你好", "ab"], 1 / 4),
        ("bleu", ["the cat sat on the mat"], ["the cat sat on the mat"], 100.0),
        ("bleu", ["no word of it is right"], ["the cat sat on a mat"], 0.0),
        ("chrf", ["a small bird"], ["a small bird"], 100.0),
        ("chrf", ["xyz"], ["abc"], 0.0),
    ],
)
def test_exact_values(name, answers, truths, expected):
    if name in ("wer", "cer", "bleu", "chrf"):
        pytest.importorskip("jiwer" if name in ("wer", "cer") else "sacrebleu")
    assert score(name, answers, truths) == pytest.approx(expected, abs=1e-9)


def test_answers_and_truths_are_not_mixed_up():
    """Words by those of the truth: three missing of four is 0.75, three added to one is 3."""
    pytest.importorskip("jiwer")
    assert score("wer", ["a"], ["a b c d"]) == 0.75
    assert score("wer", ["a b c d"], ["a"]) == 3.0


def test_sentences_of_different_lengths_count_by_their_words():
    pytest.importorskip("jiwer")
    assert score("wer", ["x", "a b c d e f g h i"], ["a", "a b c d e f g h i"]) == pytest.approx(1 / 10)


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"Unknown metric 'exact_mach'. Did you mean 'exact_match'\? Known: exact_match, acc"
    ):
        score("exact_mach", ["a"], ["a"])
    with pytest.raises(ValueError, match=r"Unknown metric 'zzz'\. Known"):
        check_metrics(["wer", "zzz"])
    check_metrics(METRICS)


@pytest.mark.parametrize("answers, truths", [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_as_many_answers_as_truths_and_at_least_one(answers, truths):
    with pytest.raises(ValueError, match=rf"got {len(answers)} answers and {len(truths)} truths"):
        score("exact_match", answers, truths)


@pytest.mark.parametrize("name, module", [("wer", "jiwer"), ("cer", "jiwer"), ("bleu", "sacrebleu")])
def test_a_missing_library_is_named_with_the_extra_that_brings_it(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"'{name}' needs {module}.*pip install modeling_mm\[train\]"):
        score(name, ["a"], ["a"])
    assert score("exact_match", ["a"], ["a"]) == 1.0


def test_f1_is_the_mean_over_classes_of_truths_and_answers():
    """By hand: a has 2 right of 3 given and 2 true, b 0, c is only answered."""
    assert score("f1", ["a", "a", "a", "c"], ["a", "a", "b", "b"]) == pytest.approx((2 * 2 / 5 + 0 + 0) / 3)
    assert score("f1", ["a", "b"], ["a", "b"]) == 1.0
