# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Build the data of tasks from the corpora and packages, as JSONL that the recipes `tasks-NAME` read.

    python -m scripts.tasks.build category         # into outputs/tasks/category
"""

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from .examples import Sources, write_task

RECIPES = Path(__file__).resolve().parents[2] / "configuration" / "recipes"


def task_names() -> list[str]:
    """Return the names of the tasks, which are those of the recipes `tasks-NAME.yaml`."""
    return sorted(path.stem.removeprefix("tasks-") for path in RECIPES.glob("tasks-*.yaml"))


def task_module(name: str) -> ModuleType:
    """
    Return the module of a task.

    It has `build(sources)`, which returns the splits. One of a classification has `LABELS`, the recipe's labels, and
    may have `WITHOUT_LABEL`, the splits whose answers are none of them. One with further figures has
    `measure(model, sources)`, one whose recipe joins components that learn from its data has
    `prepare(sources, splits)`, which writes them, and one whose recipe starts from what others have trained names
    those in `FIRST`.

    Raises:
        ValueError: for a name that no recipe has.
    """
    if name not in task_names():
        raise ValueError(f"Unknown task {name!r}; known are {', '.join(task_names())}.")
    return importlib.import_module(f"{__package__}.{name.replace('-', '_')}")


def build(name: str, corpora: Path, packages: Path, folder: Path) -> dict[str, int]:
    """
    Build the data of a task below `folder`; return the number of examples of each split.

    Raises:
        ValueError: for an unknown task, a leak between splits, or an answer out of range.
    """
    module = task_module(name)
    target = folder / name
    target.mkdir(parents=True, exist_ok=True)
    sources = Sources(corpora, packages, target)
    splits = module.build(sources)
    write_task(target, splits, getattr(module, "LABELS", ()), getattr(module, "WITHOUT_LABEL", ()))
    if hasattr(module, "prepare"):
        module.prepare(sources, splits)
    return {split: len(rows) for split, rows in splits.items()}


def add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tasks", nargs="*", help=f"of {', '.join(task_names())}; all by default")
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"), help="folder of unpacked packages")
    parser.add_argument("--folder", type=Path, default=Path("outputs/tasks"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folders(parser)
    arguments = parser.parse_args()
    for name in arguments.tasks or task_names():
        counts = build(name, arguments.corpora, arguments.packages, arguments.folder)
        print(f"{name}: " + ", ".join(f"{split} {number}" for split, number in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
