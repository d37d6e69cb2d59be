# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""What a hyperparameter search found: a table, a plot, and the recipe with the best values in it."""

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.tables import format_table
from ..utils.validation import build
from ..utils.yaml_values import replace_value
from .schema import Recipe, to_yaml
from .search_space import Range, choices_of

if TYPE_CHECKING:
    import optuna


def write_report(folder: Path, study: "optuna.Study", recipe: Recipe) -> dict[str, Any]:
    """
    Prints the table of the trials, the best first, and writes `trials.json`, `trials.csv`, `search.png`, `best.yaml`.

    Returns:
        the best values by key.
    """
    from .run import write_text

    search = recipe.search
    rows = trial_rows(study, search.metric, search.direction)
    keys = list(search.space)
    write_text(folder / "trials.json", json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / "trials.csv", as_csv(rows, ["trial", search.metric, *keys, "seconds"]))
    best = {key: rows[0][key] for key in keys}
    write_text(folder / "best.yaml", best_yaml(recipe, best))
    draw(rows, recipe, folder / "search.png")
    cells = [[shown(row[name]) for name in ("trial", search.metric, *keys, "seconds")] for row in rows]
    print(format_table(("trial", search.metric, *keys, "seconds"), cells, right=range(len(keys) + 3)))
    print(f"{len(rows)} trials by {search.method}; the best values are in {folder / 'best.yaml'}, the plot is")
    print(f"{folder / 'search.png'}. Train by the former: scripts/train.py {folder / 'best.yaml'}")
    return best


def trial_rows(study: "optuna.Study", metric: str, direction: str) -> list[dict[str, Any]]:
    """One row a finished trial, the best first: its number, what it is compared by, its values, its seconds."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = 1 if direction == "minimize" else -1
    return [
        {"trial": t.number, metric: t.value, **t.params, "seconds": round(t.duration.total_seconds(), 1)}
        for t in sorted(trials, key=lambda t: (sign * t.value, t.number))
    ]


def as_csv(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def best_yaml(recipe: Recipe, best: dict[str, Any]) -> str:
    """The recipe with the best values, to be trained in a folder of its own."""
    plain: Any = recipe.to_dict()
    for key, value in best.items():
        plain = replace_value(plain, key, value)
    folder = f"{recipe.training['output_dir']}/best"
    return to_yaml(build(Recipe, replace_value(plain, "training.output_dir", folder)))


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw(rows: Sequence[dict[str, Any]], recipe: Recipe, path: Path) -> None:
    """One panel with the trials in the order in which they were made, and one for each key."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    search = recipe.search
    metric, keys = search.metric, list(search.space)
    in_order = sorted(rows, key=lambda row: row["trial"])
    figure = Figure(figsize=(3.2 * (len(keys) + 1), 3), layout="constrained", dpi=150)
    panels = figure.subplots(1, len(keys) + 1, sharey=True, squeeze=False)[0]
    better = min if search.direction == "minimize" else max
    values = [row[metric] for row in in_order]
    panels[0].plot([better(values[: i + 1]) for i in range(len(values))], color="0.6", label="best so far")
    panels[0].scatter(range(len(values)), values, s=14)
    panels[0].set_xlabel("trial")
    panels[0].set_ylabel(metric)
    panels[0].legend(fontsize="small")
    panels[0].xaxis.get_major_locator().set_params(integer=True)
    for panel, key in zip(panels[1:], keys, strict=True):
        choices = choices_of(search, key)
        tried = [row[key] for row in in_order]
        panel.set_xlabel(key)
        if isinstance(choices, Range):
            panel.scatter(tried, values, s=14)
            panel.set_xscale("log" if choices.log else "linear")
            panel.set_xlim(choices.low, choices.high)
            panel.xaxis.set_minor_formatter(NullFormatter())
        else:
            panel.scatter([choices.index(value) for value in tried], values, s=14)
            panel.set_xticks(range(len(choices)), [str(choice) for choice in choices])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)
