# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Contrastive loss over every pair of sides of a batch, whose rows are spread over processes.

A side is all texts, all images or all audio of a batch. Two rows with the same text, image or audio are not each
other's alternatives: what belongs to the one belongs to the other.

Shape legend: W processes, B rows of this one, R rows of the process with most, N = W * R, P the size of an embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from torch import distributed, nn

from .configuration_mm import INFO_NCE, SIGMOID
from .losses import scaled_similarities, summed_info_nce, summed_sigmoid
from .modalities import MODALITIES
from .ranks import num_processes, rank

TEXT = "text"


@dataclass(frozen=True)
class SharedSides:
    """
    Agreement of the processes on what is gathered.

    Args:
        names: sides that any process has, in the order of all
        rows: R
    """

    names: tuple[str, ...]
    rows: int


def gather(rows: torch.Tensor) -> torch.Tensor:
    """
    Return the rows of all processes, (W, R, ...), from those of this one, (R, ...), of the same shape in each.

    The gradient of a row is the sum of its gradients in all processes. `distributed.all_gather` alone would drop
    those of the other processes.
    """
    return GatherRows.apply(rows) if num_processes() > 1 else rows[None]


class GatherRows(torch.autograd.Function):
    """`all_gather` whose backward sums over processes."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(num_processes())]
        distributed.all_gather(gathered, rows.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        grad = grads[0].contiguous().clone()  # (W, R, ...)
        distributed.all_reduce(grad)
        return grad[rank()]


def shared_sides(present: Mapping[str, list[bool]], device: torch.device, is_sharded: bool = False) -> SharedSides:
    """
    Return the sides of all processes together.

    Args:
        present: which rows have a side, for each side of this process
        device: of the collectives
        is_sharded: whether weights are sharded over the processes

    Raises:
        ValueError: if weights are sharded and processes have different sides: they would wait for each other.
    """
    order = (TEXT, *MODALITIES)
    rows = len(next(iter(present.values())))
    own = torch.tensor([rows, *(int(any(present.get(name, []))) for name in order)], device=device)
    counts = gather(own).tolist()
    if is_sharded and len({tuple(each[1:]) for each in counts}) > 1:
        raise ValueError(
            "Weights are sharded over processes, whose batches hold different sides (texts, images, audio). Give "
            "every process the same ones: sort the examples into datasets by what they hold."
        )
    names = tuple(name for place, name in enumerate(order, 1) if any(each[place] for each in counts))
    return SharedSides(names, max(each[0] for each in counts))


@dataclass(frozen=True)
class RetrievalLoss:
    """
    Loss of a pair of sides.

    Args:
        kind: `"infonce"`, in both directions, or `"sigmoid"`
        scale: the inverse temperature, a scalar
        bias: of the sigmoid loss, a scalar
        sizes: weights of the loss by the number of leading dimensions that it is computed on, which are scaled to
            unit length again; `None` for all of them
    """

    kind: str
    scale: torch.Tensor
    bias: torch.Tensor | None = None
    sizes: Mapping[int | None, float] = field(default_factory=lambda: {None: 1.0})

    def __call__(self, own: Sequence[torch.Tensor], every: Sequence[torch.Tensor], pair: "Pair") -> torch.Tensor:
        """
        Return the mean over the rows of a pair of sides and the weighted mean over sizes, a scalar.

        Args:
            own: embeddings (R, P) of both sides in this process
            every: embeddings (N, P) of both sides in all processes
        """
        losses = []
        for size, weight in self.sizes.items():
            rows, others = ([shortened(each, size) for each in embeds] for embeds in (own, every))
            losses.append(weight * self.at_size(rows, others, pair))
        return torch.stack(losses).sum() / (sum(self.sizes.values()) * pair.count)

    def at_size(self, own: Sequence[torch.Tensor], every: Sequence[torch.Tensor], pair: "Pair") -> torch.Tensor:
        """Return the sum over rows; see `__call__`."""
        logits = scaled_similarities(own[0], every[1], self.scale, self.bias)  # (R, N)
        if self.kind == SIGMOID:
            return summed_sigmoid(logits, pair.is_match, pair.is_counted)
        back = scaled_similarities(own[1], every[0], self.scale)  # (R, N)
        both = [summed_info_nce(each, pair.targets, pair.is_candidate) for each in (logits, back)]
        return torch.stack(both).mean()


@dataclass(frozen=True)
class Pair:
    """
    Rows of two sides, of this process and of all.

    Args:
        count: number of rows, of all processes, that have both sides
        has_both: which have both, (N,) bool
        is_match: pairs of rows with the same content on one of the sides, (R, N) bool
        index: of the rows of this process among all, (R,)
    """

    count: int
    has_both: torch.Tensor
    is_match: torch.Tensor
    index: torch.Tensor

    @property
    def targets(self) -> torch.Tensor:
        """Return the index of the row that is each row's match, (R,), -100 for rows that lack a side."""
        return self.index.masked_fill(~self.has_both[self.index], -100)

    @property
    def is_counted(self) -> torch.Tensor:
        """Return the pairs of rows that have both sides, (R, N)."""
        return self.has_both & self.has_both[self.index][:, None]

    @property
    def is_candidate(self) -> torch.Tensor:
        """Return the rows among which a row's match is picked, (R, N): itself, and those that do not match it too."""
        is_itself = self.index[:, None] == torch.arange(len(self.has_both), device=self.index.device)
        return self.has_both & (is_itself | ~self.is_match)


