# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Deployment: a trained model with smaller weights, and as graphs."""

from ..int8 import Int8Config
from .exporting import DecoderStep, MediaEncoder
from .quantization import KEPT, quantize

__all__ = ["KEPT", "DecoderStep", "Int8Config", "MediaEncoder", "quantize"]
