# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Examples by their task, whose name is such as `caption/fr`, by their parts, and by their answers."""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from .chat_row import ChatRow
from .reading import ChatDataset


def task_kind(task: str | None) -> str:
    """Return the part of a task's name before the "/"."""
    return (task or "").split("/")[0]


def is_task_among(task: str | None, names: Collection[str]) -> bool:
    """Return if a task is among `names`, which are names of tasks or of kinds of tasks."""
    return task is not None and (task in names or task_kind(task) in names)


def without_parts(row: ChatRow, kinds: Collection[str]) -> ChatRow:
    """Return the example without the parts of some types."""
    # The time of a video's frame goes with the frame.
    turns = [
        {**turn, "content": [p for p in turn["content"] if p["type"] not in kinds and p.get("of") not in kinds]}
        for turn in row.messages
    ]
    return replace(row, messages=turns)


def few_of_each(dataset: ChatDataset, number: int, seed: int) -> ChatDataset:
    """
    Return at most `number` examples of each answer, drawn by the seed, in the order of the dataset.

    Example:
        >>> words = ChatDataset([{"prompt": word, "completion": kind} for word, kind in (("cat", "a"), ("dog", "a"))])
        >>> len(few_of_each(words, 1, seed=0))
        1
    """
    drawn, kept = Counter[str](), []
    for place in np.random.default_rng(seed).permutation(len(dataset)).tolist():
        answer = dataset[place].answer
        if drawn[answer] < number:
            drawn[answer] += 1
            kept.append(place)
    return ChatDataset([dataset[place] for place in sorted(kept)])
