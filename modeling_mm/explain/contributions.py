# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Contributions of the modalities to an answer or a class, by Shapley values over all their combinations."""

import itertools
import math
from dataclasses import dataclass

import torch

from ..modalities import MODALITIES
from .places import blank_media
from .target import Target

# Shape legend: W words, n modalities of an example, text included.

TEXT = "text"


@dataclass(frozen=True)
class Contributions:
    """
    Share of each modality in the probability of each word or of a class, or in the similarity of a match.

    Args:
        values: (W,) for each modality of the example; they sum to `full - base`. Negative if the modality speaks
            against the word.
        base: (W,) probabilities of the words without any modality
        full: (W,) probabilities of the words with all of them
        measure: what is shared out
    """

    values: dict[str, torch.Tensor]
    base: torch.Tensor
    full: torch.Tensor
    measure: str = "the probability of a word"


def modality_contributions(target: Target) -> Contributions:
    """
    Return the exact [Shapley values](https://arxiv.org/abs/1705.07874) of the modalities of an example.

    Every combination of modalities is tried, 2 for one, 8 for three. Media that take no part are blank, as in
    [`blank_media`], and the words of the prompt are masked; the words of the answer before the one in question stay.

    Example:
        >>> found = modality_contributions(make_target(model, processor, prompt))
        >>> {name: values.tolist() for name, values in found.values.items()}
        {'image': [0.61], 'text': [0.12]}
    """
    blank = blank_media(target.media)
    owners = {name: modality.name for modality in MODALITIES.values() for name in modality.inputs if name in blank}
    players = list(dict.fromkeys(owners.values())) + ([TEXT] if target.prompt_words else [])
    takes_part = torch.tensor(list(itertools.product((False, True), repeat=len(players))))  # (2 ** n, n)
    media = {name: tensor.expand(len(takes_part), *tensor.shape[1:]) for name, tensor in target.media.items()}
    for name, filler in blank.items():
        is_absent = ~takes_part[:, players.index(owners[name])].to(filler.device)
        media[name] = torch.where(is_absent.view(-1, *[1] * (filler.ndim - 1)), filler, media[name])
    has_text = takes_part[:, players.index(TEXT)] if TEXT in players else torch.ones(len(takes_part), dtype=torch.bool)
    masks = target.without_words(~has_text[:, None].expand(-1, len(target.prompt_words)))
    worth = target.probabilities(target.scores_in_chunks(media, masks)).cpu()  # (2 ** n, W)
    values = {name: shapley(takes_part, worth, number) for number, name in enumerate(players)}
    return Contributions(values, worth[0], worth[-1], target.measure)


def shapley(takes_part: torch.Tensor, worth: torch.Tensor, player: int) -> torch.Tensor:
    """
    Return the Shapley value of a player, (W,).

    Args:
        takes_part: (2 ** n, n) bool, all combinations of players, in the order of binary numbers
        worth: (2 ** n, W) of each combination
    """
    count = takes_part.shape[1]
    total = torch.zeros_like(worth[0])
    for row, members in enumerate(takes_part):
        if members[player]:
            others = int(members.sum()) - 1
            weight = math.factorial(others) * math.factorial(count - others - 1) / math.factorial(count)
            total += weight * (worth[row] - worth[row - 2 ** (count - 1 - player)])
    return total
