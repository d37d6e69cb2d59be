# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Chats as a classification: the prompt is read, and the answer is one of a list of labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from ..data.chat_row import ChatRow
from .collator import ChatCollator, Row


class ClassificationCollator(ChatCollator):
    """
    Chat samples -> a batch for [`MMForSequenceClassification`]: the prompts, and as `labels` (B,) the numbers of the
    answers.

    Args:
        processor: an `MMProcessor`
        labels: the answers there are, in the order of the model's classes
        options: those of [`ChatCollator`]

    Raises:
        ValueError: for a sample whose answer is none of the labels.
    """

    def __init__(self, processor: Any, labels: Sequence[str], **options: Any):
        super().__init__(processor, **options)
        self.labels = list(labels)

    def for_evaluation(self) -> "ClassificationCollator":
        return ClassificationCollator(self.processor, self.labels, padding_side=self.pad.padding_side)

    def encode(self, row: ChatRow) -> Row:
        """One sample: the processor's tensors of its prompt without their batch dimension, and its class, a scalar."""
        if row.answer not in self.labels:
            raise ValueError(f"expected an answer among the labels {', '.join(self.labels)}; got {row.answer!r}")
        label = self.labels.index(row.answer)
        if self.modality_dropout is not None:
            row = self.modality_dropout(row)
        prompt = row
        if self.augmentation is not None:
            extractor = self.processor.feature_extractor
            prompt = self.augmentation.change_media(row, None if extractor is None else extractor.sampling_rate)
        inputs = self.processor.apply_chat_template(
            prompt.prompt, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        features = {name: tensor[0] for name, tensor in inputs.items()}
        if self.augmentation is not None:
            features = self.augmentation.change_features(row, features)
        return features | {"labels": torch.tensor(label)}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The share of samples whose greatest logit, of (B, labels), is that of their class."""
    return {"accuracy": float(np.mean(np.argmax(prediction.predictions, axis=-1) == prediction.label_ids))}
