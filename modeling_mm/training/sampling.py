# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Batches of samples that are alike in their media, so that little of a batch is padding."""

from collections.abc import Callable, Iterator, Sized
from typing import Any

import torch
from torch.utils.data import Sampler

from ..data.chat_row import ChatRow, media_parts, to_row, turn_text

# How many batches are sorted together: enough to find alike samples, few enough that batches still differ by chance.
BATCHES_A_POOL = 32


class MediaLengthGroupedSampler(Sampler[int]):
    """
    All indices in random order, arranged so that a batch's samples are of about one size.

    Pools of some batches are drawn at random, sorted by size within, cut into batches, and these shuffled. The same
    seed and epoch give the same order in every process.

    Args:
        dataset: at random access
        batch_size: of all processes together
        size_of: a sample -> something to sort by
        seed: other orders for another seed
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


def media_size(sample: Any) -> tuple[int, int, int]:
    """How many pictures and sounds a chat has, and how long its text is, in characters."""
    row = sample if isinstance(sample, ChatRow) else to_row(sample)
    kinds = [part["type"] for part in media_parts(row.messages)]
    return kinds.count("image"), kinds.count("audio"), sum(len(turn_text(turn)) for turn in row.messages)
