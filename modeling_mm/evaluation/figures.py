# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Figures of a model on test sets, task by task.

Each figure stands beside two that it must beat: that of the most frequent answer, and that of the model's answers
without the media.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.chat_row import ChatRow, media_kinds, to_row
from ..data.examples import task_kind, without_parts
from ..utils.tables import markdown_table
from .answering import Inputs, generate_answers
from .classifying import check_single_label, check_truths, classify, is_classifier, labels_of
from .metrics import METRICS, check_metrics, score
from .scored import CLASS_METRICS

# Shape legend: N questions, C labels.

HEADER = ("task", "metric", "model", "majority", "text only", "questions")


@dataclass(frozen=True)
class Figure:
    """
    One metric of one task in one test set.

    Args:
        model: figure of the model's answers.
        majority: figure of the most frequent answer in training, given to every question.
        text_only: figure of the model's answers without the media, or None.
        samples: number of questions.
    """

    dataset: str
    task: str
    metric: str
    model: float
    majority: float
    text_only: float | None
    samples: int


@dataclass(frozen=True)
class Answers:
    """Answers to questions; of a classifier its labels, with its scores (N, C)."""

    texts: Sequence[str]
    scores: np.ndarray | None = None

    def at(self, numbers: Sequence[int]) -> "Answers":
        """Return the answers to some of the questions."""
        return Answers([self.texts[i] for i in numbers], None if self.scores is None else self.scores[list(numbers)])


def evaluate(
    model: Any,
    processor: Any,
    datasets: Mapping[str, Iterable[Any]],
    majority: Mapping[str, str],
    prompt_batch: Callable[[Sequence[ChatRow]], Inputs] | None = None,
    with_text_only: bool = True,
    batch_size: int = 64,
    max_new_tokens: int = 48,
    progress: bool = True,
    task_metrics: Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[Figure], list[dict[str, str]]]:
    """
    Answer the questions of test sets and score the answers; a classifier's answers are its labels.

    All answers of a task are scored together, so that the size of batches changes no figure.

    Args:
        datasets: chats by the name of the test set.
        majority: most frequent answer in training by task, see [`majority_answers`].
        prompt_batch: see [`generate_answers`].
        with_text_only: answer each question a second time without its media.
        task_metrics: metrics beside `exact_match`, or of a classifier beside `accuracy`, `f1` and `auroc`, by the part
            of a task's name before the "/". Classifiers also have `eer`. `auroc` is left out of a task whose truths
            are all one label, where it is undefined.

    Returns:
        The figures, and all answers beside their truth (`dataset`, `task`, `id`, `answer`, `text_only`, `truth`).

    Raises:
        ValueError: for a test set without examples, for one whose answers a classifier has no label for, and for an
            unknown metric, or one of classifiers for a model that generates.
        ImportError: if the library of a metric is not installed.
    """
    figures, records = [], []
    extra = dict(task_metrics or {})
    labels = labels_of(model) if is_classifier(model) else None
    check_metrics((name for names in extra.values() for name in names), METRICS | (CLASS_METRICS if labels else {}))
    if labels:
        check_single_label(model)
    for name, dataset in datasets.items():
        rows = [to_row(item) for item in dataset]
        if not rows:
            raise ValueError(f"{name} has no examples, so that there is nothing to measure.")
        if labels:
            check_truths(model, rows, name)
        title = name if progress else None
        answers = answer(model, processor, rows, batch_size, max_new_tokens, prompt_batch, title)
        text_only = None
        if with_text_only:
            prompts = [without_parts(row, media_kinds()).prompt for row in rows]
            distinct = {str(prompt): prompt for prompt in prompts}  # without media many questions are the same
            place = {key: number for number, key in enumerate(distinct)}
            title = f"{name}, text only" if progress else None
            found = answer(model, processor, list(distinct.values()), batch_size, max_new_tokens, None, title)
            text_only = found.at([place[str(prompt)] for prompt in prompts])
        figures += score_rows(name, rows, answers, text_only, majority, extra, labels)
        for number, (row, text) in enumerate(zip(rows, answers.texts, strict=True)):
            record = {"dataset": name, "task": row.task or "", "id": row.id or str(number), "answer": text}
            records.append(record | {"text_only": text_only.texts[number] if text_only else "", "truth": row.answer})
    return figures, records


