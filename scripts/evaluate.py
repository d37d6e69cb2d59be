# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Held-out figures of a trained model: the test sets of a recipe, task by task, beside the majority's answer and the
model's own answers without the media.

    python scripts/evaluate.py configuration/recipes/mm-pocket.yaml model_cards/mm-pocket
    python scripts/evaluate.py RECIPE MODEL --limit 200 --no-text-only --out outputs/evaluation

Writes `figures.json`, `figures.md` and `answers.jsonl` into the output folder, and prints the figures.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from modeling_mm.evaluation import evaluate, figures_markdown, majority_answers
from modeling_mm.recipes.build import load_source, rows_of
from modeling_mm.recipes.schema import Recipe, read_recipe
from modeling_mm.training import CachedCollator, EncoderCache
from modeling_mm.utils.files import write_text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="whose data.test is asked and whose data.train gives the majority's answers")
    parser.add_argument("model", help="folder or Hub id of a joint model")
    parser.add_argument("--out", type=Path, default=Path("outputs/evaluation"))
    parser.add_argument("--limit", type=int, help="questions of each file at most")
    parser.add_argument("--no-text-only", action="store_true", help="leave out the answers without media")
    parser.add_argument("--no-cache", action="store_true", help="encode all media anew, whatever the recipe says")
    parser.add_argument("--only", nargs="*", help="names of test sets; all by default")
    arguments = parser.parse_args()
    recipe = read_recipe(arguments.recipe)
    processor = AutoProcessor.from_pretrained(arguments.model)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=torch.float32)
    datasets = test_sets(recipe, arguments.only, arguments.limit)
    majority: dict[str, str] = {}
    for source in recipe.data.train:
        majority |= majority_answers(rows_of(load_source(source)))
    collator = None
    if recipe.data.encoder_cache and not arguments.no_cache:
        collator = cached_collator(recipe, model, processor, datasets)
    figures, records = evaluate(
        model,
        processor,
        datasets,
        majority,
        None if collator is None else collator.prompt_batch,
        with_text_only=not arguments.no_text_only,
        max_new_tokens=recipe.training.get("generation_max_new_tokens", 64),
        task_metrics=recipe.task_metrics,
    )
    write_text(arguments.out / "figures.json", json.dumps([asdict(f) for f in figures], indent=1, ensure_ascii=False))
    write_text(arguments.out / "figures.md", figures_markdown(figures) + "\n")
    write_text(arguments.out / "answers.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    print(figures_markdown(figures))
    return 0


def test_sets(recipe: Recipe, only: list[str] | None, limit: int | None) -> dict[str, list]:
    """
    Raises:
        ValueError: for the name of a test set that the recipe has not.
    """
    if unknown := sorted(set(only or ()) - set(recipe.data.test)):
        raise ValueError(f"The recipe has no test set {', '.join(unknown)}; it has {', '.join(recipe.data.test)}.")
    sets = {}
    for name, sources in recipe.data.test.items():
        if not only or name in only:
            rows = [list(rows_of(load_source(source))) for source in sources]
            sets[name] = [row for each in rows for row in each[:limit]]
    return sets


def cached_collator(recipe: Recipe, model, processor, datasets: dict[str, list]) -> CachedCollator:
    """The media of the test sets through the recipe's encoder cache."""
    for tower in (model.base_model.vision_tower, model.base_model.audio_tower):
        if tower is not None:
            tower.requires_grad_(False)
    cache = EncoderCache(
        recipe.data.encoder_cache,
        model,
        processor,
        recipe.data.augmentation,  # not applied: it only finds the store that training has filled
        dtype=getattr(torch, recipe.data.encoder_dtype),
    )
    for rows in datasets.values():
        cache.fill(rows, views=False)
    return CachedCollator(processor, cache)


if __name__ == "__main__":
    sys.exit(main())
