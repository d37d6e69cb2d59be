# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Several short examples in one row, which see nothing of each other.

Padded rows of unequal length spend their time on padding. Packed ones hold examples behind each other; their
`position_ids` start again at 0 with each, by which the model keeps them and their media apart.

Shape legend: L text tokens, I items of a row (images, audio windows).
"""

from collections.abc import Mapping, Sequence

import torch

from ..batching import IGNORED, TEXT_INPUTS, fill_media, mask_of, stack_padded
from ..modalities import MODALITIES

Row = Mapping[str, torch.Tensor]


def pack_rows(rows: Sequence[Row], length: int) -> list[dict[str, torch.Tensor]]:
    """
    Pack rows into fewer of at most `length` tokens; a longer one stays alone.

    Args:
        rows: inputs of the model without their batch dimension, with `labels` of tokens

    Returns:
        rows with the text and the media of their examples, and `position_ids` (L,)

    Raises:
        ValueError: for a row whose labels are not of its tokens.
    """
    for number, row in enumerate(rows):
        if row["labels"].shape != row["input_ids"].shape:
            raise ValueError(
                f"Row {number} has labels of shape {tuple(row['labels'].shape)} for input_ids of shape "
                f"{tuple(row['input_ids'].shape)}, but only answers in tokens can be packed. Leave pack_length out."
            )
    return [join_rows([rows[number] for number in group]) for group in first_fit(list(map(text_size, rows)), length)]


def text_size(row: Row) -> int:
    return len(row["input_ids"])


def first_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Return groups of indices, the longest first, each into the first group whose sizes stay within `length`."""
    groups: list[list[int]] = []
    left: list[int] = []
    for number in sorted(range(len(sizes)), key=lambda each: -sizes[each]):
        place = next((i for i, room in enumerate(left) if room >= sizes[number]), None)
        if place is None:
            groups.append([])
            left.append(length)
            place = len(groups) - 1
        groups[place].append(number)
        left[place] -= sizes[number]
    return groups


def join_rows(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Return one row of several examples. The first token of each has no target, as in a row by itself."""
    rows = [with_positions(row) for row in rows]
    joined = {name: torch.cat([row[name] for row in rows]) for name in TEXT_INPUTS if name in rows[0]}
    for modality in MODALITIES.values():
        for name in (*modality.inputs, modality.states):
            if any(name in row for row in rows):
                mask_name = mask_of(modality, name)
                values, masks = fill_media(rows, name, mask_name, modality.frame_axis(name))
                joined[name] = stack_padded([item for items in values for item in items])  # (I, ...)
                joined[mask_name] = stack_padded([item for items in masks for item in items])
    return joined


def with_positions(row: Row) -> dict[str, torch.Tensor]:
    """Return a row with `position_ids`, which count its real tokens, and without a target for its first token."""
    mask = row["attention_mask"].long()
    labels = row["labels"].clone()
    labels[0] = IGNORED
    seen = mask.cumsum(-1)
    # Masked tokens at the end are not at 0, where the next example starts.
    positions = torch.where(seen == seen[-1], (seen - 1).clamp(min=1 - mask), (seen - 1).clamp(min=0))
    return {**row, "labels": labels, "position_ids": positions}
