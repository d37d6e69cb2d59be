# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Collators: chats to padded batches, for the stock `Trainer` too.

Shape legend: B rows, L text tokens, I images a row, A audio windows a row, T frames or samples, W an encoder's width.
"""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import EvalPrediction

from ..batching import IGNORED, first_row, stack_padded
from ..chat import CODES
from ..data.chat_row import ChatRow, media_parts, to_row, turn_text
from ..modalities import MODALITIES
from ..video_parts import VideoReader, expand_chats
from .augmentation import Augmentation, ModalityDropout
from .code_cache import CodeCache, write_codes
from .encoder_cache import EncoderCache, has_videos, refuse_videos, shown_parts
from .packing import pack_rows
from .sampling import media_size

Row = dict[str, torch.Tensor]


def encode_chat(processor: Any, chat: ChatRow | list[dict[str, Any]], **options: Any) -> Row:
    """Return the processor's tensors of one conversation without their batch dimension."""
    conversation = [chat] if isinstance(chat, ChatRow) else chat
    inputs = processor.apply_chat_template(
        conversation, tokenize=True, return_dict=True, return_tensors="pt", **options
    )
    return first_row(inputs)


def encode_conversation(processor: Any, chat: ChatRow | list[dict[str, Any]], **options: Any) -> Row:
    """
    Encode one conversation as a training row. Only the words of the assistant, its end token included, are learned.

    Args:
        chat: a row, or messages in any form that `apply_chat_template` takes.
        options: of `apply_chat_template`, such as `media_tokens`.

    Returns:
        `input_ids`, `attention_mask`, `labels` (L,); with images `pixel_values` (I, 3, H, W), `image_mask` (I,); with
        audio `input_features` or `input_values` (A, ...), `feature_attention_mask` (A, T).

    Raises:
        ValueError: if the assistant says nothing, so that there is nothing to learn.
    """
    row = encode_chat(processor, chat, return_assistant_tokens_mask=True, **options)
    spoken = row.pop("assistant_masks").bool()
    if not bool(spoken.any()):
        messages = chat.messages if isinstance(chat, ChatRow) else chat
        raise ValueError(f"The assistant says nothing in this conversation, so there is nothing to learn: {messages}")
    row["labels"] = row["input_ids"].masked_fill(~spoken, IGNORED)
    return row


