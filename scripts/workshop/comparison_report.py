# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Table and plot of a comparison: means over the seeds, with their standard deviations."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEADER = ("system", "seeds", "held-out loss", "exact match", "parameters", "of them new", "seconds", "answering")

Runs = Sequence[dict[str, Any]]


def by_system(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """Group the runs by system, in the order of their first runs."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        grouped.setdefault(run["system"], []).append(run)
    return grouped


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation; a single value has a deviation of 0."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def rows_of(runs: Runs) -> list[tuple[str, ...]]:
    """Return one row for each system, in the columns of `HEADER`, the lowest held-out loss first."""
    rows = []
    grouped = by_system(runs)
    order = sorted(grouped, key=lambda name: statistics.fmean(run["loss"] for run in grouped[name]))
    for name in order:
        of_name = grouped[name]

        def figure(key: str, digits: int, own: list[dict[str, Any]] = of_name) -> str:
            mean, spread = mean_and_spread([run[key] for run in own])
            return f"{mean:.{digits}f} ± {spread:.{digits}f}"

        millions = [f"{of_name[0][key] / 1e6:.2f}M" for key in ("parameters", "new_parameters")]
        times = [figure(key, 0) for key in ("seconds", "seconds_answering")]
        rows.append((name, str(len(of_name)), figure("loss", 3), figure("exact_match", 3), *millions, *times))
    return rows


def plot(runs: Runs, path: Path) -> None:
    """
    Plot the held-out loss over the steps on the left, and the final figures of every seed on the right.

    Args:
        runs: the runs.
        path: the image file; its suffix decides its format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # an extra of the package, needed here only
    from matplotlib.figure import Figure

    grouped = by_system(runs)
    figure = Figure(figsize=(13, 0.45 * len(grouped) + 2.5), layout="constrained")
    FigureCanvasAgg(figure)
    over_steps, losses, matches = figure.subplots(1, 3)
    names = [row[0] for row in rows_of(runs)]
    for place, name in enumerate(names):
        of_name, color = grouped[name], f"C{place % 10}"
        steps = [point[0] for point in of_name[0]["curve"]]
        values = [mean_and_spread([run["curve"][i][2] for run in of_name]) for i in range(len(steps))]
        over_steps.plot(steps, [mean for mean, _ in values], color=color, marker=".", label=name)
        over_steps.fill_between(steps, [m - s for m, s in values], [m + s for m, s in values], color=color, alpha=0.15)
        for axes, key in ((losses, "loss"), (matches, "exact_match")):
            mean, spread = mean_and_spread([run[key] for run in of_name])
            axes.errorbar(mean, place, xerr=spread, color=color, fmt="o", capsize=4)
            axes.scatter([run[key] for run in of_name], [place] * len(of_name), color=color, marker="|", s=80)
    over_steps.set(xlabel="step", ylabel="held-out loss, nats a token", title="held-out loss")
    over_steps.legend(fontsize="x-small")
    for axes, title in ((losses, "held-out loss at the end"), (matches, "exact match at the end")):
        axes.set(title=title, yticks=range(len(names)), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticklabels(names if axes is losses else [], fontsize="x-small")
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
