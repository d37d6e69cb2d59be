# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Several datasets as one, each with its share."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .chat_row import ChatRow
from .reading import ChatDataset, ChatStream, shared_epoch


def mix(
    datasets: Sequence[ChatDataset | ChatStream], weights: Sequence[float], seed: int = 0
) -> "ChatMixture | ChatStream":
    """
    Mix datasets by weights, in the same way for the same seed.

    At random access an epoch has as many examples as the datasets have together, and each dataset gives exactly its
    share, rounded to a whole number. A dataset with a larger share than examples repeats them. One with a smaller
    share continues in the next epoch where it stopped, so that all of it is used in time.

    Streams are mixed by `datasets.interleave_datasets`, which draws each example by the weights. An epoch ends when
    each stream has been read to its end at least once; shorter ones restart.

    Args:
        datasets: all at random access, or all streams.
        weights: one for each dataset, positive; only their proportions count.

    Raises:
        ValueError: if the weights are wrong, or datasets of both kinds are given.

    Example:
        >>> mixture = mix([load_chats("captions.jsonl"), load_chats("speech.jsonl")], [3, 1])
    """
    if len(datasets) != len(weights) or not datasets:
        raise ValueError(f"{len(datasets)} datasets and {len(weights)} weights were given. Give one weight for each.")
    for number, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"Weight {number} is {weight}, but weights must be positive. Leave out unused datasets.")
    streams = [dataset for dataset in datasets if isinstance(dataset, ChatStream)]
    if not streams:
        return ChatMixture(datasets, weights, seed)
    if len(streams) < len(datasets):
        raise ValueError(
            f"{len(streams)} of {len(datasets)} datasets are streams. Load all of them with `streaming=True`, or none."
        )
    from datasets import interleave_datasets

    return ChatStream(
        interleave_datasets(
            [stream.samples for stream in streams],
            probabilities=[weight / sum(weights) for weight in weights],
            seed=seed,
            stopping_strategy="all_exhausted",
        )
    )


def shares_of(total: int, weights: Sequence[float]) -> list[int]:
    """Return whole numbers in proportion to `weights` with the sum `total`; the largest remainders are rounded up."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda index: (counts[index] - exact[index], index))
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts


class ChatMixture(torch.utils.data.Dataset):
    """Mixture of datasets at random access, see [`mix`]. The epoch of a row is the pass over its own dataset."""

    def __init__(self, datasets: Sequence[Any], weights: Sequence[float], seed: int = 0):
        self.datasets = list(datasets)
        self.seed = seed
        self.counts = shares_of(sum(map(len, self.datasets)), weights)
        self._epoch = shared_epoch()

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> ChatRow:
        index, epoch = int(index), int(self._epoch)
        if not -len(self) <= index < len(self):
            raise IndexError(f"Example {index} is out of range: the mixture has {len(self)} examples.")
        sources, ranks = plan(tuple(self.counts), self.seed, epoch)
        source = int(sources[index])
        dataset = self.datasets[source]
        passes, place = divmod(epoch * self.counts[source] + int(ranks[index]), len(dataset))
        return replace(dataset[int(order_of(len(dataset), self.seed, source, passes)[place])], epoch=passes)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. The `Trainer` calls it before each pass."""
        self._epoch.fill_(epoch)


@lru_cache(maxsize=4)
def plan(counts: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the dataset of each example of an epoch, and its index within that dataset's share."""
    sources = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng([seed, epoch]).shuffle(sources)
    ranks = np.empty_like(sources)
    for source, count in enumerate(counts):
        ranks[sources == source] = np.arange(count)
    return sources, ranks


@lru_cache(maxsize=64)
def order_of(length: int, seed: int, source: int, passes: int) -> np.ndarray:
    """Return the order of a dataset in one of its passes."""
    return np.random.default_rng([seed, source, passes]).permutation(length)
