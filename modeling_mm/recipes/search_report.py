# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Results of a hyperparameter search: a table, a plot, and the recipe with the best values."""

import csv
import io
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import write_bytes, write_text
from ..utils.tables import format_table
from .schema import Recipe, Search, to_yaml
from .search_space import with_values

if TYPE_CHECKING:
    import optuna


def write_report(folder: Path, study: "optuna.Study", recipe: Recipe, search: Search) -> dict[str, Any]:
    """
    Print a table of the trials, the best first, and write `trials.json`, `trials.csv`, `search.png` and `best.yaml`.

    Returns:
        the best values by key.
    """
    rows = trial_rows(study, search)
    names = ["trial", search.metric, *search.space, "seconds"]
    write_text(folder / "trials.json", json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    table = io.StringIO()
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "trials.csv", table.getvalue())
    best = {key: rows[0][key] for key in search.space}
    output = {"training.output_dir": f"{recipe.output_dir}/best"}
    write_text(folder / "best.yaml", to_yaml(with_values(recipe, best | output)))
    write_bytes(folder / "search.png", draw(study, search))
    cells = [[f"{row[name]:.4g}" if isinstance(row[name], float) else row[name] for name in names] for row in rows]
    print(format_table(names, cells, right=range(len(names))))
    print(f"{len(rows)} trials by {search.method}. Plot: {folder / 'search.png'}")
    print(f"To train with the best values: scripts/train.py {folder / 'best.yaml'}")
    return best


def trial_rows(study: "optuna.Study", search: Search) -> list[dict[str, Any]]:
    """Return a row for each finished trial, the best first: its number, metric, values and seconds."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    rows = [
        {"trial": t.number, search.metric: t.value, **t.params, "seconds": round(t.duration.total_seconds(), 1)}
        for t in trials
        if t.duration is not None
    ]
    sign = 1 if search.direction == "minimize" else -1
    return sorted(rows, key=lambda row: (sign * row[search.metric], row["trial"]))


def draw(study: "optuna.Study", search: Search) -> bytes:
    """Return a PNG with one panel for each key, in which later trials are darker."""
    import matplotlib.pyplot as plt
    from optuna.exceptions import ExperimentalWarning
    from optuna.visualization.matplotlib import plot_slice

    image = io.BytesIO()
    # `plot_slice` changes the style of all plots, and warns that its signature may change.
    with plt.style.context({}), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        plot_slice(study, params=list(search.space), target_name=search.metric)
        plt.savefig(image, format="png", dpi=150)
        plt.close()
    return image.getvalue()
