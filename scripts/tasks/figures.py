# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Figures beside those of `modeling-mm evaluate`: scores of a trained classifier, and 1-NN on its frozen encoder."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

# Shape legend: N examples, C labels, L encoder tokens, W the encoder's width.


Row = dict[str, Any]  # a figure of the table, see `scripts.tasks.run.table_rows`


def figure(dataset: str, metric: str, value: float, samples: int) -> Row:
    """Return a figure of the model, a row of the table."""
    return {"dataset": dataset, "metric": metric, "model": float(value), "samples": samples}


def beside(dataset: str, metric: str, name: str, value: float) -> Row:
    """Return a figure that stands beside that of the model, such as a baseline's."""
    return {"dataset": dataset, "metric": metric, "name": name, "value": float(value)}


class ScoredTask:
    """
    A trained classifier of a recipe with an encoder cache, and the examples of its task.

    Args:
        recipe: the name of the recipe.
        model: the folder of the trained model.
        folder: the folder of the task with its JSONL files.
    """

    def __init__(self, recipe: str, model: Path, folder: Path):
        from modeling_mm.recipes import read_recipe
        from modeling_mm.utils import find_resource

        self.recipe, self.folder, self.path = read_recipe(find_resource("recipes", recipe)), folder, model

    @cached_property
    def parts(self) -> tuple:  # type: ignore[type-arg]
        """The model, its processor and a collator with the encoder cache."""
        from modeling_mm import MMForSequenceClassification, MMProcessor
        from modeling_mm.training import CachedCollator, EncoderCache

        model = MMForSequenceClassification.from_pretrained(self.path).requires_grad_(False)
        processor, data = MMProcessor.from_pretrained(self.path), self.recipe.data
        cache = EncoderCache(data.encoder_cache or "outputs/encoder-cache", model, processor, data.augmentation)
        return model, processor, CachedCollator(processor, cache)

    def rows(self, split: str) -> list:  # type: ignore[type-arg]
        """Return the examples of a split, encoded into the cache."""
        from modeling_mm.data import load_chats

        rows = list(load_chats(self.folder / f"{split}.jsonl"))
        self.parts[2].cache.fill(rows, views=False)
        return rows

    def scores(self, split: str) -> np.ndarray:
        """Return the probabilities of the labels, (N, C)."""
        from modeling_mm.evaluation import classify

        model, processor, collator = self.parts
        return classify(model, processor, self.rows(split), prompt_batch=collator.prompt_batch)

    def features(self, split: str) -> tuple[np.ndarray, list[str]]:
        """Return the mean of the encoder's states of each example's media, (N, W), and the answers."""
        from modeling_mm.data import media_parts

        rows, cache = self.rows(split), self.parts[2].cache
        means = [
            np.concatenate([np.concatenate(cache.states(part)).mean(0) for part in media_parts(row.messages)])
            for row in rows
        ]
        return np.stack(means).astype(np.float64), [row.answer for row in rows]


def nearest_neighbor(task: ScoredTask, train: str, test: str, dataset: str) -> Row:
    """Return the accuracy of the label of the most similar training example, by the cosine of the mean states."""
    (known, labels), (unknown, truths) = task.features(train), task.features(test)
    answers = nearest_labels(known, labels, unknown)
    right = sum(answer == truth for answer, truth in zip(answers, truths, strict=True))
    return beside(dataset, "accuracy", "1-NN on the frozen encoder", right / len(truths))


def nearest_labels(known: np.ndarray, labels: Sequence[str], unknown: np.ndarray) -> list[str]:
    """
    Return the label of the known row (N, W) with the largest cosine to each unknown row.

    The mean of the known rows is taken away from all of them first, as states have a large part in common.
    """
    mean = known.mean(0)
    one, other = known - mean, unknown - mean
    one, other = (each / np.linalg.norm(each, axis=-1, keepdims=True).clip(1e-12) for each in (one, other))
    return [labels[number] for number in (other @ one.T).argmax(-1)]
