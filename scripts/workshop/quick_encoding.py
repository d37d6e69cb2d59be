# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `encode`: the images' encoder states, from an ONNX graph of the encoder."""

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import nn

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.data import ChatRow
from modeling_mm.encoders import encode as encode_items
from modeling_mm.recipes import read_recipe
from modeling_mm.training import EncoderCache

from .corpus import read_description, read_rows

TOLERANCE = 1e-3  # of the states of the first batch, which the encoder itself computes too


class QuickEncoderCache(EncoderCache):
    """
    `EncoderCache` that encodes images by ONNX Runtime, which is faster on a CPU; whatever else as ever.

    Args:
        args, kwargs: those of `EncoderCache`.

    Raises:
        ValueError: at the first batch, if the graph gives other states than the encoder.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.session = session_of(self.towers["image"], self.processor.image_processor.size)
        self.workers = ThreadPoolExecutor(os.cpu_count())
        self.is_checked = False

    def encode(
        self, kind: str, batch: Sequence[tuple[str, tuple[str, int]]]
    ) -> Iterator[tuple[str, list[torch.Tensor]]]:
        if kind != "image":
            return super().encode(kind, batch)
        found = [(key, [states]) for (key, _), states in zip(batch, self.workers.map(self.tokens, batch), strict=True)]
        if not self.is_checked:
            self.check(found, list(super().encode(kind, batch)))
        return iter(found)

    def tokens(self, item: tuple[str, tuple[str, int]]) -> torch.Tensor:
        """Return the tokens (L, W) of an image, given as key and (path, view)."""
        key, (path, view) = item
        image = self.load("image", path, view, key)
        pixels = self.processor.image_processor(images=[image], return_tensors="np")["pixel_values"]  # (1, 3, H, W)
        (tokens,) = self.session.run(None, {"pixel_values": pixels})  # (1, L, W)
        return torch.from_numpy(tokens[0])

    def check(self, found: list[tuple[str, list[torch.Tensor]]], wanted: list[tuple[str, list[torch.Tensor]]]) -> None:
        for (key, (ours,)), (_, (theirs,)) in zip(found, wanted, strict=True):
            if not torch.allclose(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE):
                difference = float((ours - theirs).abs().max())
                raise ValueError(f"{key}: the ONNX graph differs from the encoder by {difference:.3g}.")
        self.is_checked = True


class Tokens(nn.Module):
    """Pixels -> an encoder's tokens (N, L, W) alone, for export."""

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower = tower

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return encode_items(self.tower, pixel_values)[1]


def session_of(tower: nn.Module, size: Any) -> onnxruntime.InferenceSession:
    """Return a session of an image encoder for one image at a time."""
    example = torch.zeros(1, 3, size["height"], size["width"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.onnx"
        torch.onnx.export(
            Tokens(tower).eval(),
            (example,),
            str(path),
            input_names=["pixel_values"],
            output_names=["states"],
            opset_version=17,
            dynamo=False,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # as the workers are threads
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def encode(arguments: argparse.Namespace) -> None:
    """Fill the encoder cache of a recipe with the images of the corpora, in all views for those of training."""
    recipe = read_recipe(arguments.recipe)
    section = recipe.data
    if section.encoder_cache is None or recipe.model.pretrained is None:
        raise ValueError(f"{arguments.recipe}: expected data.encoder_cache and model.pretrained, got none.")
    model = MMForConditionalGeneration.from_pretrained(recipe.model.pretrained)
    processor = MMProcessor.from_pretrained(recipe.model.pretrained)
    dtype = getattr(torch, section.encoder_dtype)
    cache = QuickEncoderCache(
        section.encoder_cache, model, processor, section.augmentation, section.views, batch_size=32, dtype=dtype
    )
    for corpus in arguments.corpus:
        for split in read_description(corpus).splits:
            paths = [
                str(arguments.corpora / corpus / row["file_name"])
                for row in read_rows(arguments.corpora / corpus, split)
            ]
            cache.fill([question_about(path) for path in paths], views=split == "train")


def question_about(path: str) -> ChatRow:
    return ChatRow([{"role": "user", "content": [{"type": "image", "path": path}]}])
