# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""A trained retrieval model with its recipe's data: what the encoder cache holds, and the embeddings of rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_mm import MMForRetrieval, MMProcessor
from modeling_mm.data import ChatDataset, ChatRow, load_chats, media_parts
from modeling_mm.recipes import RecipeData, make_collator, read_recipe, rows_of

from .build import RECIPES

ROWS_AT_ONCE = 64


@dataclass
class Retriever:
    """
    A model that a recipe has trained, with the recipe's encoder cache.

    Args:
        folder: of the model.
        task: the recipe is `tasks-TASK`.
    """

    folder: Path
    task: str

    @cached_property
    def processor(self) -> MMProcessor:
        return MMProcessor.from_pretrained(self.folder)

    @cached_property
    def model(self) -> Any:
        return MMForRetrieval.from_pretrained(self.folder).requires_grad_(False).eval()

    def collator(self, rows: Sequence[ChatRow]) -> Any:
        """Return the recipe's collator for evaluation, whose cache has the media of these rows."""
        recipe = read_recipe(RECIPES / f"tasks-{self.task}.yaml")
        data = RecipeData([], None, {"rows": ChatDataset(list(rows))})
        return make_collator(recipe, self.processor, data, self.model).for_evaluation()

    def means(self, rows: Sequence[ChatRow], kind: str) -> np.ndarray:
        """Return the mean (N, W) of the frozen encoder's states of each row's media of a kind."""
        cache, found = self.collator(rows).cache, []
        for row in rows:
            windows = [w for part in media_parts(row.messages) if part["type"] == kind for w in cache.states(part)]
            found.append(torch.cat(windows).float().mean(0).numpy())
        return np.stack(found)

    @torch.no_grad()
    def embed(self, rows: Sequence[ChatRow], sides: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the embeddings (N, P) of sides that every row has: `text` (the answer), `image`, `audio`."""
        collator, found = self.collator(rows), []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            found.append(self.model(**collator.embedding_batch(rows[start : start + ROWS_AT_ONCE])))
        return {side: torch.cat([each[f"{side}_embeds"] for each in found]).numpy() for side in sides}


def read_chats(path: Path) -> list[ChatRow]:
    """Return the examples of a JSONL file, with media paths that start at the working directory."""
    return list(rows_of(load_chats(str(path))))
