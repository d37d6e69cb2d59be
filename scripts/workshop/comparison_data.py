# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Captions and batches that all systems of the comparison share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from modeling_mm.data import ChatRow
from modeling_mm.training import IGNORED, EncoderCache

from .comparison_systems import Components
from .corpus import read_rows
from .packages import fetch_package
from .sources import read_definitions

# Shape legend: B rows, L text tokens, S encoder tokens of an image, W the encoder's width.

DICTIONARY = "debian:wordnet-base"


@dataclass(frozen=True)
class Caption:
    """
    Image with its caption.

    Args:
        path: the file of the image.
        text: the caption.
        input_ids: the tokens `<|image|><|assistant|> caption <|end|>`.
    """

    path: str
    text: str
    input_ids: list[int]

    @property
    def part(self) -> dict[str, str]:
        return {"type": "image", "path": self.path}


def read_captions(
    corpus: Path, split: str, column: str, components: Components, longest: int
) -> tuple[list[Caption], int]:
    """
    Return the captions of a split with at most `longest` tokens, and the number of longer ones.

    Raises:
        ValueError: if no caption is short enough.
    """
    image, assistant, end, _ = components.token_ids()
    captions = []
    rows = read_rows(corpus, split)
    for row in rows:
        words = components.processor.tokenizer(row[column], add_special_tokens=False)["input_ids"]
        if len(words) <= longest:
            ids = [image, assistant, *words, end]
            captions.append(Caption(str(corpus / row["file_name"]), row[column].strip(), ids))
    if not captions:
        raise ValueError(f"No caption of {corpus / split} in the column {column} has at most {longest} tokens.")
    return captions, len(rows) - len(captions)


def dictionary_texts(packages: Path, corpus: Path, column: str) -> list[str]:
    """Return half of WordNet's definitions of nouns, and each training caption four times."""
    captions = sorted({row[column] for row in read_rows(corpus, "train")})
    return [*read_definitions(fetch_package(DICTIONARY, packages))[::2], *captions * 4]


def fill_cache(cache: EncoderCache, captions: Iterable[Caption]) -> None:
    """Encode each image that the cache does not hold yet, without augmentation."""
    rows = [ChatRow(messages=[{"role": "user", "content": [caption.part]}]) for caption in captions]
    cache.fill(rows, views=False)


def image_states(captions: Iterable[Caption], cache: EncoderCache) -> torch.Tensor:
    """Return the encoder's outputs for the images of the captions, (B, S, W)."""
    return torch.stack([cache.states(caption.part)[0] for caption in captions])


def batch_of(captions: Sequence[Caption], cache: EncoderCache, pad: int) -> tuple[torch.Tensor, ...]:
    """Return states (B, S, W), ids, mask and labels (B, L); the labels cover the caption and its end only."""
    length = max(len(caption.input_ids) for caption in captions)
    input_ids = torch.tensor([c.input_ids + [pad] * (length - len(c.input_ids)) for c in captions])
    attention_mask = torch.tensor([[1] * len(c.input_ids) + [0] * (length - len(c.input_ids)) for c in captions])
    labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
    labels[:, :2] = IGNORED
    return image_states(captions, cache), input_ids, attention_mask, labels
