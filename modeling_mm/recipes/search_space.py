# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Space of a hyperparameter search: a list of choices or a range for each dotted key of a recipe."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..utils.validation import build
from ..utils.yaml_values import replace_value
from .schema import Recipe, Search

if TYPE_CHECKING:
    import optuna

# Sections that a trial can change. Data and processor are the same for all trials.
SECTIONS = ("training.", "model.config.", "lora.")


@dataclass(frozen=True)
class Range:
    """
    Numbers from `low` to `high`, both included; integers if both are.

    Args:
        log: if the scale is logarithmic
        step: distance of the numbers from each other
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"`low` must be below `high`, got {self.low} and {self.high}.")
        if self.log and self.low <= 0:
            raise ValueError(f"with `log`, `low` must be above 0, got {self.low}.")
        if self.step is not None and (self.log or self.step <= 0):
            raise ValueError(f"`step` must be above 0 and excludes `log`, got {self.step}.")

    @property
    def is_whole(self) -> bool:
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def values(self) -> list[int | float]:
        """Return all numbers of a range that can be counted."""
        step = self.step or 1
        return [self.low + step * i for i in range(math.floor((self.high - self.low) / step + 1e-9) + 1)]

    def suggest(self, trial: "optuna.Trial", key: str) -> int | float:
        if self.is_whole:
            return trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)


def choices_of(search: Search, key: str) -> list[Any] | Range:
    """
    Return the values of a key.

    Raises:
        ValueError: if they are neither plain values nor a range, or if no trial can change the key.
    """
    where, space = f"search.space.{key}", search.space[key]
    if not key.startswith(SECTIONS):
        raise ValueError(f"{where}: a trial can only change keys that start with {', '.join(SECTIONS)}.")
    if isinstance(space, dict):
        return build(Range, space, where)
    if not isinstance(space, list) or not space:
        raise ValueError(f"{where}: expected a list of values, or `low` and `high`, got {space!r}.")
    for value in space:
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise ValueError(f"{where}: expected texts, numbers, true, false or null, got {value!r}.")
    return space


def check_space(recipe: Recipe, search: Search) -> None:
    """
    Check that the recipe takes both ends of each range and each choice.

    Raises:
        ValueError: if it does not, if the space is empty, or if a grid has a range that cannot be counted.
    """
    if not search.space:
        raise ValueError("search.space: expected at least one key with its values, got none.")
    for key in search.space:
        choices = choices_of(search, key)
        for value in (choices.low, choices.high) if isinstance(choices, Range) else choices:
            with_values(recipe, {key: value})
    if search.method == "grid":
        grid_of(search)


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """
    Return the recipe with other values under dotted keys.

    Raises:
        ValueError: for unknown keys and values of another type.
    """
    plain: Any = recipe.to_dict()
    for key, value in values.items():
        plain = replace_value(plain, key, value)
    return build(Recipe, plain)


def grid_of(search: Search) -> dict[str, list[Any]]:
    """
    Return every value of every key.

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


def suggest(trial: "optuna.Trial", search: Search) -> dict[str, Any]:
    """Return the values of a trial by key."""
    spaces = {key: choices_of(search, key) for key in search.space}
    return {
        key: space.suggest(trial, key) if isinstance(space, Range) else trial.suggest_categorical(key, space)
        for key, space in spaces.items()
    }
