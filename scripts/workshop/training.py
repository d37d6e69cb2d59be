# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `train`: a recipe whose data are joined by lessons about the classes of ImageNet."""

import argparse
from functools import partial
from pathlib import Path
from typing import cast

from modeling_mm.data import ChatDataset, ChatRow, media_parts, mix
from modeling_mm.recipes import Recipe, RecipeData, read_recipe, rows_of, run
from modeling_mm.training import CachedCollator, MMTrainer

from .base_folder import VARIANT
from .imagenet import PACKAGE, class_lemmas
from .lessons import ClassLessons, ImageNetHead, LessonCollator, sure_rows
from .lite import PACKAGES, lite_head
from .packages import fetch_package

LESSONS = 20.0  # weight of the lessons, beside those of the recipe's sources
SURE = 4.0  # weight of the photographs that the head is sure about
QUESTION = "What is this?"
PHOTOGRAPHS = "tuxpaint-"  # with which the names of images that may be photographs begin


def train(arguments: argparse.Namespace) -> None:
    """Follow the recipe."""
    recipe = read_recipe(arguments.recipe, arguments.overrides)
    weights = next(fetch_package(PACKAGES[VARIANT], arguments.packages).rglob("*.pth"))
    names = [lemmas[0] for lemmas in class_lemmas(fetch_package(PACKAGE, arguments.packages))]
    run(recipe, partial(add_lessons, recipe=recipe, head=ImageNetHead(*lite_head(weights)), names=names))


def add_lessons(trainer: MMTrainer, data: RecipeData, *, recipe: Recipe, head: ImageNetHead, names: list[str]) -> None:
    """Add lessons about all classes, and photographs that the head is sure about, to the data of a trainer."""
    known = cast(CachedCollator, trainer.data_collator)
    collator = LessonCollator(known.processor, known.cache, head=head)
    captions = [row for row in rows_of(data.train[0]) if row.task == "caption/en"]
    photographs = [row for row in captions if Path(image_of(row)).name.startswith(PHOTOGRAPHS)]
    sure = ChatDataset(sure_rows(photographs, collator, head, names))
    lessons = ClassLessons(names, [image_of(row) for row in captions], QUESTION)
    weights = [source.weight or 1.0 for source in recipe.data.train]
    datasets = cast(list[ChatDataset], [*data.train, sure, lessons])
    trainer.data_collator = collator
    trainer.train_dataset = mix(datasets, [*weights, SURE, LESSONS], trainer.args.seed)
    if "image" in data.alignment:
        first = ClassLessons(names, [image_of(row) for row in captions], QUESTION, rounds=3)
        cast(list, data.alignment["image"]).append(first)


def image_of(row: ChatRow) -> str:
    (part,) = media_parts(row.messages)
    return str(part["path"])
