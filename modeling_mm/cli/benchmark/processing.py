# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Rows of the processor: images and audio to tensors, against CLIP's and Whisper's, and with workers."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast, WhisperFeatureExtractor

from ... import MMProcessor
from .bench import Bench
from .machine import Call
from .results import Result

ITEMS = 256  # a call
BATCH, WORKERS = 16, 2  # of a loader
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

    def read_images(given: Sequence[Any]) -> None:
        ours(text=["<|image|> word"] * ITEMS, images=[[image] for image in given], return_tensors="pt")

    def peer_images(given: Sequence[Any]) -> None:
        looker(given, return_tensors="pt")

    def read_audio() -> None:
        sides = {"audio": [[clip] for clip in clips], "sampling_rate": rate}
        ours(text=["<|audio|> word"] * ITEMS, **sides, return_tensors="pt")

    def peer_audio() -> None:
        extractor(clips, sampling_rate=rate, return_tensors="pt")

    name = f"{type(looker).__name__} of CLIPProcessor"
    kinds: dict[str, Sequence[Any]] = {"images": list(map(Image.fromarray, images)), "arrays": images}
    for kind, given in kinds.items():
        runs = partial(read_images, given), partial(peer_images, given)
        yield bench.compare(f"{ITEMS} {kind} of 640x480", name, *runs, 1.0, ITEMS, "images/s")
    label, name = f"{ITEMS} clips of {SECONDS} s", f"{type(extractor).__name__} of WhisperProcessor"
    yield bench.compare(label, name, read_audio, peer_audio, 1.0, ITEMS, "clips/s")
    yield from with_workers(bench, ours, images)


def with_workers(bench: Bench, processor: Any, images: Sequence[np.ndarray]) -> Iterator[Result]:
    """Make tensors of images by the workers of a loader, against the same loader without."""

    def to_batch(batch: list[np.ndarray]) -> Any:
        texts, media = ["<|image|> word"] * len(batch), [[image] for image in batch]
        return dict(processor(text=texts, images=media, return_tensors="pt"))

    def run(workers: int) -> Call:
        options: dict[str, Any] = {"persistent_workers": True} if workers else {}
        loader: Any = DataLoader(cast(Any, images), BATCH, collate_fn=to_batch, num_workers=workers, **options)
        return lambda: [None for _ in loader]

    label, name = f"{ITEMS} images, {WORKERS} workers", "ours without workers"
    yield bench.compare(label, name, run(WORKERS), run(0), 1.8, ITEMS, "images/s")
