# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Values of a hyperparameter search, and recipes with them."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..utils.validation import build
from ..utils.yaml_values import replace_value
from .schema import Range, Recipe, Search

if TYPE_CHECKING:
    import optuna


def check_space(recipe: Recipe, search: Search) -> None:
    """Check that the recipe takes both ends of each range and each choice, and that a grid can be counted."""
    for key, choices in search.space.items():
        for value in (choices.low, choices.high) if isinstance(choices, Range) else choices:
            with_values(recipe, {key: value})
    if search.method == "grid":
        grid_of(search)


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with other values under dotted keys; they are checked as in a file."""
    plain: Any = recipe.to_dict()
    for key, value in values.items():
        plain = replace_value(plain, key, value)
    return build(Recipe, plain)


def grid_of(search: Search) -> dict[str, Sequence[Any]]:
    """Return every value of every key; refuse a range of fractions without a step."""
    grid: dict[str, Sequence[Any]] = {}
    for key, choices in search.space.items():
        if isinstance(choices, Range):
            if choices.step is None and (choices.log or not choices.is_whole):
                raise ValueError(f"search.space.{key}: a grid needs a list of values, or a range with a `step`.")
            step = choices.step or 1
            count = math.floor((choices.high - choices.low) / step + 1e-9) + 1
            grid[key] = [choices.low + step * i for i in range(count)]
        else:
            grid[key] = choices
    return grid


def suggest(trial: "optuna.Trial", search: Search) -> dict[str, Any]:
    """Return the values of a trial by key."""
    values: dict[str, Any] = {}
    for key, space in search.space.items():
        if not isinstance(space, Range):
            values[key] = trial.suggest_categorical(key, space)
        elif space.is_whole:
            low, high, step = int(space.low), int(space.high), int(space.step or 1)
            values[key] = trial.suggest_int(key, low, high, step=step, log=space.log)
        else:
            values[key] = trial.suggest_float(key, space.low, space.high, step=space.step, log=space.log)
    return values
