# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""From conversations to training rows, and from rows to batches, for the stock `Trainer`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data.chat_row import ChatRow, to_row
from .augmentation import Augmentation, ModalityDropout

# Shape legend: B rows, L text tokens, I images a row, A audio windows a row, T frames or samples.

IGNORED = -100  # the label of a token that is not learned
Row = dict[str, torch.Tensor]

# Media inputs and the mask that says which of their items (or frames) are real.
MASK_OF = {
    "pixel_values": "image_mask",
    "input_features": "feature_attention_mask",
    "input_values": "feature_attention_mask",
}


def encode_conversation(processor: Any, messages: list[dict[str, Any]]) -> Row:
    """
    One conversation as a training row: the processor's tensors without their batch dimension, and `labels`.

    Only what the assistant says, its end token included, is to be learned.

    Returns:
        `input_ids`, `attention_mask`, `labels` (L,); with pictures `pixel_values` (I, 3, H, W), `image_mask` (I,);
        with sounds `input_features` or `input_values` (A, ...), `feature_attention_mask` (A, T).

    Raises:
        ValueError: where the assistant says nothing, so that there is nothing to learn.
    """
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
    )
    row = {name: tensor[0] for name, tensor in inputs.items()}
    spoken = row.pop("assistant_masks").bool()
    if not bool(spoken.any()):
        raise ValueError(f"The assistant says nothing in this conversation, so there is nothing to learn: {messages}")
    row["labels"] = row["input_ids"].masked_fill(~spoken, IGNORED)
    return row


@dataclass
class MMCollator:
    """
    Pads training rows to a batch: text to the longest row, media to the most images and windows of a row.

    Rows with and without media mix freely. What is added is marked as padding in `attention_mask`, `image_mask` and
    `feature_attention_mask`, so that it never enters an encoder.

    Args:
        pad_token_id: what text is padded with.
        padding_side: `"right"` for training, `"left"` for generation.
    """

    pad_token_id: int
    padding_side: str = "right"

    def __post_init__(self):
        if self.padding_side not in ("right", "left"):
            raise ValueError(f"padding_side must be 'right' or 'left', got {self.padding_side!r}.")

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Rows as `encode_conversation` makes them -> a batch, with B in front of each of their shapes."""
        tensors = [{name: torch.as_tensor(value) for name, value in row.items()} for row in rows]
        check_names(tensors)
        batch = {}
        for name, filler in (("input_ids", self.pad_token_id), ("attention_mask", 0), ("labels", IGNORED)):
            if any(name in row for row in tensors):
                batch[name] = self._pad_text([text_of(row, name) for row in tensors], filler)
        for name, mask_name in MASK_OF.items():
            if any(name in row for row in tensors):
                values, masks = media_of(tensors, name, mask_name)
                batch[name], batch[mask_name] = stack_padded(values), stack_padded(masks)
        return batch

    def _pad_text(self, sequences: list[torch.Tensor], filler: int) -> torch.Tensor:
        """Sequences (L_b,) -> (B, L); numbers, a class for each row, -> (B,)"""
        if all(sequence.ndim == 0 for sequence in sequences):
            return torch.stack(sequences)
        return nn.utils.rnn.pad_sequence(sequences, True, filler, self.padding_side)


class ChatCollator:
    """
    Chat samples -> a batch with labels. With a `ChatDataset` or a `ChatStream` the stock `Trainer` takes it as it
    comes, without `remove_unused_columns=False`.

    Args:
        processor: an `MMProcessor`.
        augmentation: how media are changed at random; not at all by default.
        modality_dropout: how often pictures or sounds are left out; never by default.
        padding_side: `"right"` for training, `"left"` for generation.
    """

    def __init__(
        self,
        processor: Any,
        augmentation: Augmentation | None = None,
        modality_dropout: ModalityDropout | None = None,
        padding_side: str = "right",
    ):
        self.processor = processor
        self.augmentation = augmentation
        self.modality_dropout = modality_dropout
        self.pad = MMCollator(processor.tokenizer.pad_token_id, padding_side)

    def for_evaluation(self) -> "ChatCollator":
        """The same collator without what only training wants; the stock `Trainer` uses one collator for both."""
        return ChatCollator(self.processor, padding_side=self.pad.padding_side)

    def __call__(self, samples: Sequence[ChatRow | Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Returns:
            `input_ids`, `attention_mask`, `labels` (B, L), and the media of the tensor contract.

        Raises:
            ValueError: for a sample that cannot be read or has nothing to learn; with its place in the batch.
        """
        return self.pad([self._encode_numbered(number, sample) for number, sample in enumerate(samples)])

    def encode(self, row: ChatRow) -> Row:
        """One sample as a training row, see `encode_conversation`; left out and changed as it is drawn for it."""
        if self.modality_dropout is not None:
            row = self.modality_dropout(row)
        if self.augmentation is None:
            return encode_conversation(self.processor, row.messages)
        extractor = self.processor.feature_extractor
        changed = self.augmentation.change_media(row, None if extractor is None else extractor.sampling_rate)
        return self.augmentation.change_features(row, encode_conversation(self.processor, changed.messages))

    def _encode_numbered(self, number: int, sample: ChatRow | Mapping[str, Any]) -> Row:
        if isinstance(sample, Mapping) and not sample:
            raise ValueError(
                f"Row {number} is an empty dict: the Trainer has removed the columns that are no arguments of the "
                "model. Give it a ChatDataset or a ChatStream, or set `remove_unused_columns=False`."
            )
        name = sample.get("id") if isinstance(sample, Mapping) else getattr(sample, "id", None)
        try:
            return self.encode(to_row(sample))
        except ValueError as error:
            raise ValueError(f"Row {number}{'' if name is None else f', sample {name!r}'}: {error}") from error