class ChatCollator:
    """
    Chats to a batch with labels.

    The stock `Trainer` takes it with a `ChatDataset` or a `ChatStream` as it is, without
    `remove_unused_columns=False`.

    ```python
    Trainer(model, arguments, ChatCollator(processor), load_chats("chats.jsonl")).train()
    ```

    Args:
        processor: an `MMProcessor`.
        augmentation: random changes of media; none by default.
        modality_dropout: random omission of one modality; none by default.
        padding_side: `"right"` for training, `"left"` for generation.
        pack_length: pack the examples of a batch into fewer rows of at most so many tokens; see [`pack_rows`]. None
            by default.
        code_cache: keeps the codes of assistants' images and audio, which are files; by default they are encoded in
            each epoch.
        most_tokens: of a sample, such as the decoder's positions, so that a longer one is refused by its name; no
            limit by default.
    """

    training_only: ClassVar[dict[str, Any]] = {"augmentation": None, "modality_dropout": None, "pack_length": None}

    def __init__(
        self,
        processor: Any,
        augmentation: Augmentation | None = None,
        modality_dropout: ModalityDropout | None = None,
        padding_side: str = "right",
        pack_length: int | None = None,
        code_cache: CodeCache | None = None,
        most_tokens: int | None = None,
    ):
        self.processor, self.augmentation, self.modality_dropout = processor, augmentation, modality_dropout
        self.padding_side, self.pack_length, self.code_cache = padding_side, pack_length, code_cache
        self.most_tokens = most_tokens

    def for_evaluation(self) -> "ChatCollator":
        """Return this collator without the changes of training; the stock `Trainer` has one collator for both uses."""
        other = copy.copy(self)
        vars(other).update(self.training_only)
        return other

    def __call__(self, samples: Sequence[ChatRow | Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Encode and pad samples.

        Returns:
            `input_ids`, `attention_mask`, `labels` (B, L), and the media of the tensor contract; `position_ids` (B, L)
            of packed examples.

        Raises:
            ValueError: for a sample that cannot be read or has nothing to learn; with its index in the batch.
        """
        rows = [self._encode_numbered(number, sample) for number, sample in enumerate(samples)]
        return self.pad(rows if self.pack_length is None else pack_rows(rows, self.pack_length))

    def pad(self, rows: Sequence[Row], padding_side: str | None = None) -> dict[str, torch.Tensor]:
        return dict(self.processor.pad(rows, padding_side=padding_side or self.padding_side))

    def encode(self, row: ChatRow) -> Row:
        """Return the tensors of one sample, with dropout and augmentation as they are drawn for it."""
        row = self.expand(row)
        if self.modality_dropout is not None:
            row = self.modality_dropout(row)
        if self.augmentation is None:
            return self.features(row)
        extractor = self.processor.feature_extractor
        changed = self.augmentation.change_media(row, None if extractor is None else extractor.sampling_rate)
        return self.augmentation.change_features(row, self.features(changed))

    def expand(self, row: ChatRow) -> ChatRow:
        """Return a sample with videos as images and audio, which can be changed, and with what is written as codes."""
        if has_videos(row):
            row = replace(row, messages=expand_chats([row.messages], VideoReader.of(self.processor))[0])
        return write_codes(self.processor, row, self.code_cache)

    def media_size(self, sample: ChatRow | Mapping[str, Any]) -> tuple[int, ...]:
        """Return how many media of each modality encoders read, and the characters of text, to group alike rows."""
        return media_size(sample, partial(shown_parts, self.processor))

    def features(self, row: ChatRow) -> Row:
        return encode_conversation(self.processor, row)

    def media_features(self, row: ChatRow) -> Row:
        """Return the tensors of a sample's media, without its text."""
        if not (parts := media_parts(row.messages)):
            return {}
        encoded = encode_chat(self.processor, replace(row, messages=[{"role": "user", "content": parts}]))
        return {name: value for name, value in encoded.items() if name not in ("input_ids", "attention_mask")}

    def _encode_numbered(self, number: int, sample: ChatRow | Mapping[str, Any]) -> Row:
        if isinstance(sample, Mapping) and not sample:
            raise ValueError(
                f"Row {number} is an empty dict: the Trainer has removed the columns that are no arguments of the "
                "model. Give it a ChatDataset or a ChatStream, or set `remove_unused_columns=False`."
            )
        name = sample.get("id") if isinstance(sample, Mapping) else getattr(sample, "id", None)
        try:
            row = self.encode(to_row(sample))
            self.check_length(len(row["input_ids"]))
            return row
        except ValueError as error:
            raise ValueError(f"Row {number}{'' if name is None else f', sample {name!r}'}: {error}") from error

    def check_length(self, length: int) -> None:
        """Raise a ValueError if a sample has more tokens than there may be."""
        if self.most_tokens is not None and length > self.most_tokens:
            raise ValueError(
                f"{length} text tokens, but the decoder has {self.most_tokens} positions. Shorten the sample or leave "
                "it out, or use a decoder with more positions (text_position_encoding='sinusoidal' has no limit)."
            )


class ClassificationCollator(ChatCollator):
    """
    Chats to a batch for [`MMForSequenceClassification`]: the prompts, and as `labels` (B,) the classes of the answers.

    Args:
        processor: an `MMProcessor`.
        labels: the possible answers, in the order of the model's classes.
        options: those of [`ChatCollator`].

    Raises:
        ValueError: for a sample whose answer is none of the labels.
    """

    def __init__(self, processor: Any, labels: Sequence[str], **options: Any):
        super().__init__(processor, **options)
        self.labels = list(labels)

    def features(self, row: ChatRow) -> Row:
        label = label_number(row, self.labels)
        prompt = encode_chat(self.processor, replace(row, messages=row.prompt), add_generation_prompt=True)
        return prompt | {"labels": torch.tensor(label)}


def label_number(row: ChatRow, labels: Sequence[str]) -> int:
    """Return the class of a sample's answer, or raise a ValueError if it is none of the labels."""
    if row.answer not in labels:
        raise ValueError(f"expected an answer among the labels {', '.join(labels)}; got {row.answer!r}")
    return labels.index(row.answer)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of samples whose greatest logit, of (B, labels), is the one of their class."""
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, axis=-1) == prediction.label_ids))}


class CachedCollator(ChatCollator):
    """
    `ChatCollator` with `vision_states` and `audio_states` of an encoder cache instead of pixels and spectrograms.

    In training each pass over the data (`ChatRow.epoch`) shows one of a file's views; in evaluation the file itself.

    Args:
        processor: the model's processor.
        cache: filled with all rows that are to be used.
        padding_side: of the text in training.
        modality_dropout: as in `ChatCollator`.
        shows_views: show files in their other views too.
        pack_length: as in `ChatCollator`.
        code_cache, most_tokens: as in `ChatCollator`.
    """

    training_only: ClassVar[dict[str, Any]] = {**ChatCollator.training_only, "shows_views": False}

    def __init__(
        self,
        processor: Any,
        cache: EncoderCache,
        padding_side: str = "right",
        modality_dropout: ModalityDropout | None = None,
        shows_views: bool = True,
        pack_length: int | None = None,
        code_cache: CodeCache | None = None,
        most_tokens: int | None = None,
    ):
        super().__init__(processor, None, modality_dropout, padding_side, pack_length, code_cache, most_tokens)
        self.cache, self.shows_views = cache, shows_views
        self.encoded: dict[str, Row] = {}  # texts are few, epochs many

    def prompt_batch(self, rows: Sequence[ChatRow]) -> dict[str, torch.Tensor]:
        """Return the inputs with which `generate` answers the rows' prompts, padded on the left."""
        prompts = [self.with_states(self.expand(replace(row, messages=row.prompt)), is_prompt=True) for row in rows]
        return self.pad(prompts, "left")

    def expand(self, row: ChatRow) -> ChatRow:
        return write_codes(self.processor, row, self.code_cache)

    def features(self, row: ChatRow) -> Row:
        return self.with_states(row)

    def with_states(self, row: ChatRow, is_prompt: bool = False) -> Row:
        """Return the tensors of a row's text, with the states (I, L, W) of its media."""
        states, tokens = self.media_states(row, is_prompt)
        return dict(self.encode_text(row, tokens, is_prompt)) | states

    def media_features(self, row: ChatRow) -> Row:
        return self.media_states(row)[0]

    def media_states(self, row: ChatRow, is_prompt: bool = False) -> tuple[Row, dict[str, list[list[int]]]]:
        """Return the states (I, L, W) of a row's media with their masks, and the number of windows of each medium."""
        refuse_videos(row)
        states: dict[str, list[torch.Tensor]] = {name: [] for name in MODALITIES}
        counts: dict[str, list[list[int]]] = {name: [[]] for name in MODALITIES}
        for number, part in enumerate(media_parts(row.messages)):
            windows = self.windows(row, number, part, is_prompt)
            states[part["type"]] += windows
            counts[part["type"]][0].append(len(windows))
        found: Row = {}
        for name, windows in states.items():
            if windows:
                modality = MODALITIES[name]
                found[modality.states] = stack_padded(windows)
                if modality.has_frames:
                    ones = [torch.ones(len(window), dtype=torch.bool) for window in windows]
                    found[modality.states_mask] = stack_padded(ones)
        return found, counts

    def windows(self, row: ChatRow, number: int, part: dict[str, Any], is_prompt: bool) -> list[torch.Tensor]:
        """Return the states (L, W) of each window of a row's media part, the `number`-th of the row."""
        return self.cache.states(part, 0 if is_prompt else self.view(row, number, part["type"]))

    def encode_text(self, row: ChatRow, tokens: Mapping[str, list[list[int]]], is_prompt: bool) -> Row:
        # The media of a text do not change its tokens, so that one question about many images is encoded once.
        turns = [
            (turn["role"], [(p["type"], p.get("text"), p.get(CODES)) for p in turn["content"]])
            for turn in row.messages
        ]
        key = f"{is_prompt}{tokens}{turns}"
        if key not in self.encoded:
            options = {"add_generation_prompt": True} if is_prompt else {}
            encode = encode_chat if is_prompt else encode_conversation
            self.encoded[key] = encode(self.processor, row, media_tokens=tokens, **options)
        return self.encoded[key]

    def media_size(self, row: ChatRow) -> tuple[int, ...]:
        """Return a row's encoder tokens of images and of audio, and its characters of text, to group alike rows."""
        refuse_videos(row)
        tokens = dict.fromkeys(MODALITIES, 0)
        for part in shown_parts(self.processor, row.messages):
            tokens[part["type"]] += self.cache.count_tokens(part)
        return *tokens.values(), sum(len(turn_text(turn)) for turn in row.messages)

    def view(self, row: ChatRow, number: int, kind: str) -> int:
        """Return the number of the view in which a row shows one of its media in this pass over the data."""
        if not self.shows_views or self.cache.views[kind] == 1:
            return 0
        name = f"{self.cache.seed}/{row.epoch}/{number}/{row.id or row.messages}"
        return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % self.cache.views[kind]


class CachedClassificationCollator(CachedCollator):
    """
    `ClassificationCollator` with the states of an encoder cache.

    Args:
        processor: the model's processor.
        cache: filled with all rows that are to be used.
        labels: the possible answers, in the order of the model's classes.
        options: those of [`CachedCollator`].

    Raises:
        ValueError: for a sample whose answer is none of the labels.
    """

    def __init__(self, processor: Any, cache: EncoderCache, labels: Sequence[str], **options: Any):
        super().__init__(processor, cache, **options)
        self.labels = list(labels)

    def features(self, row: ChatRow) -> Row:
        label = label_number(row, self.labels)
        prompt = self.with_states(replace(row, messages=row.prompt), is_prompt=True)
        return prompt | {"labels": torch.tensor(label)}

    def windows(self, row: ChatRow, number: int, part: dict[str, Any], is_prompt: bool) -> list[torch.Tensor]:
        # Prompts are what it learns from, so that they show the views that other collators show beside an answer.
        return super().windows(row, number, part, is_prompt=False)
