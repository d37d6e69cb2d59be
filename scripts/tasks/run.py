# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Build the data of tasks, train and measure their models, and print the table of figures.

    python -m scripts.tasks.run                    # all of them
    python -m scripts.tasks.run category           # some
    python -m scripts.tasks.run --measure          # measure the models of an earlier run
    python -m scripts.tasks.run --table            # only print what was measured

The corpora must be built (`make corpora`). Models go to outputs/tasks-NAME, figures to outputs/tasks/NAME/figures.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from modeling_mm.utils import markdown_table, write_text

from .build import add_folders, build, task_module, task_names
from .examples import Sources

HEADER = ("task", "test set", "metric", "questions", "model", "majority", "without media", "other", "reach")
FURTHER = "further.json"  # what `measure` of a task's module has found


def run(name: str, arguments: argparse.Namespace) -> None:
    """Build, train and measure one task; a model of an earlier run is replaced, or only measured."""
    module, model, figures = task_module(name), Path(f"outputs/tasks-{name}"), arguments.folder / name / "figures"
    if not arguments.measure:
        counts = build(name, arguments.corpora, arguments.packages, arguments.folder)
        print(f"{name}: " + ", ".join(f"{split} {number}" for split, number in counts.items()))
        for recipe in (*getattr(module, "FIRST", ()), model.name):
            command("train", recipe, f"training.output_dir={model.with_name(recipe)}", "overwrite=true")
    command("evaluate", model.name, str(model), "--out", str(figures))
    if hasattr(module, "measure"):
        found = module.measure(model, Sources(arguments.corpora, arguments.packages, arguments.folder / name))
        write_text(figures / FURTHER, json.dumps(found, indent=1))


def command(*words: str) -> None:
    """Run a command of `modeling-mm`."""
    subprocess.run([sys.executable, "-m", "modeling_mm.cli", *words], check=True)


def table(names: list[str], folder: Path) -> str:
    """Return the table of the tasks that are measured: the figures that a task's module has a `REACH` for."""
    rows = [row for name in names for row in table_rows(name, folder / name / "figures", task_module(name).REACH)]
    return markdown_table(HEADER, rows)


def table_rows(name: str, figures: Path, reach: dict[tuple[str, str], str]) -> list[tuple[str, ...]]:
    """
    Return the rows of one task: its test set and metric in `reach`, from `figures.json` and from what `measure` found.

    A figure of `measure` has `dataset`, `metric`, `name` and `value`, and stands in the column `other` of the row that
    it belongs to; one with `model` is a row.
    """
    if not (figures / "figures.json").is_file():
        return []
    measured = read(figures / FURTHER) if (figures / FURTHER).is_file() else []
    figured = [figure for each in read(figures / "figures.json") for figure in flat(each)]
    found = {(each["dataset"], each["metric"]): each for each in [*figured, *measured] if "model" in each}
    further: dict[tuple[str, str], list[str]] = {}
    for each in measured:
        if "name" in each:
            text = f"{each['value']:.3f} {each['name']}"
            further.setdefault((each["dataset"], each["metric"]), []).append(text)
    rows = []
    for (dataset, metric), wanted in reach.items():
        each = found.get((dataset, metric), {})
        values = [shown(each.get(key)) for key in ("model", "majority", "text_only")]
        other = "; ".join(further.get((dataset, metric), []))
        rows.append((name, dataset, metric, str(each.get("samples", "")), *values, other, wanted))
    return rows


def flat(figure: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a figure in a list, or all of those of one side of retrieval; chance stands for their majority."""
    if "query" not in figure:
        return [figure]
    return [
        {
            "dataset": figure["dataset"],
            "metric": f"{figure['query']}_to_{figure['item']}_{name}",
            "model": value,
            "majority": figure["chance"] if name == "recall_at_1" else None,
            "samples": figure["rows"],
        }
        for name, value in figure["figures"].items()
    ]


def read(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folders(parser)
    parser.add_argument("--measure", action="store_true", help="measure the models of an earlier run, train none")
    parser.add_argument("--table", action="store_true", help="only print the table of what was measured")
    arguments = parser.parse_args()
    names = arguments.tasks or task_names()
    for name in () if arguments.table else names:
        run(name, arguments)
    print(table(names, arguments.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
