# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Attention of an answer's words to images and audio, in numbers and as a figure."""

from .attention import AnswerAttention, answer_attention
from .figure import Band, draw, read_band, save

__all__ = ["AnswerAttention", "Band", "answer_attention", "draw", "read_band", "save"]
