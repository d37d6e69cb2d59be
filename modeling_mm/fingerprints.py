# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Fingerprints of the rows of a batch: equal rows have equal ones, in the batches of all processes.

A fingerprint is a sum, over the values of a row, of 64 bits that depend on a value and its place. Padding with zeros
adds nothing to it, so that rows of batches with other padding compare. It is computed where the batch lies.
"""

from collections.abc import Sequence

import torch

# Shape legend: B rows, L text tokens, F values of a row.

MIXERS = (-4658895280553007687, -7723592293110705685)  # of splitmix64
STEPS = (-7046029254386353131, -5840758589994634535, 3935559000370003845, 2685821657736338717)  # of an index, by axis
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
VALUES_AT_ONCE = 2**22  # 32 MiB of their 64 bits


def mix(values: torch.Tensor) -> torch.Tensor:
    """Return 64 bits for each integer, of which every one depends on all bits of it."""
    for shift, mixer in zip((30, 27), MIXERS, strict=True):
        values = (values ^ (values >> shift)) * mixer
    return values ^ (values >> 31)


def places(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return 64 bits for each place of a row, (F,), the same in rows that are longer on some axis."""
    total = torch.zeros((1,) * len(shape), dtype=torch.int64, device=device)
    for axis, (size, step) in enumerate(zip(reversed(shape), STEPS, strict=False), 1):
        index = torch.arange(size, device=device) * step
        total = total + index.reshape(-1, *(1,) * (axis - 1))
    return mix(total.reshape(-1))


@torch.no_grad()
def media_fingerprints(values: torch.Tensor) -> torch.Tensor:
    """
    Return a fingerprint of each row of media, (B,).

    Args:
        values: (B, ...) of any type, up to four axes a row, padded with zeros at the end of an axis
    """
    keys = places(values.shape[1:], values.device)
    found = []
    for rows in values.flatten(1).split(max(1, VALUES_AT_ONCE // max(1, len(keys)))):  # (b, F)
        bits = rows.contiguous().view(INTEGERS[rows.element_size()]).long()
        found.append((mix(bits ^ keys) * (bits != 0)).sum(-1))
    return torch.cat(found)


@torch.no_grad()
def text_fingerprints(tokens: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
    """
    Return a fingerprint of each text, (B,), whatever its padding.

    Args:
        tokens: (B, L) ids
        is_real: (B, L) bool
    """
    position = mix(is_real.cumsum(-1))  # (B, L)
    return (mix(tokens.long() ^ position) * is_real).sum(-1)
