# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Several data sets as one, each with its share."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .reading import ChatDataset, ChatRow, ChatStream, Epoch


def mix(
    datasets: Sequence[ChatDataset | ChatStream], weights: Sequence[float], seed: int = 0
) -> "ChatMixture | ChatStream":
    """
    Data sets mixed by weights, the same way for the same seed.

    At random access an epoch has as many samples as the data sets have together, of which each gives its weight's
    share exactly (to the nearest whole number). A data set with a larger share than samples repeats them; one with a
    smaller share goes on in the next epoch where it stopped, so that all of it is seen in time.

    Streams are mixed by `datasets.interleave_datasets`, each next sample drawn by the weights: an epoch ends when
    each stream has been read to its end at least once, and shorter ones start over.

    Args:
        datasets: all at random access, or all streams.
        weights: one a data set, positive; only their proportions count.

    Raises:
        ValueError: for weights that are no such numbers, and for data sets of both kinds.
    """
    check_weights(datasets, weights)
    streams = [dataset for dataset in datasets if isinstance(dataset, ChatStream)]
    if not streams:
        return ChatMixture(datasets, weights, seed)
    if len(streams) < len(datasets):
        raise ValueError(
            f"{len(streams)} of {len(datasets)} data sets are streams; load all of them with `streaming=True`, or none"
        )
    from datasets import interleave_datasets

    shares = [weight / sum(weights) for weight in weights]
    return ChatStream(
        interleave_datasets(
            [stream.samples for stream in streams],
            probabilities=shares,
            seed=seed,
            stopping_strategy="all_exhausted",
        )
    )


def check_weights(datasets: Sequence, weights: Sequence[float]) -> None:
    if len(datasets) != len(weights) or not datasets:
        raise ValueError(f"{len(datasets)} data sets and {len(weights)} weights were given; give one weight for each")
    for number, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"Weight {number} is {weight}; weights are positive, leave out what is not wanted")


def shares_of(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to `weights` that add up to `total`: the largest remainders are rounded up."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda index: (counts[index] - exact[index], index))
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts


class ChatMixture(torch.utils.data.Dataset):
    """What `mix` makes of data sets at random access; items are `ChatRow`, whose epoch is their own data set's."""

    def __init__(self, datasets: Sequence[Any], weights: Sequence[float], seed: int = 0):
        self.datasets = list(datasets)
        self.seed = seed
        self.counts = shares_of(sum(map(len, self.datasets)), weights)
        self._epoch = Epoch()

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, index: int) -> ChatRow:
        index, epoch = int(index), self._epoch.get()
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} samples in the mixture, and none has the number {index}")
        sources, ranks = plan(tuple(self.counts), self.seed, epoch)
        source = int(sources[index])
        dataset = self.datasets[source]
        passes, place = divmod(epoch * self.counts[source] + int(ranks[index]), len(dataset))
        return replace(dataset[int(order_of(len(dataset), self.seed, source, passes)[place])], epoch=passes)

    def set_epoch(self, epoch: int) -> None:
        """Told by the `Trainer` before each pass."""
        self._epoch.set(epoch)


@lru_cache(maxsize=4)
def plan(counts: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """For each place of an epoch: which data set it comes from, and the how-manieth of that data set it is."""
    sources = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng([seed, epoch]).shuffle(sources)
    ranks = np.empty_like(sources)
    for source, count in enumerate(counts):
        ranks[sources == source] = np.arange(count)
    return sources, ranks


@lru_cache(maxsize=64)
def order_of(length: int, seed: int, source: int, passes: int) -> np.ndarray:
    """The order in which a data set is gone through in one of its passes."""
    return np.random.default_rng([seed, source, passes]).permutation(length)
