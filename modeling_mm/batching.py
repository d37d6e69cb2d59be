# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Batches for our pipelines, of rows that the processor has made one by one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import pad

# The inputs of rows whose second dimension counts images or windows; of all others it counts tokens.
MEDIA_INPUTS = ("pixel_values", "image_mask", "input_features", "input_values", "feature_attention_mask")

# Shape legend: B rows, L tokens, I images or windows of a row.


def collate_rows(rows: list[Mapping[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """
    Batches rows that the processor has made one by one.

    Tokens are padded on the left. Images and windows are padded with absent ones, so that rows with media and rows
    without go together. What is no tensor becomes a list.
    """
    batch: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if not any(isinstance(value, torch.Tensor) for value in values):
            batch[name] = values
        elif name in MEDIA_INPUTS:
            batch[name] = pad_media(name, values)
        else:
            batch[name] = pad_tokens(values, pad_token_id if name == "input_ids" else 0)
    return batch


def pad_tokens(values: list[torch.Tensor], padding: int) -> torch.Tensor:
    """(1, L) each -> (B, max(L)), padded on the left."""
    longest = max(value.shape[1] for value in values)
    return torch.cat([pad(value, (longest - value.shape[1], 0), value=padding) for value in values])


def pad_media(name: str, values: list[torch.Tensor | None]) -> torch.Tensor:
    """
    (1, I, ...) each, or None -> (B, max(I), ...), zeros where there is nothing; sounds are padded in time too.

    Raises:
        ValueError: for pictures of different sizes.
    """
    present = [value for value in values if value is not None]
    sizes = {tuple(value.shape[2:]) for value in present}
    if name == "pixel_values" and len(sizes) > 1:
        raise ValueError(
            f"the pictures of a batch must have one size, got {sorted(sizes)} from the image processor; give it a "
            "fixed `size`, or leave `batch_size` at 1"
        )
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in present), strict=True)]
    batch = present[0].new_zeros(len(values), *shape)
    for row, value in zip(batch, values, strict=True):
        if value is not None:
            row[tuple(slice(size) for size in value.shape[1:])] = value[0]
    return batch
