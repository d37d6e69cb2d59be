# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Embeddings of items by a retrieval model.

Shape legend: N items, P the size of an embedding.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..modalities import MODALITIES
from .content import Content, read_content, sign
from .items import Item


class Embedder:
    """
    A retrieval model with its processor.

    ```python
    embedder = Embedder(MMForRetrieval.from_pretrained(folder), MMProcessor.from_pretrained(folder))
    embedder.embed_item(Item("a dog at night"))  # (P,)
    ```

    Args:
        model: an `MMForRetrieval`; it is put into evaluation mode
        processor: of the model

    Raises:
        ValueError: for a model that does not embed.
    """

    def __init__(self, model: Any, processor: Any):
        if not hasattr(model, "embed"):
            raise ValueError(
                f"An index needs a model that embeds, MMForRetrieval, got a {type(model).__name__}. Load the weights "
                "with that class, or train one."
            )
        self.model, self.processor = model.eval(), processor

    @property
    def dimension(self) -> int:
        """Return P, the size of an embedding."""
        return self.model.embedding_projection.out_features

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights that an embedding takes, as float32, and of the vocabulary."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            if name.startswith("logit_"):  # the temperature of training
                continue
            value = value.detach().cpu()
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update((value.float() if value.is_floating_point() else value).contiguous().numpy().tobytes())
        digest.update(json.dumps(self.processor.tokenizer.get_vocab(), sort_keys=True).encode())
        return digest.hexdigest()

    def embed_item(self, item: Item) -> np.ndarray:
        """
        Return the embedding (P,) of one item, such as a query.

        Raises:
            ValueError: for an item with nothing in it, or that the model does not take.
        """
        signature, media = sign(item)
        vectors, failures = self.embed([read_content(item, media, signature)])
        if failures:
            raise failures[0][1]
        return vectors[0]

    def embed(
        self, contents: Sequence[Content], batch_size: int = 32
    ) -> tuple[np.ndarray, list[tuple[int, ValueError]]]:
        """
        Embed items, those of a kind in common batches.

        Args:
            contents: N items
            batch_size: the most items of a batch

        Returns:
            The embeddings (N, P), float32, zeros for items that the model does not take, such as a text that is too
            long; and the numbers and errors of these.
        """
        vectors = np.zeros((len(contents), self.dimension), dtype=np.float32)
        failures: list[tuple[int, ValueError]] = []
        kinds: dict[tuple[tuple[str, ...], bool], list[int]] = {}
        for number in sorted(range(len(contents)), key=lambda number: len(contents[number].item.text)):
            kinds.setdefault(kind_of(contents[number]), []).append(number)
        for numbers in kinds.values():
            for start in range(0, len(numbers), batch_size):
                self.embed_batch(contents, numbers[start : start + batch_size], vectors, failures)
        return vectors, failures

    def embed_batch(
        self,
        contents: Sequence[Content],
        numbers: list[int],
        vectors: np.ndarray,
        failures: list[tuple[int, ValueError]],
    ) -> None:
        """Fill in the embeddings of some items; if a batch fails, one after the other, to know which one does."""
        try:
            vectors[numbers] = self.embed_alike([contents[number] for number in numbers])
        except ValueError as error:
            if len(numbers) == 1:
                failures.append((numbers[0], ValueError(f"{contents[numbers[0]].item.where}: {error}")))
                return
            for number in numbers:
                self.embed_batch(contents, [number], vectors, failures)

    @torch.no_grad()
    def embed_alike(self, contents: Sequence[Content]) -> np.ndarray:
        """Return the embeddings (N, P) of items with media of the same modalities, all with or all without a text."""
        names = contents[0].media
        media = {MODALITIES[name].plural: [content.media[name] for content in contents] for name in names}
        texts = [content.item.text for content in contents]
        inputs = self.processor(text=texts, **media, return_tensors="pt")
        if not has_text(contents[0]):  # also of a model whose placeholders are hidden, and so are no text
            inputs = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        embeds = self.model.embed(**{name: value.to(self.model.device) for name, value in inputs.items()})
        return embeds.float().cpu().numpy()


def has_text(content: Content) -> bool:
    return bool(content.item.text.strip())


def kind_of(content: Content) -> tuple[tuple[str, ...], bool]:
    """Return an item's modalities, and if it has a text: items of a batch are alike in both."""
    return tuple(content.media), has_text(content)
