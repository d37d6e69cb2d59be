# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Metrics of answers. A new metric is one row of `METRICS`."""

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType

from ..utils.spelling import suggestion


def score(name: str, answers: Sequence[str], truths: Sequence[str]) -> float:
    """
    Return one figure for all answers together.

    | name          | meaning                                                                     | range    | better |
    |---------------|-----------------------------------------------------------------------------|----------|--------|
    | `exact_match` | share of answers that equal the truth, except for surrounding white space   | 0 to 1   | high   |
    | `accuracy`    | another name of `exact_match`, for answers that are classes                 | 0 to 1   | high   |
    | `f1`          | F1 of each class, on average over the classes of the truths and the answers | 0 to 1   | high   |
    | `wer`         | wrong, missing and added words, divided by the words of the truths (jiwer)  | 0 up     | low    |
    | `cer`         | the same by characters, as Chinese needs it (jiwer)                         | 0 up     | low    |
    | `spoken_wer`  | `wer` without case and punctuation, which are not audible                   | 0 up     | low    |
    | `last_word`   | share of answers with the truth's last word, such as yes or no after reasons| 0 to 1   | high   |
    | `bleu`        | BLEU of the corpus, tokens as in WMT's 13a (sacrebleu)                      | 0 to 100 | high   |
    | `chrf`        | chrF of the corpus, which suits languages without spaces too (sacrebleu)    | 0 to 100 | high   |

    Case and punctuation count unless the table says otherwise.

    Raises:
        ValueError: if the name is unknown, with the nearest; if there are no answers, or not one for each truth.
        ImportError: if the library that computes the metric is not installed.

    Example:
        >>> score("exact_match", ["a cat", "a dog"], ["a cat", "a bird"])
        0.5
    """
    check_metrics([name])
    if len(answers) != len(truths) or not answers:
        raise ValueError(
            f"{name} compares each answer with its truth and needs at least one, got {len(answers)} answers and "
            f"{len(truths)} truths."
        )
    return float(METRICS[name].compute(list(answers), list(truths)))


def check_metrics(names: Iterable[str]) -> None:
    """Raise a ValueError if a metric is unknown, with the nearest known one."""
    for name in names:
        if name not in METRICS:
            hint = suggestion(str(name), METRICS)
            raise ValueError(f"Unknown metric {name!r}.{hint} Known: {', '.join(METRICS)}.")


def exact_match(answers: list[str], truths: list[str]) -> float:
    equal = (answer.strip() == truth.strip() for answer, truth in zip(answers, truths, strict=True))
    return sum(equal) / len(answers)


def macro_f1(answers: list[str], truths: list[str]) -> float:
    pairs = [(answer.strip(), truth.strip()) for answer, truth in zip(answers, truths, strict=True)]
    right = Counter(truth for answer, truth in pairs if answer == truth)
    given = Counter(answer for answer, _ in pairs) + Counter(truth for _, truth in pairs)
    return sum(2 * right[name] / given[name] for name in given) / len(given)


def word_error_rate(answers: list[str], truths: list[str]) -> float:
    return library("jiwer", "wer").wer(truths, answers)


def character_error_rate(answers: list[str], truths: list[str]) -> float:
    return library("jiwer", "cer").cer(truths, answers)


def spoken_word_error_rate(answers: list[str], truths: list[str]) -> float:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normalize = BasicTextNormalizer()
    pairs = [(normalize(answer), normalize(truth)) for answer, truth in zip(answers, truths, strict=True)]
    spoken = [(answer, truth) for answer, truth in pairs if truth.strip()]
    return word_error_rate([answer for answer, _ in spoken], [truth for _, truth in spoken])


def last_word(answers: list[str], truths: list[str]) -> float:
    def end(text: str) -> str:
        return text.split()[-1] if text.split() else ""

    return exact_match([end(answer) for answer in answers], [end(truth) for truth in truths])


def bleu(answers: list[str], truths: list[str]) -> float:
    return library("sacrebleu", "bleu").corpus_bleu(answers, [truths]).score


def chrf(answers: list[str], truths: list[str]) -> float:
    return library("sacrebleu", "chrf").corpus_chrf(answers, [truths]).score


def library(module: str, metric: str) -> ModuleType:
    """Import a library that only some metrics need."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The metric {metric!r} needs {module}, which is not installed: pip install modeling_mm[train]"
        ) from error


@dataclass(frozen=True)
class Metric:
    """
    A metric of answers.

    Args:
        compute: function of answers and truths.
        is_error: true if a smaller figure is better.
        digits: decimals that are shown.
    """

    compute: Callable[[list[str], list[str]], float]
    is_error: bool = False
    digits: int = 3


METRICS = {
    "exact_match": Metric(exact_match),
    "accuracy": Metric(exact_match),
    "f1": Metric(macro_f1),
    "wer": Metric(word_error_rate, is_error=True),
    "cer": Metric(character_error_rate, is_error=True),
    "spoken_wer": Metric(spoken_word_error_rate, is_error=True),
    "last_word": Metric(last_word),
    "bleu": Metric(bleu, digits=1),
    "chrf": Metric(chrf, digits=1),
}
