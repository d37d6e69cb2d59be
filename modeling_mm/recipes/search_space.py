# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The space of a hyperparameter search: for each dotted key of a recipe a list of choices, or a range."""

import math
from dataclasses import dataclass
from typing import Any

from ..utils.validation import build
from .schema import Search

# What a trial can change: the rest (data, processor) is made once for all trials.
SECTIONS = ("training.", "model.config.", "lora.")


@dataclass(frozen=True)
class Range:
    """
    Numbers from `low` to `high`, both included; whole ones where both are.

    Args:
        log: whether factors count rather than differences
        step: only `low`, `low + step`, ...
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def __post_init__(self):
        if not self.low < self.high:
            raise ValueError(f"`low` must be below `high`, got {self.low} and {self.high}.")
        if self.log and self.low <= 0:
            raise ValueError(f"with `log`, `low` must be above 0, got {self.low}.")
        if self.step is not None and (self.log or self.step <= 0):
            raise ValueError(f"`step` must be above 0 and goes without `log`, got {self.step}.")

    @property
    def is_whole(self) -> bool:
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def values(self) -> list[int | float]:
        """All values of a range with a step, or of whole numbers."""
        step = self.step or 1
        return [self.low + step * i for i in range(math.floor((self.high - self.low) / step + 1e-9) + 1)]


def choices_of(search: Search, key: str) -> list | Range:
    """
    What is tried for a key.

    Raises:
        ValueError: for what is neither a list of plain values nor a range, and for keys that no trial can change.
    """
    where, space = f"search.space.{key}", search.space[key]
    if not key.startswith(SECTIONS):
        raise ValueError(f"{where}: a trial can change keys that start with {', '.join(SECTIONS)}; this one cannot.")
    if isinstance(space, dict):
        return build(Range, space, where)
    if not isinstance(space, list) or not space:
        raise ValueError(f"{where}: expected a list of values, or `low` and `high`, got {space!r}.")
    for value in space:
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise ValueError(f"{where}: expected texts, numbers, true, false or null, got {value!r}.")
    return space


def check_space(search: Search) -> list[dict[str, Any]]:
    """
    Returns:
        sets of values that reach each end of the space, for a check that a recipe takes them.

    Raises:
        ValueError: for an empty space, for what `choices_of` refuses, and for a range that a grid cannot count.
    """
    if not search.space:
        raise ValueError("search.space: expected at least one key with its values, got none.")
    ends = []
    for key in search.space:
        choices = choices_of(search, key)
        ends += [{key: value} for value in ((choices.low, choices.high) if isinstance(choices, Range) else choices)]
    if search.method == "grid":
        grid_of(search)
    return ends


def grid_of(search: Search) -> dict[str, list]:
    """
    Every value of every key.

    Raises:
        ValueError: for a range of fractions without a step.
    """
    grid = {}
    for key in search.space:
        choices = choices_of(search, key)
        if isinstance(choices, Range):
            if choices.step is None and (choices.log or not choices.is_whole):
                raise ValueError(f"search.space.{key}: a grid needs a list of values, or a range with a `step`.")
            choices = choices.values()
        grid[key] = choices
    return grid


def suggest(trial: Any, search: Search) -> dict[str, Any]:
    """The values of a trial of Optuna, by key."""
    values = {}
    for key in search.space:
        choices = choices_of(search, key)
        if not isinstance(choices, Range):
            values[key] = trial.suggest_categorical(key, choices)
        elif choices.is_whole:
            values[key] = trial.suggest_int(key, choices.low, choices.high, step=choices.step or 1, log=choices.log)
        else:
            values[key] = trial.suggest_float(key, choices.low, choices.high, step=choices.step, log=choices.log)
    return values