def shortened(embeds: torch.Tensor, size: int | None) -> torch.Tensor:
    """Return the leading dimensions of embeddings (..., P), (..., size), at unit length."""
    return embeds if size is None else nn.functional.normalize(embeds[..., :size].float(), dim=-1).to(embeds.dtype)


def contrastive_loss(
    embeds: Mapping[str, torch.Tensor],
    present: Mapping[str, list[bool]],
    fingerprints: Mapping[str, torch.Tensor],
    shared: SharedSides,
    loss: RetrievalLoss,
) -> torch.Tensor:
    """
    Return the mean of the losses of all pairs of sides that share enough rows.

    Each process compares its rows with those of all. Its loss is weighted so that the mean over processes is that of
    the whole batch, as data parallelism takes the mean of gradients.

    Args:
        embeds: (B, P) of each side of this process
        present: which rows have a side
        fingerprints: (B,) of each side, equal for rows with the same content
        shared: of [`shared_sides`]

    Raises:
        ValueError: if no pair of sides shares a row, or with InfoNCE two rows.
    """
    like = next(iter(embeds.values()))
    own = torch.stack([padded(embeds.get(name, like[:0]), shared.rows) for name in shared.names])  # (sides, R, P)
    flags = [[*present.get(name, []), *[False] * shared.rows][: shared.rows] for name in shared.names]
    contents = torch.zeros(own.shape[:2], dtype=torch.int64, device=own.device)  # (sides, R)
    for side, name in enumerate(shared.names):
        if name in fingerprints:
            contents[side, : len(fingerprints[name])] = fingerprints[name].to(own.device)
    # One gather for all sides, so that every process takes part in its backward, whatever sides it has.
    every = gather_sides(own)  # (sides, N, P)
    is_there = gather_sides(torch.tensor(flags, device=own.device))  # (sides, N)
    is_same = contents[:, :, None] == gather_sides(contents)[:, None]  # (sides, R, N)
    there = is_there.tolist()
    index = torch.arange(shared.rows, device=own.device) + rank() * shared.rows  # (R,)
    losses = []
    for sides in combinations(range(len(shared.names)), 2):
        one, other = sides
        count = sum(first and second for first, second in zip(there[one], there[other], strict=True))
        if count < (2 if loss.kind == INFO_NCE else 1):
            continue
        pair = Pair(count, is_there[one] & is_there[other], is_same[one] | is_same[other], index)
        losses.append(loss([own[side] for side in sides], [every[side] for side in sides], pair))
    if not losses:
        raise too_few({name: sum(rows) for name, rows in zip(shared.names, there, strict=True)})
    return torch.stack(losses).mean() * num_processes()


def gather_sides(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of all processes, (sides, N, ...), from those of this one, (sides, R, ...)."""
    return gather(rows).transpose(0, 1).flatten(1, 2)


def padded(embeds: torch.Tensor, rows: int) -> torch.Tensor:
    """Return embeddings (B, P) padded with zeros to (rows, P)."""
    return nn.functional.pad(embeds, (0, 0, 0, rows - len(embeds)))


def too_few(counts: Mapping[str, int]) -> ValueError:
    """Return the error for a batch without a pair of sides to compare, from the number of rows of each side."""
    listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
    if len(counts) < 2:
        return ValueError(
            f"The loss of retrieval compares two of {', '.join((TEXT, *MODALITIES))}; the batch has rows: {listed}. "
            "Pass a second side. Media whose placeholders are in the text belong to the text: leave the placeholders "
            "out to compare them."
        )
    return ValueError(
        f"InfoNCE needs at least 2 rows with the same two sides, as each match is picked among the others; the batch "
        f"has rows: {listed}. Use larger batches, drop the last incomplete one (dataloader_drop_last=True), or set "
        "config.retrieval_loss='sigmoid', which judges each pair by itself."
    )
