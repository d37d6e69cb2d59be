# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Held-out figures of a model, task by task, beside what they must be compared with: the majority's answer, and the
model's own answers when the media are taken away.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from ..data.chat_row import ChatRow, Message, to_row
from ..utils.tables import markdown_table
from .metrics import answer_batch, prompt_inputs, score

# What is said of a task beside exact_match, by what stands before the "/" of its name.
MORE_METRICS = {
    "transcribe": ("spoken_wer",),
    "sentence": ("spoken_wer",),
    "heard": ("cer",),
    "heard-human": ("cer",),
    "match": ("last_word",),
    "match-human": ("last_word",),
    "translate": ("chrf",),
}


HEADER = ("task", "metric", "model", "majority", "text only", "questions")


@dataclass(frozen=True)
class Figure:
    """
    One metric of one task in one held-out set.

    Args:
        model: of the model's answers
        majority: of the answer that is most frequent in training, given to every question
        text_only: of the model's answers without the media; None where that was not tried
        samples: how many questions
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
    prompt_batch: Any = None,
    with_text_only: bool = True,
    batch_size: int = 64,
    max_new_tokens: int = 48,
    progress: bool = True,
) -> tuple[list[Figure], list[dict[str, str]]]:
    """
    Answers held-out questions and scores the answers.

    Args:
        datasets: chats by the name of the held-out set
        majority: for each task the most frequent answer in training, see `majority_answers`
        prompt_batch: chat rows -> what `generate` takes, such as `CachedCollator.prompt_batch`; the processor's own
            way by default
        with_text_only: whether the questions are asked a second time without their media

    Returns:
        the figures, and every answer beside its truth (`dataset`, `task`, `id`, `answer`, `text_only`, `truth`).
    """
    figures, records = [], []
    for name, dataset in datasets.items():
        rows = [to_row(item) for item in dataset]
        options = (batch_size, max_new_tokens, progress)
        answers = answer_rows(model, processor, rows, prompt_batch, name, *options)
        blind = None
        if with_text_only:
            silent = [without_media(row) for row in rows]
            distinct = {str(row.prompt): row for row in silent}  # without media many questions are the same one
            said = answer_rows(model, processor, list(distinct.values()), None, f"{name}, text only", *options)
            answer_to = dict(zip(distinct, said, strict=True))
            blind = [answer_to[str(row.prompt)] for row in silent]
        figures += score_rows(name, rows, answers, blind, majority)
        for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            record = {"dataset": name, "task": row.task or "", "id": row.id or str(number), "answer": answer}
            records.append(record | {"text_only": blind[number] if blind else "", "truth": row.answer})
    return figures, records


def majority_answers(dataset: Iterable[Any]) -> dict[str, str]:
    """The most frequent answer of each task; of equally frequent ones the first in alphabetical order."""
    counts: dict[str, Counter] = {}
    for item in dataset:
        row = to_row(item)
        counts.setdefault(row.task or "", Counter())[row.answer] += 1
    return {task: min(each.items(), key=lambda pair: (-pair[1], pair[0]))[0] for task, each in counts.items()}


def answer_rows(
    model: Any,
    processor: Any,
    rows: Sequence[ChatRow],
    prompt_batch: Any,
    name: str,
    batch_size: int,
    max_new_tokens: int,
    progress: bool,
) -> list[str]:
    """Answers to the rows' prompts in their order; rows of like length go together, so that little is padding."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: (rows[i].task or "", len(str(rows[i].prompt[-1]))))
    answers = [""] * len(rows)
    with tqdm(total=len(rows), desc=name, disable=not progress) as bar:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            chats = [rows[i] for i in batch]
            if prompt_batch is None:
                inputs = prompt_inputs(processor, [row.prompt for row in chats])
            else:
                inputs = prompt_batch(chats)
            for i, answer in zip(batch, answer_batch(model, processor, inputs, max_new_tokens), strict=True):
                answers[i] = answer
            bar.update(len(batch))
    return answers


def without_media(row: ChatRow) -> ChatRow:
    """The row with its text alone."""

    def text_of(turn: Message) -> Message:
        return {**turn, "content": [part for part in turn["content"] if part["type"] == "text"]}

    return replace(row, messages=[text_of(turn) for turn in row.messages])


def score_rows(
    dataset: str,
    rows: Sequence[ChatRow],
    answers: Sequence[str],
    blind: Sequence[str] | None,
    majority: Mapping[str, str],
) -> list[Figure]:
    """The figures of one held-out set, its tasks in alphabetical order."""
    by_task: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_task.setdefault(row.task or "", []).append(number)
    figures = []
    for task, numbers in sorted(by_task.items()):
        truths = [rows[i].answer for i in numbers]
        usual = [majority.get(task, "")] * len(numbers)
        for metric in ("exact_match", *MORE_METRICS.get(task.split("/")[0], ())):
            figures.append(
                Figure(
                    dataset,
                    task,
                    metric,
                    score(metric, [answers[i] for i in numbers], truths),
                    score(metric, usual, truths),
                    None if blind is None else score(metric, [blind[i] for i in numbers], truths),
                    len(numbers),
                )
            )
    return figures


def figures_markdown(figures: Sequence[Figure]) -> str:
    """A table a held-out set, for a model card."""
    parts = []
    for name in dict.fromkeys(figure.dataset for figure in figures):
        rows = []
        for figure in (figure for figure in figures if figure.dataset == name):
            blind = "" if figure.text_only is None else number_text(figure.metric, figure.text_only)
            values = number_text(figure.metric, figure.model), number_text(figure.metric, figure.majority), blind
            rows.append((figure.task, figure.metric, *values, str(figure.samples)))
        parts.append(f"**{name[:1].upper()}{name[1:]}**\n\n" + markdown_table(HEADER, rows))
    return "\n\n".join(parts)


def number_text(metric: str, value: float) -> str:
    return f"{value:.1f}" if metric in ("bleu", "chrf") else f"{value:.3f}"
