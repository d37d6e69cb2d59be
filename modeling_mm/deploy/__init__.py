# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Deployment: a trained model with smaller weights, and as graphs."""

from ..int8 import Int8Config
from .exporting import DecoderStep, MediaEncoder, PromptReader, state_of
from .onnx_export import export_onnx
from .quantization import KEPT, quantize

__all__ = [
    "KEPT",
    "DecoderStep",
    "Int8Config",
    "MediaEncoder",
    "PromptReader",
    "export_onnx",
    "quantize",
    "state_of",
]