def check_names(rows: Sequence[Row]) -> None:
    """
    Raises:
        ValueError: for an input that would otherwise be left out of the batch.
    """
    known = {"input_ids", "attention_mask", "labels", *MASK_OF, *MASK_OF.values()}
    for number, row in enumerate(rows):
        if unknown := sorted(set(row) - known):
            raise ValueError(
                f"Row {number} holds {', '.join(unknown)}, which MMCollator does not know; it takes "
                f"{', '.join(sorted(known))}. Remove the column, or pad it in a collator of your own."
            )


def text_of(row: Row, name: str) -> torch.Tensor:
    """One of a row's text inputs; a row without `attention_mask` is all real, one without `labels` learns nothing."""
    if name in row:
        return row[name]
    return torch.full_like(row["input_ids"], 1 if name == "attention_mask" else IGNORED)


def media_of(rows: Sequence[Row], name: str, mask_name: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """
    Each row's media of one modality with their masks; rows without get zero items of the same shape.

    Raises:
        ValueError: where items differ in size other than in time, with the rows and their shapes.
    """
    present = [number for number, row in enumerate(rows) if name in row]
    example = rows[present[0]]
    example_mask = mask_or_ones(example, name, mask_name)
    fixed = fixed_dimensions(name, example[name])
    for number in present:
        shape = tuple(rows[number][name].shape)
        if len(shape) != example[name].ndim or any(shape[i] != example[name].shape[i] for i in fixed):
            raise ValueError(
                f"{name} of row {number} has shape {shape}, that of row {present[0]} {tuple(example[name].shape)}; "
                "they cannot share a batch. Let the processor bring them to one size."
            )
    values, masks = [], []
    for row in rows:
        values.append(row[name] if name in row else example[name][:0])
        masks.append(mask_or_ones(row, name, mask_name) if name in row else example_mask[:0])
    return values, masks


def mask_or_ones(row: Row, name: str, mask_name: str) -> torch.Tensor:
    """The mask of a row's media, (I,) or (A, T); without one everything is real."""
    if mask_name in row:
        return row[mask_name]
    values = row[name]
    if name == "pixel_values":
        return values.new_ones(values.shape[:1], dtype=torch.bool)
    time = values.shape[1] if name == "input_values" else values.shape[-1]
    return values.new_ones(len(values), time, dtype=torch.long)


def fixed_dimensions(name: str, values: torch.Tensor) -> range | tuple[int, ...]:
    """The dimensions in which items must agree: all of a picture's, none of a sound's but its mel bins."""
    if name == "pixel_values":
        return range(1, values.ndim)
    if name == "input_features":
        return (1,)
    return range(2, values.ndim)


def stack_padded(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors that may differ in size, padded behind with zeros to the largest in each dimension: (B, ...)."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    stacked = tensors[0].new_zeros(len(tensors), *shape)
    for slot, tensor in zip(stacked, tensors, strict=True):
        slot[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return stacked
