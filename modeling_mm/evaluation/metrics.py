# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Metrics of answers. A new metric is one row of `METRICS`."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from ..utils.spelling import suggestion
from .captions import cider
from .libraries import library
from .wording import plain_words, single_spaced, spoken_form


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
    | `rouge1`      | F1 of the words of an answer and its truth, on average (torchmetrics)       | 0 to 1   | high   |
    | `rouge2`      | the same of pairs of words: 0 for texts of one word                         | 0 to 1   | high   |
    | `rougeL`      | the same of the longest common sequence of words                            | 0 to 1   | high   |
    | `cider`       | CIDEr-D of captions; at most 2.5 for captions of one word, 5 for two        | 0 to 10  | high   |

    Any white space separates words: newlines, no-break and ideographic spaces too. Error rates count empty truths and
    empty answers: each word of an answer to an empty truth is an error, and if no truth has a word, the figure is the
    number of such errors. ROUGE and CIDEr compare words in lower case without punctuation, Han characters one by one,
    and are 0 for an empty text. All answers are scored together, so that the size of batches changes nothing.

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


def check_metrics(names: Iterable[str], known: Collection[str] | None = None) -> None:
    """Raise a ValueError if a metric is not one of `known`, by default those of answers, with the nearest one."""
    known = METRICS if known is None else known
    for name in names:
        if name not in known:
            hint = suggestion(str(name), known)
            raise ValueError(f"Unknown metric {name!r}.{hint} Known: {', '.join(known)}.")


def exact_match(answers: list[str], truths: list[str]) -> float:
    equal = (answer.strip() == truth.strip() for answer, truth in zip(answers, truths, strict=True))
    return sum(equal) / len(answers)


def macro_f1(answers: list[str], truths: list[str]) -> float:
    pairs = [(answer.strip(), truth.strip()) for answer, truth in zip(answers, truths, strict=True)]
    right = Counter(truth for answer, truth in pairs if answer == truth)
    given = Counter(answer for answer, _ in pairs) + Counter(truth for _, truth in pairs)
    return sum(2 * right[name] / given[name] for name in given) / len(given)


def word_error_rate(answers: list[str], truths: list[str]) -> float:
    return library("jiwer", "wer").wer(*map(all_single_spaced, (truths, answers)))


def character_error_rate(answers: list[str], truths: list[str]) -> float:
    return library("jiwer", "cer").cer(*map(all_single_spaced, (truths, answers)))


def all_single_spaced(texts: Iterable[str]) -> list[str]:
    return [single_spaced(text) for text in texts]  # jiwer separates words at spaces alone


def spoken_word_error_rate(answers: list[str], truths: list[str]) -> float:
    return library("jiwer", "spoken_wer").wer([spoken_form(text) for text in truths], list(map(spoken_form, answers)))


def last_word(answers: list[str], truths: list[str]) -> float:
    def end(text: str) -> str:
        return text.split()[-1] if text.split() else ""

    return exact_match([end(answer) for answer in answers], [end(truth) for truth in truths])


def bleu(answers: list[str], truths: list[str]) -> float:
    return library("sacrebleu", "bleu").corpus_bleu(answers, [truths]).score


def chrf(answers: list[str], truths: list[str]) -> float:
    return library("sacrebleu", "chrf").corpus_chrf(answers, [truths]).score


def rouge(variant: str) -> Callable[[list[str], list[str]], float]:
    """Return the metric of a variant of ROUGE: `rouge1`, `rouge2` or `rougeL`."""

    def compute(answers: list[str], truths: list[str]) -> float:
        text = library("torchmetrics.functional.text.rouge", variant)
        # Its own normalizer keeps the letters a to z and nothing else.
        options = {"rouge_keys": variant, "normalizer": str, "tokenizer": plain_words}
        return float(text.rouge_score(answers, truths, **options)[f"{variant}_fmeasure"])

    return compute


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
    "rouge1": Metric(rouge("rouge1")),
    "rouge2": Metric(rouge("rouge2")),
    "rougeL": Metric(rouge("rougeL")),
    "cider": Metric(cider),
}
