# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Faithfulness of explanations: deletion and insertion curves.

If the places with the greatest weight are what an answer depends on, its probability falls fast when they are deleted
first, and rises fast when they are inserted first into blank media ([RISE](https://arxiv.org/abs/1806.07421)).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..data.chat_row import ChatRow
from ..utils import markdown_table, show_progress
from .explanation import METHODS, Explanation, check_method, explain_target
from .places import Places, blank_media, places_of
from .target import Target, make_target

# Shape legend: W words, K places, n + 1 points of a curve.

POINTS = 10  # steps of a curve
RANDOM = "random"  # weights drawn at random: what a method must beat


@dataclass(frozen=True)
class Curves:
    """
    Probabilities of words while places are deleted and inserted, the weightiest first.

    Args:
        shares: (n + 1,) of the places of each modality that are deleted or inserted, from 0 to 1
        deletion: (n + 1, W); a small area is good
        insertion: (n + 1, W); a large area is good
    """

    shares: torch.Tensor
    deletion: torch.Tensor
    insertion: torch.Tensor

    @property
    def areas(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Areas (W,) under deletion and insertion."""
        deletion, insertion = (torch.trapezoid(curve.T, self.shares) for curve in (self.deletion, self.insertion))
        return deletion, insertion


def faithfulness(target: Target, places: Places, weights: torch.Tensor, points: int = POINTS) -> Curves:
    """
    Return the deletion and insertion curves of weights (W, K).

    Args:
        target: words or a class whose probability is followed
        places: of its media
        weights: of the places for each word
        points: steps of a curve; the same share of each modality's places is deleted in a step
    """
    shares = torch.arange(points + 1) / points
    early = earliest(places, weights)  # (W, K), from 0 to 1
    deleted = early[:, None] <= shares[None, :, None]  # (W, n + 1, K)
    blank = blank_media(target.media)
    curves = []
    for hidden in (deleted, ~deleted):
        rows = [
            target.probabilities(target.scores_in_chunks(places.hide(some, target.media, blank)))[:, word]
            for word, some in enumerate(hidden)
        ]
        curves.append(torch.stack(rows, dim=1).cpu())
    return Curves(shares, *curves)


def earliest(places: Places, weights: torch.Tensor) -> torch.Tensor:
    """Return the share of a modality's places (W, K) at which each is deleted, the weightiest first."""
    parts = [weights[:, : places.patches], weights[:, places.patches :]]
    orders = [part.argsort(dim=1, descending=True, stable=True).argsort(dim=1) for part in parts]
    # A little less than the share itself, which is rounded.
    return torch.cat([(order + 1) / max(1, order.shape[1]) - 1e-6 for order in orders], dim=1)


def weights_of(explanation: Explanation) -> torch.Tensor:
    """Return the weights (W, K) of an explanation's places."""
    parts = [part.flatten(1) for part in (explanation.patches, explanation.moments) if part is not None]
    return torch.cat(parts, dim=1)


@dataclass
class MethodFigures:
    """
    Figures of one method over examples.

    Args:
        deletion, insertion: areas of all words
        seconds: time that each explanation took
    """

    deletion: list[float] = field(default_factory=list)
    insertion: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def compare_methods(
    model: Any,
    processor: Any,
    rows: Sequence[ChatRow],
    methods: Sequence[str] = tuple(METHODS),
    points: int = POINTS,
    max_new_tokens: int = 32,
    progress: str | None = None,
) -> dict[str, MethodFigures]:
    """
    Measure methods on examples, beside weights drawn at random.

    Args:
        rows: examples with media, of which the model's answers are explained
        points: steps of a curve
        progress: text beside a progress bar; none without it

    Raises:
        ValueError: without examples, for an unknown method, and for one that the model does not allow.
    """
    if not rows:
        raise ValueError("There are no examples to explain. Give at least one with an image or audio.")
    for method in methods:
        check_method(model, method)
    figures = {name: MethodFigures() for name in (*methods, RANDOM)}
    generator = torch.Generator().manual_seed(0)
    for row in show_progress(rows, desc=progress, disable=progress is None):
        target = make_target(model, processor, row.prompt, max_new_tokens=max_new_tokens)
        places = places_of(model, target.media)
        for name, own in figures.items():
            start = time.perf_counter()
            if name == RANDOM:
                weights = torch.rand(len(target.words), places.count, generator=generator)
            else:
                weights = weights_of(explain_target(target, name, places))
            own.seconds.append(time.perf_counter() - start)
            deletion, insertion = faithfulness(target, places, weights, points).areas
            own.deletion += deletion.tolist()
            own.insertion += insertion.tolist()
    return figures


def methods_markdown(figures: dict[str, MethodFigures]) -> str:
    """Return a table with a row for each method: the means of its areas, and its seconds an example."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    cells = [
        (name, f"{mean(own.deletion):.3f}", f"{mean(own.insertion):.3f}",
         f"{mean(own.insertion) - mean(own.deletion):.3f}", f"{mean(own.seconds):.2f}")
        for name, own in figures.items()
    ]  # fmt: skip
    return markdown_table(("method", "deletion (low)", "insertion (high)", "difference", "seconds"), cells)
