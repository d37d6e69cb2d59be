# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Batches for retrieval, and embeddings of a dataset's rows.

Shape legend: P the size of an embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..batching import first_row
from ..data.chat_row import ChatRow, to_row
from .collators import CachedCollator, ChatCollator, Row


class RetrievalCollator(ChatCollator):
    """
    Chats to a batch for [`MMForRetrieval`]: the answers as texts, beside their images and audio.

    The words of the user are left out. A row without media, or with an empty answer, lacks those sides.

    ```python
    collate = RetrievalCollator(processor)
    Trainer(model, TrainingArguments("outputs"), collate, load_chats("captions.jsonl")).train()
    ```

    Options are those of [`ChatCollator`].
    """

    def features(self, row: ChatRow) -> Row:
        return first_row(self.processor(text=row.answer, return_tensors="pt")) | self.media_features(row)

    def __call__(self, samples: Sequence[ChatRow | Mapping[str, Any]]) -> dict[str, Any]:
        """
        Encode and pad samples.

        Returns:
            `input_ids`, `attention_mask` (B, L), without placeholders, the media of the tensor contract, and
            `return_loss`, True.
        """
        return {**super().__call__(samples), "return_loss": True}

    def embedding_batch(self, rows: Sequence[ChatRow]) -> dict[str, torch.Tensor]:
        """Return a batch for the model to embed: as in training, without a loss."""
        return super().__call__(rows)


class CachedRetrievalCollator(RetrievalCollator, CachedCollator):
    """
    `RetrievalCollator` with `vision_states` and `audio_states` of an encoder cache instead of pixels and spectrograms.

    Arguments are those of [`CachedCollator`].

    Example:
        >>> cache = EncoderCache("cache", model, processor)
        >>> cache.fill(chats)
        >>> MMTrainer(model, MMTrainingArguments("outputs"), CachedRetrievalCollator(processor, cache), chats).train()
    """


@dataclass(frozen=True)
class EmbeddedRow:
    """A row of a dataset, by its number, with its text and the embedding (P,) of each side that it has."""

    number: int
    text: str
    sides: dict[str, np.ndarray]


@torch.no_grad()
def embed_rows(model: Any, collator: Any, batch: Sequence[tuple[int, Any]]) -> list[EmbeddedRow]:
    """
    Embed numbered rows of a dataset in one batch. The model is put into evaluation mode.

    Args:
        collator: its method `embedding_batch` makes the inputs
    """
    model.eval()
    rows = [(number, to_row(sample)) for number, sample in batch]
    inputs = collator.embedding_batch([row for _, row in rows])
    output = model(**{name: value.to(model.device) for name, value in inputs.items()})
    embeds = {
        name.removesuffix("_embeds"): value.float().cpu().numpy()
        for name, value in output.items()
        if name.endswith("_embeds")
    }
    return [
        EmbeddedRow(number, row.answer, {side: each[i] for side, each in embeds.items() if each[i].any()})
        for i, (number, row) in enumerate(rows)
    ]
