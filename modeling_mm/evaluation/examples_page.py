# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Page of good and bad answers with their media: one HTML file that needs no network."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ..data.chat_row import ChatRow, Message, media_parts, to_row, turn_text
from .figures import HEADER, Figure, figure_cells
from .inline_media import InlineMedia, inline_media
from .metrics import METRICS, score

TEMPLATE = Path(__file__).with_name("examples.html.jinja")
# Metrics that grade a single answer, the finest first; the others count right answers, or need a whole corpus.
GRADING = ("spoken_wer", "wer", "cer", "chrf", "rougeL", "last_word")


@dataclass(frozen=True)
class Turn:
    """Turn of a prompt on the page."""

    role: str
    text: str
    media: Sequence[InlineMedia]


@dataclass(frozen=True)
class Example:
    """Answered question on the page."""

    id: str
    turns: Sequence[Turn]
    answer: str
    truth: str
    text_only: str | None
    value: str
    is_right: bool


def examples_page(
    title: str,
    figures: Sequence[Figure],
    datasets: Mapping[str, Sequence[Any]],
    records: Sequence[Mapping[str, str]],
    count: int = 3,
) -> str:
    """
    Return a page with the figures of test sets and, of each task, the best and the worst answers with their media.

    Images are inside the page as JPEG of at most 256 pixels a side, audio as FLAC of at most 30 seconds, videos as 8
    frames and their audio. Texts are
    escaped, the page has no script, and its policy forbids every request, so that a file of an unknown source can
    be opened safely. It follows the light or dark scheme of the browser.

    Args:
        figures, records: results of [`evaluate`] on `datasets`.
        datasets: chats by the name of the test set, in the order that was evaluated.
        count: largest number of good and of bad answers of each task. 0 leaves the examples out.

    Raises:
        ValueError: if the records are not those of the datasets, or `count` is negative.

    Example:
        >>> figures, records = evaluate(model, processor, {"test": rows}, majority_answers(rows))
        >>> Path("examples.html").write_text(examples_page("mine", figures, {"test": rows}, records), encoding="utf-8")
    """
    if count < 0:
        raise ValueError(f"count is the number of good and of bad answers of each task, got {count}.")
    sets = []
    for name, dataset in datasets.items():
        rows = [to_row(item) for item in dataset]
        found = [record for record in records if record["dataset"] == name]
        if [row.answer for row in rows] != [record["truth"] for record in found]:
            raise ValueError(
                f"The {len(found)} records of {name} are not those of its {len(rows)} examples, or have other truths. "
                "Pass the datasets that were evaluated."
            )
        of_set = [figure for figure in figures if figure.dataset == name]
        tasks = [task_section(task, of_set, rows, found, count) for task in dict.fromkeys(f.task for f in of_set)]
        sets.append(
            {"name": name, "lines": [figure_cells(figure) for figure in of_set], "tasks": tasks if count else []}
        )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, header=HEADER, sets=sets)


def task_section(
    task: str, figures: Sequence[Figure], rows: Sequence[ChatRow], records: Sequence[Mapping[str, str]], count: int
) -> dict[str, Any]:
    """Return the name, metric and examples of a task."""
    metric = grading_metric([figure.metric for figure in figures if figure.task == task])
    numbers = [number for number, record in enumerate(records) if record["task"] == task]
    values = {i: score(metric, [records[i]["answer"]], [records[i]["truth"]]) for i in numbers}
    good, bad = choose(metric, values, {i: records[i]["id"] for i in numbers}, count)
    has_text_only = any(figure.text_only is not None for figure in figures)
    sides = [[example(rows[i], records[i], metric, values[i], has_text_only) for i in side] for side in (good, bad)]
    return {"name": task, "metric": metric, "samples": len(numbers), "good": sides[0], "bad": sides[1]}


def grading_metric(metrics: Sequence[str]) -> str:
    """Return the metric by which the answers of a task are ordered."""
    return next((name for name in GRADING if name in metrics), metrics[0])


def choose(
    metric: str, values: Mapping[int, float], names: Mapping[int, str], count: int
) -> tuple[list[int], list[int]]:
    """
    Return the numbers of the best and of the worst answers, at most `count` each.

    An answer without any merit is not good, and a perfect one is not bad.
    """
    sign = -1 if METRICS[metric].is_error else 1
    merit = {number: sign * value for number, value in values.items()}
    best, none = (0.0, -1.0) if sign < 0 else (100.0 if metric == "chrf" else 1.0, 0.0)
    order = sorted(merit, key=lambda number: (-merit[number], zlib.crc32(names[number].encode()), number))
    good = [number for number in order if merit[number] > none][:count]
    rest = [number for number in reversed(order) if merit[number] < best - 1e-6 and number not in good]
    return good, rest[:count]


def media_of(turn: Message) -> list[InlineMedia]:
    return [item for part in media_parts([turn]) for item in inline_media(part)]


def example(row: ChatRow, record: Mapping[str, str], metric: str, value: float, has_text_only: bool) -> Example:
    """Return what the page shows of a question and its answer."""
    turns = [Turn(turn["role"], turn_text(turn), media_of(turn)) for turn in row.prompt]
    return Example(
        id=record["id"],
        turns=turns,
        answer=record["answer"],
        truth=record["truth"],
        text_only=record["text_only"] if has_text_only else None,
        value=f"{value:.{METRICS[metric].digits}f}",
        is_right=record["answer"].strip() == record["truth"].strip(),
    )
