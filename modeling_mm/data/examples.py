# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Examples by their task, whose name is such as `caption/fr`, and by their parts."""

from collections.abc import Collection
from dataclasses import replace

from .chat_row import ChatRow


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
