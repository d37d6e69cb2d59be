# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Batches of examples with similar media, so that padding is small."""

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import torch
from torch.utils.data import Sampler

from ..data.chat_row import Message, media_parts, to_row, turn_text
from ..modalities import MODALITIES

# Batches that are sorted together: enough to find similar examples, few enough to keep batches random.
BATCHES_A_POOL = 32


class MediaLengthGroupedSampler(Sampler[int]):
    """
    Random order of all indices in which the examples of a batch have similar sizes.

    Random pools of examples are sorted by size and cut into batches, which are shuffled. The same seed and epoch give
    the same order in every process.

    Args:
        dataset: dataset at random access.
        batch_size: examples in a batch of all processes together.
        size_of: function that returns the size of an example, to sort by.
        seed: seed of the order.

    Example:
        >>> sampler = MediaLengthGroupedSampler(chats, batch_size=8, size_of=media_size)
    """

    def __init__(self, dataset: Sized, batch_size: int, size_of: Callable[[Any], Any], seed: int = 0):
        self.dataset, self.batch_size, self.size_of, self.seed = dataset, batch_size, size_of, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self), generator=generator).tolist()
        pool_size = self.batch_size * BATCHES_A_POOL
        for start in range(0, len(order), pool_size):
            pool = sorted(order[start : start + pool_size], key=lambda i: self.size_of(self.dataset[i]))  # type: ignore[index]
            # A last batch that is not full stays last: the loader cuts batches by counting.
            full = len(pool) // self.batch_size
            for number in [*torch.randperm(full, generator=generator).tolist(), full]:
                yield from pool[number * self.batch_size : (number + 1) * self.batch_size]


def media_size(
    example: Any, parts_of: Callable[[Sequence[Message]], list[dict[str, Any]]] = media_parts
) -> tuple[int, ...]:
    """
    Return the number of media of each modality, and the characters of text.

    Args:
        example: a row, or its dict.
        parts_of: the media parts of messages that count.
    """
    row = to_row(example)
    kinds = [part["type"] for part in parts_of(row.messages)]
    return *map(kinds.count, MODALITIES), sum(len(turn_text(turn)) for turn in row.messages)
