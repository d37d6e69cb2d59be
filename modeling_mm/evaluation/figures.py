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

from ..data.chat_row import ChatRow, to_row
from ..data.examples import task_kind, without_parts
from ..modalities import MODALITIES
from ..utils.tables import markdown_table
from .answering import Inputs, generate_answers
from .classifying import check_truths, is_classifier, predict_labels
from .metrics import METRICS, score

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

    Args:
        datasets: chats by the name of the test set.
        majority: most frequent answer in training by task, see [`majority_answers`].
        prompt_batch: see [`generate_answers`].
        with_text_only: answer each question a second time without its media.
        task_metrics: metrics beside `exact_match`, or of a classifier `accuracy` and `f1`, by the part of a task's
            name before the "/".

    Returns:
        The figures, and all answers beside their truth (`dataset`, `task`, `id`, `answer`, `text_only`, `truth`).

    Raises:
        ValueError: for a test set without examples, and for one whose answers a classifier has no label for.
    """
    figures, records = [], []
    metrics = ("accuracy", "f1") if is_classifier(model) else ("exact_match",)
    for name, dataset in datasets.items():
        rows = [to_row(item) for item in dataset]
        if not rows:
            raise ValueError(f"{name} has no examples, so that there is nothing to measure.")
        title = name if progress else None
        if is_classifier(model):
            check_truths(model, rows, name)
            answers = predict_labels(model, processor, rows, batch_size, prompt_batch, title)
        else:
            answers = generate_answers(model, processor, rows, batch_size, max_new_tokens, prompt_batch, title)
        text_only = None
        if with_text_only:
            prompts = [without_parts(row, MODALITIES).prompt for row in rows]
            distinct = {str(prompt): prompt for prompt in prompts}  # without media many questions are the same
            title = f"{name}, text only" if progress else None
            asked = list(distinct.values())
            if is_classifier(model):
                found = predict_labels(model, processor, asked, batch_size, progress=title)
            else:
                found = generate_answers(model, processor, asked, batch_size, max_new_tokens, progress=title)
            answer_to = dict(zip(distinct, found, strict=True))
            text_only = [answer_to[str(prompt)] for prompt in prompts]
        figures += score_rows(name, rows, answers, text_only, majority, task_metrics or {}, metrics)
        for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            record = {"dataset": name, "task": row.task or "", "id": row.id or str(number), "answer": answer}
            records.append(record | {"text_only": text_only[number] if text_only else "", "truth": row.answer})
    return figures, records


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
    answers: Sequence[str],
    text_only: Sequence[str] | None,
    majority: Mapping[str, str],
    task_metrics: Mapping[str, Sequence[str]],
    metrics: Sequence[str] = ("exact_match",),
) -> list[Figure]:
    """Return the figures of one test set, its tasks in alphabetical order."""
    by_task: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_task.setdefault(row.task or "", []).append(number)
    figures = []
    for task, numbers in sorted(by_task.items()):
        truths = [rows[i].answer for i in numbers]
        usual = [majority.get(task, "")] * len(numbers)
        for metric in dict.fromkeys((*metrics, *task_metrics.get(task_kind(task), ()))):
            figures.append(
                Figure(
                    dataset,
                    task,
                    metric,
                    score(metric, [answers[i] for i in numbers], truths),
                    score(metric, usual, truths),
                    None if text_only is None else score(metric, [text_only[i] for i in numbers], truths),
                    len(numbers),
                )
            )
    return figures


def figures_markdown(figures: Sequence[Figure]) -> str:
    """Return a table for each test set, for a model card."""
    tables = []
    for name in dict.fromkeys(figure.dataset for figure in figures):
        rows = []
        for figure in (figure for figure in figures if figure.dataset == name):
            values = [
                "" if value is None else f"{value:.{METRICS[figure.metric].digits}f}"
                for value in (figure.model, figure.majority, figure.text_only)
            ]
            rows.append((figure.task, figure.metric, *values, str(figure.samples)))
        tables.append(f"**{name[:1].upper()}{name[1:]}**\n\n" + markdown_table(HEADER, rows))
    return "\n\n".join(tables)
