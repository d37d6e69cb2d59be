# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `few_labels`: the runs of each seed, and the table of their accuracies."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modeling_mm.recipes import RECIPE_FILE, RESULT_FILE, Recipe, read_recipe, run
from modeling_mm.utils import markdown_table

from .comparison_report import mean_and_spread

PRETRAINING, CLASSIFICATION = "few-labels-pretrain.yaml", "few-labels.yaml"
WITH, WITHOUT = "with", "without"
HEADER = ("test set", "images", "with pre-training", "without", "gain, points")

Accuracies = dict[str, dict[str, list[float]]]  # of each seed, by test set and by WITH and WITHOUT


def compare(recipes: Path, out: Path, seeds: Sequence[int]) -> str:
    """Follow the recipes with each seed, or read finished runs, and return a table in Markdown."""
    found: Accuracies = {}
    sizes: dict[str, int] = {}
    for seed in seeds:
        results = {name: result_of(recipe) for name, recipe in recipes_of(recipes, out, seed).items()}
        for arm in (WITH, WITHOUT):
            for name, figures in results[arm]["figures"].items():
                found.setdefault(name, {WITH: [], WITHOUT: []})[arm].append(figures["accuracy"])
                sizes[name] = figures["samples"]
    return markdown_table(HEADER, rows_of(found, sizes))


def recipes_of(recipes: Path, out: Path, seed: int) -> dict[str, Recipe]:
    """Return the recipes of a seed, in their order. The seed also draws the labels."""

    def read(name: str, folder: str, *overrides: str) -> Recipe:
        return read_recipe(
            recipes / name, [f"training.seed={seed}", f"training.output_dir={out / folder}", *overrides]
        )

    pretraining = read(PRETRAINING, f"pretraining-{seed}")
    return {
        "pretraining": pretraining,
        WITH: read(CLASSIFICATION, f"{WITH}-{seed}", f"model.pretrained={pretraining.output_dir}"),
        WITHOUT: read(CLASSIFICATION, f"{WITHOUT}-{seed}", f"model.pretrained={pretraining.model.pretrained}"),
    }


def result_of(recipe: Recipe) -> dict[str, Any]:
    """
    Return the result of a recipe: that of its finished run, or of following it.

    Raises:
        ValueError: if the folder holds the finished run of another recipe.
    """
    folder = recipe.output_dir
    if not (folder / RESULT_FILE).is_file():
        return run(recipe)
    if read_recipe(folder / RECIPE_FILE).to_dict() != recipe.to_dict():
        raise ValueError(f"{folder} holds a finished run of another recipe. Remove it, or give another --out.")
    return json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))


def rows_of(found: Accuracies, sizes: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Return a row for each test set: mean and deviation over the seeds in percent, and the value of each seed."""
    rows = []
    for name, arms in found.items():
        gains = [after - before for after, before in zip(arms[WITH], arms[WITHOUT], strict=True)]
        rows.append((name, str(sizes[name]), *(in_percent(each) for each in (arms[WITH], arms[WITHOUT], gains))))
    return rows


def in_percent(values: Sequence[float]) -> str:
    mean, spread = mean_and_spread([100 * value for value in values])
    return f"{mean:.1f} ± {spread:.1f} ({', '.join(f'{100 * value:.1f}' for value in values)})"
