# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Chat rows to batches with what the encoders made of their media before, in place of the media."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers.utils.chat_template_utils import render_jinja_template

from ..chat import mark_spans, pick_template, shift_spans
from ..configuration_mm import AUDIO_TOKEN, IMAGE_TOKEN
from ..data.chat_row import ChatRow, media_parts, turn_text
from .augmentation import ModalityDropout
from .collator import IGNORED, MMCollator, Row
from .encoder_cache import EncoderCache

# Shape legend: B rows, I images a row, A audio windows a row, L tokens, W an encoder's width.


class CachedCollator:
    """
    As `ChatCollator`, with `vision_states` and `audio_states` of an encoder cache instead of pixels and spectrograms.

    In training each pass over the data (`ChatRow.epoch`) shows one of a file's views; in evaluation the file as it is.

    Args:
        processor: the model's processor
        cache: filled with all rows that will come
        padding_side: of the text in training
        modality_dropout: leaves one modality of a sample out, as in `ChatCollator`
        shows_views: whether files are seen in their other views too
    """

    def __init__(
        self,
        processor: Any,
        cache: EncoderCache,
        padding_side: str = "right",
        modality_dropout: ModalityDropout | None = None,
        shows_views: bool = True,
    ):
        self.processor, self.cache, self.modality_dropout = processor, cache, modality_dropout
        self.shows_views = shows_views
        self.padding = MMCollator(processor.tokenizer.pad_token_id, padding_side)
        self.padding_left = MMCollator(processor.tokenizer.pad_token_id, "left")
        self.encoded: dict[tuple[str, tuple[int, ...], bool], Row] = {}  # texts are few, epochs many

    def __call__(self, rows: Sequence[ChatRow]) -> dict[str, torch.Tensor]:
        """Chat rows -> `input_ids`, `attention_mask`, `labels` (B, L) and the states of their media."""
        if self.modality_dropout is not None:
            rows = [self.modality_dropout(row) for row in rows]
        return self.batch(rows, is_prompt=False)

    def for_evaluation(self) -> "CachedCollator":
        """The same without what is for training alone."""
        return CachedCollator(self.processor, self.cache, self.padding.padding_side, shows_views=False)

    def prompt_batch(self, rows: Sequence[ChatRow]) -> dict[str, torch.Tensor]:
        """What `generate` takes to answer the rows' prompts, padded on the left."""
        return self.batch(rows, is_prompt=True)

    def batch(self, rows: Sequence[ChatRow], is_prompt: bool) -> dict[str, torch.Tensor]:
        states: dict[str, list[list[torch.Tensor]]] = {"image": [], "audio": []}
        texts = []
        for row in rows:
            messages = row.prompt if is_prompt else row.messages
            items = [
                (part["type"], self.cache.states(part, 0 if is_prompt else self.view(row, number, part["type"])))
                for number, part in enumerate(media_parts(messages))
            ]
            texts.append(self.encode_text(messages, [len(windows) for _, windows in items], is_prompt))
            for kind, row_states in states.items():
                row_states.append([window for item, windows in items if item == kind for window in windows])
        batch = (self.padding_left if is_prompt else self.padding)(texts)
        if any(states["image"]):
            batch["vision_states"], mask = stack_states(states["image"])
            batch["image_mask"] = mask.any(-1)
        if any(states["audio"]):
            batch["audio_states"], batch["audio_states_mask"] = stack_states(states["audio"])
        return batch

    def media_size(self, row: ChatRow) -> tuple[int, int, int]:
        """How many tokens of pictures and of sounds a row has, and characters of text; for batches of alike rows."""
        tokens = {"image": 0, "audio": 0}
        for part in media_parts(row.messages):
            tokens[part["type"]] += self.cache.count_tokens(part)
        return tokens["image"], tokens["audio"], sum(len(turn_text(turn)) for turn in row.messages)

    def view(self, row: ChatRow, number: int, kind: str) -> int:
        """Which view of its media a row shows in this pass over the data."""
        if not self.shows_views or self.cache.views[kind] == 1:
            return 0
        name = f"{self.cache.seed}/{row.epoch}/{number}/{row.id or row.messages}"
        return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % self.cache.views[kind]

    def encode_text(self, messages: list[dict[str, Any]], windows: Sequence[int], is_prompt: bool) -> Row:
        """`input_ids`, `attention_mask` and, but for prompts, `labels` (L,), as `encode_conversation` makes them."""
        key = (repr(messages), tuple(windows), is_prompt)
        if key not in self.encoded:
            self.encoded[key] = encode_text(self.processor, messages, windows, is_prompt)
        return self.encoded[key]


def encode_text(processor: Any, messages: list[dict[str, Any]], windows: Sequence[int], is_prompt: bool) -> Row:
    """
    A conversation's text with one placeholder for each window of its media, whose number is known.

    Raises:
        ValueError: where the text has other placeholders than those of its media, or nothing to be learned.
    """
    texts, spans = render_jinja_template(
        conversations=[messages],
        chat_template=pick_template(processor.chat_template, None),
        return_assistant_tokens_mask=not is_prompt,
        add_generation_prompt=is_prompt,
        **processor.tokenizer.special_tokens_map,
    )
    text, replacements = expand_placeholders(texts[0], windows)
    encoded = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=not is_prompt)
    input_ids = torch.tensor(encoded["input_ids"])
    row = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if not is_prompt:
        spoken = torch.tensor(mark_spans(encoded["offset_mapping"], shift_spans(spans[0], replacements))).bool()
        if not bool(spoken.any()):
            raise ValueError(f"The assistant says nothing in this conversation, so there is nothing to learn: {text}")
        row["labels"] = input_ids.masked_fill(~spoken, IGNORED)
    return row


def expand_placeholders(text: str, windows: Sequence[int]) -> tuple[str, list[dict[str, tuple[int, int]]]]:
    """
    The text with each placeholder repeated for the windows of its item, and where which span came to lie.

    Args:
        windows: of each item in order; 1 for a picture
    """
    found = sorted(
        (start, token) for token in (IMAGE_TOKEN, AUDIO_TOKEN) for start in occurrences(text, token)
    )  # in the order of the text
    if len(found) != len(windows):
        raise ValueError(
            f"A conversation has {len(windows)} media parts, but its text {len(found)} placeholders: {text!r:.200}. "
            f"Do not write {IMAGE_TOKEN} or {AUDIO_TOKEN} into the text; its parts stand for them."
        )
    parts, replacements, end, grown = [], [], 0, 0
    for (start, token), count in zip(found, windows, strict=True):
        parts += [text[end:start], token * count]
        end = start + len(token)
        new_start = start + grown
        grown += len(token) * (count - 1)
        replacements.append({"span": (start, end), "new_span": (new_start, end + grown)})
    return "".join([*parts, text[end:]]), replacements


def occurrences(text: str, token: str) -> list[int]:
    starts, start = [], text.find(token)
    while start >= 0:
        starts.append(start)
        start = text.find(token, start + len(token))
    return starts


def stack_states(rows: Sequence[Sequence[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's windows (L, W) -> (B, A, L, W), padded with zeros, and which tokens are real, (B, A, L)."""
    windows = [window for row in rows for window in row]
    shape = len(rows), max(map(len, rows)), max(map(len, windows))
    states = windows[0].new_zeros(*shape, windows[0].shape[1])
    mask = torch.zeros(shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        for slot, window in enumerate(row):
            states[number, slot, : len(window)] = window
            mask[number, slot, : len(window)] = True
    return states, mask