def answer(
    model: Any,
    processor: Any,
    prompts: Sequence[Any],
    batch_size: int,
    max_new_tokens: int,
    prompt_batch: Callable[[Sequence[Any]], Inputs] | None,
    title: str | None,
) -> Answers:
    """Return the generated answers to prompts, or a classifier's likeliest labels with all its scores."""
    if is_classifier(model):
        scores = classify(model, processor, prompts, batch_size, prompt_batch, title)
        labels = labels_of(model)
        return Answers([labels[number] for number in scores.argmax(-1)], scores)
    return Answers(generate_answers(model, processor, prompts, batch_size, max_new_tokens, prompt_batch, title))


def majority_answers(dataset: Iterable[Any]) -> dict[str, str]:
    """Return the most frequent answer of each task, the first in alphabetical order if several are."""
    counts: dict[str, Counter[str]] = {}
    for item in dataset:
        row = to_row(item)
        counts.setdefault(row.task or "", Counter())[row.answer] += 1
    return {task: min(each.items(), key=lambda pair: (-pair[1], pair[0]))[0] for task, each in counts.items()}


def score_rows(
    dataset: str,
    rows: Sequence[ChatRow],
    answers: Answers,
    text_only: Answers | None,
    majority: Mapping[str, str],
    task_metrics: Mapping[str, Sequence[str]],
    labels: Sequence[str] | None = None,
) -> list[Figure]:
    """Return the figures of one test set, its tasks in alphabetical order. `labels` are those of a classifier."""
    by_task: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_task.setdefault(row.task or "", []).append(number)
    figures = []
    for task, numbers in sorted(by_task.items()):
        truths = [rows[i].answer for i in numbers]
        usual = constant_answers(majority.get(task, ""), len(numbers), labels)
        found, blind = answers.at(numbers), text_only and text_only.at(numbers)
        for metric in metrics_of(task, truths, task_metrics, labels):
            figures.append(
                Figure(
                    dataset,
                    task,
                    metric,
                    measure(metric, found, truths, labels),
                    measure(metric, usual, truths, labels),
                    None if blind is None else measure(metric, blind, truths, labels),
                    len(numbers),
                )
            )
    return figures


def metrics_of(
    task: str, truths: Sequence[str], task_metrics: Mapping[str, Sequence[str]], labels: Sequence[str] | None
) -> list[str]:
    """Return the names of a task's metrics, each once, without one that is undefined for its truths."""
    usual = ("accuracy", "f1", "auroc") if labels else ("exact_match",)
    undefined = {"auroc"} if len(set(truths)) == 1 else set()
    return [name for name in dict.fromkeys((*usual, *task_metrics.get(task_kind(task), ()))) if name not in undefined]


def constant_answers(text: str, count: int, labels: Sequence[str] | None) -> Answers:
    """Return the same answer to every question; of a classifier with all the score on that label."""
    scores = None if labels is None else np.tile([float(label == text) for label in labels], (count, 1))
    return Answers([text] * count, scores)


def measure(metric: str, answers: Answers, truths: Sequence[str], labels: Sequence[str] | None) -> float:
    """Return one figure of all answers together."""
    if metric in METRICS:
        return score(metric, answers.texts, truths)
    assert labels is not None and answers.scores is not None, "metrics were checked before"
    return CLASS_METRICS[metric].compute(answers.scores, [labels.index(truth) for truth in truths])


def figure_cells(figure: Figure) -> tuple[str, ...]:
    """Return a figure as the cells of a row of a table, see `HEADER`. Figures of other metrics have 3 decimals."""
    digits = METRICS[figure.metric].digits if figure.metric in METRICS else 3
    values = (figure.model, figure.majority, figure.text_only)
    shown = ("" if value is None else f"{value:.{digits}f}" for value in values)
    return figure.task, figure.metric, *shown, str(figure.samples)


def figures_markdown(figures: Sequence[Figure]) -> str:
    """Return a table for each test set, for a model card."""
    tables = []
    for name in dict.fromkeys(figure.dataset for figure in figures):
        rows = [figure_cells(figure) for figure in figures if figure.dataset == name]
        tables.append(f"**{name[:1].upper()}{name[1:]}**\n\n" + markdown_table(HEADER, rows))
    return "\n\n".join(tables)
