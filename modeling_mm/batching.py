# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Batches of rows that differ in length, in media, and in the size of their media.

Shape legend: B rows, L text tokens, I items of a row (images, audio windows), T frames, samples or encoder tokens.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from .modalities import MODALITIES, Modality

IGNORED = -100  # the label of a token that is not learned
# Text inputs with what pads them and, for rows without one, what fills them; `input_ids` get the padding token.
TEXT_INPUTS = {"input_ids": (0, 0), "attention_mask": (0, 1), "labels": (IGNORED, IGNORED), "assistant_masks": (0, 0)}
POSITIONS = "position_ids"
TEXT_INPUTS |= {"masked_targets": (IGNORED, IGNORED), POSITIONS: (0, 0)}


def pad_batch(
    rows: Sequence[Mapping[str, Any]],
    pad_token_id: int,
    padding_side: str = "right",
    min_length: int = 0,
    pad_to_multiple_of: int = 1,
) -> dict[str, torch.Tensor]:
    """
    Pad rows to a batch: text to the longest row, media to the most items of a row and to the longest of them.

    Rows with and without media mix freely. Padding is marked in `attention_mask` and in the masks of the media, so
    that it never enters an encoder. A row without `attention_mask` is all real; one without `labels` learns nothing.

    Args:
        rows: inputs of the model without their batch dimension; `labels` may be a class, a scalar.
        padding_side: of the text, `"right"` for training, `"left"` for generation.
        min_length: the least length of the text, for batches of one shape.

    Raises:
        ValueError: for an input that cannot be padded, and for media of sizes that cannot share a batch.
    """
    if padding_side not in ("right", "left"):
        raise ValueError(f"padding_side must be 'right' or 'left', got {padding_side!r}.")
    tensors = [{name: torch.as_tensor(value) for name, value in row.items()} for row in rows]
    check_names(tensors)
    length = max((len(row["input_ids"]) for row in tensors if "input_ids" in row), default=0)
    length = math.ceil(max(length, min_length) / pad_to_multiple_of) * pad_to_multiple_of
    batch = {}
    for name, (padding, filling) in TEXT_INPUTS.items():
        if any(name in row for row in tensors):
            if name == POSITIONS:
                check_in_all(tensors, name)
            padding = pad_token_id if name == "input_ids" else padding
            values = [row[name] if name in row else torch.full_like(row["input_ids"], filling) for row in tensors]
            batch[name] = pad_text(values, padding, padding_side, length)
    for modality in MODALITIES.values():
        for name in (*modality.inputs, modality.states):
            if any(name in row for row in tensors):
                mask_name = mask_of(modality, name)
                values, masks = fill_media(tensors, name, mask_name, modality.frame_axis(name))
                batch[name], batch[mask_name] = stack_padded(values), stack_padded(masks)
    return batch


def mask_of(modality: Modality, name: str) -> str:
    return modality.states_mask if name == modality.states else modality.mask


def check_in_all(rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """Raise a `ValueError` for an input that some rows lack, in which nothing can stand in for it."""
    if (lacking := next((number for number, row in enumerate(rows) if name not in row), None)) is not None:
        having = next(number for number, row in enumerate(rows) if name in row)
        raise ValueError(
            f"Row {lacking} holds no {name}, but row {having} does. Pass them for all rows of a batch, as packed rows "
            "have them, or for none."
        )


def check_names(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise a `ValueError` for an input that would otherwise be left out of the batch."""
    known = {*TEXT_INPUTS, *(name for modality in MODALITIES.values() for name in modality.model_inputs)}
    for number, row in enumerate(rows):
        if unknown := sorted(set(row) - known):
            raise ValueError(
                f"Row {number} holds {', '.join(unknown)}, which cannot be padded; known are "
                f"{', '.join(sorted(known))}. Remove the column, or pad it in a collator of your own."
            )


def pad_text(values: Sequence[torch.Tensor], padding: int, side: str, length: int) -> torch.Tensor:
    """Pad (L_b,) each to (B, length); stack a class for each row to (B,)."""
    if all(value.ndim == 0 for value in values):
        return torch.stack(list(values))
    padded = pad_sequence(list(values), True, padding, side)
    more = length - padded.shape[1]
    return pad(padded, (more, 0) if side == "left" else (0, more), value=padding)


def fill_media(
    rows: Sequence[Mapping[str, torch.Tensor]], name: str, mask_name: str, frame_axis: int | None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """
    Return each row's items of one input, (I, ...), and their mask, (I,) or (I, T); zero items for rows without.

    Raises:
        ValueError: if items differ in more than their length in time.
    """
    number, first = next((number, row) for number, row in enumerate(rows) if name in row)
    example = first[name]
    time = None if frame_axis is None else frame_axis - 1  # rows have no batch yet
    fixed = [dimension for dimension in range(1, example.ndim) if dimension != time]

    def mask_or_ones(row: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if mask_name in row:
            return row[mask_name]
        if time is None:
            return torch.ones(len(row[name]), dtype=torch.bool, device=example.device)
        return torch.ones(len(row[name]), row[name].shape[time], dtype=torch.long, device=example.device)

    values, masks = [], []
    for other, row in enumerate(rows):
        row = row if name in row else {name: example[:0], mask_name: mask_or_ones(first)[:0]}
        shape = row[name].shape
        if len(shape) != example.ndim or any(shape[i] != example.shape[i] for i in fixed):
            raise ValueError(
                f"{name} of row {other} has shape {tuple(shape)}, that of row {number} {tuple(example.shape)}; they "
                "cannot share a batch. Give the processor one fixed size, or use batches of one row."
            )
        values.append(row[name])
        masks.append(mask_or_ones(row))
    return values, masks


def stack_padded(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack tensors that may differ in size, padded with zeros to the largest in each dimension: (B, ...)."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    stacked = tensors[0].new_zeros(len(tensors), *shape)
    for slot, tensor in zip(stacked, tensors, strict=True):
        slot[tuple(slice(size) for size in tensor.shape)] = tensor
    return stacked


def pad_rows(items: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Deal items (N, ...) out to B rows by their `counts`, padded with zeros: (B, max(counts), ...)."""
    if len(set(counts)) == 1:  # not copied
        return items.unflatten(0, (len(counts), counts[0]))  # (N, ...) -> (B, N / B, ...)
    return stack_padded(items.split(list(counts)))


def first_row(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a batch of one row as `pad_batch` takes it, without its batch dimension."""
    return {name: tensor[0] for name, tensor in inputs.items()}


def hide(mask: Any, input_ids: Any, hidden_ids: Sequence[int]) -> Any:
    """Return an attention mask (B, L), a tensor, an array or lists, with 0 where a token is among `hidden_ids`."""
    if isinstance(mask, list):
        rows = zip(mask, input_ids, strict=True)
        return [[0 if token in hidden_ids else kept for kept, token in zip(*row, strict=True)] for row in rows]
    for token_id in hidden_ids:
        mask = mask * (input_ids != token_id)
    return mask


def convert(tensor: torch.Tensor, return_tensors: Any) -> Any:
    """Return a tensor in the requested form: a tensor, an array, or for None a list of one array a row."""
    if return_tensors is None:
        return list(tensor.cpu().numpy())
    return tensor if getattr(return_tensors, "value", return_tensors) == "pt" else tensor.cpu().numpy()
