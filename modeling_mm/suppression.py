# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Tokens that must not be generated, found by their ids instead of by comparing the whole vocabulary at every step."""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

# For each processor the attribute that holds its tokens, and if they are suppressed behind a text of a length.
RULES: dict[type, tuple[str, Callable[[Any, int], bool]]] = {
    SuppressTokensLogitsProcessor: ("suppress_tokens", lambda rule, length: True),
    SuppressTokensAtBeginLogitsProcessor: ("begin_suppress_tokens", lambda rule, length: length == rule.begin_index),
    MinLengthLogitsProcessor: ("eos_token_id", lambda rule, length: length < rule.min_length),
    MinNewTokensLengthLogitsProcessor: (
        "eos_token_id",
        lambda rule, length: length - rule.prompt_length_to_skip < rule.min_new_tokens,
    ),
}


class SuppressByIds(LogitsProcessor):
    """
    Set scores of tokens to minus infinity when a processor of transformers does so.

    Those make a mask of the vocabulary at every step, also where they change nothing: for 90 tokens, as Whisper
    suppresses them, it is sorted.

    Args:
        rule: a processor of a class in `RULES`; it is read at every step, as Whisper's routine changes it
    """

    def __init__(self, rule: LogitsProcessor):
        self.rule = rule
        self.name, self.is_on = RULES[type(rule)]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return scores (B, V) behind texts (B, L)."""
        if not self.is_on(self.rule, input_ids.shape[-1]):
            return scores
        ids = getattr(self.rule, self.name).to(scores.device).flatten()
        return scores.index_fill(-1, ids[(ids >= 0) & (ids < scores.shape[-1])], -math.inf)


def suppress_by_ids(processors: LogitsProcessorList) -> None:
    """Replace the processors that compare the whole vocabulary, in place."""
    for place, processor in enumerate(processors):
        if type(processor) in RULES:
            processors[place] = SuppressByIds(processor)
