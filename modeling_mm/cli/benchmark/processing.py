# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Rows of the processor: images and audio to tensors, against CLIP's and Whisper's."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast, WhisperFeatureExtractor

from ... import MMProcessor
from .bench import Bench
from .results import Result

ITEMS = 64  # a call
IMAGE_SHAPE = (480, 640, 3)
SECONDS = 10


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows one word."""
    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, "word": 1}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<end>", pad_token="<end>")


def processors(bench: Bench) -> Iterator[Result]:
    """Make tensors of images and of audio, against the image processor and the extractor of the peers alone."""
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 255, IMAGE_SHAPE, dtype=np.uint8) for _ in range(ITEMS)]
    extractor = WhisperFeatureExtractor()
    rate = extractor.sampling_rate
    clips = [generator.standard_normal(SECONDS * rate, dtype=np.float32) for _ in range(ITEMS)]
    looker = CLIPImageProcessor()
    ours: Any = MMProcessor(looker, extractor, word_tokenizer())

    def read_images() -> None:
        ours(text=["<|image|> word"] * ITEMS, images=[[image] for image in images], return_tensors="pt")

    def peer_images() -> None:
        looker(images, return_tensors="pt")

    def read_audio() -> None:
        sides = {"audio": [[clip] for clip in clips], "sampling_rate": rate}
        ours(text=["<|audio|> word"] * ITEMS, **sides, return_tensors="pt")

    def peer_audio() -> None:
        extractor(clips, sampling_rate=rate, return_tensors="pt")

    label, name = f"{ITEMS} images of 640x480", f"{type(looker).__name__} of CLIPProcessor"
    yield bench.compare(label, name, read_images, peer_images, 1.0, ITEMS, "images/s")
    label, name = f"{ITEMS} clips of {SECONDS} s", f"{type(extractor).__name__} of WhisperProcessor"
    yield bench.compare(label, name, read_audio, peer_audio, 1.0, ITEMS, "clips/s")
