# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Questions about the small sample of images and recordings in processing/corpora/sample."""

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .chats import Example, Row, example
from .corpus import read_lines

if TYPE_CHECKING:
    from modeling_mm.data import ChatRow

SAMPLE_FOLDER = Path(__file__).resolve().parents[2] / "processing" / "corpora" / "sample"
AUDIO_PER_IMAGE = 4  # pairs of the training questions


def read_sample(split: str) -> list["ChatRow"]:
    """Read the questions of `train` or `new_pairs`."""
    from modeling_mm.data import to_row  # it imports torch, which `--help` does without

    return [to_row(row, SAMPLE_FOLDER) for row in read_lines(SAMPLE_FOLDER / f"{split}.jsonl")]


def image_questions(images: Iterable[Row]) -> Iterator[Example]:
    for row in images:
        for task, question, answer in (
            ("image/name", "What is this?", row["caption"]),
            ("image/category", "What kind of thing is this?", row["category"]),
        ):
            yield example(task, row["file"], [("image", row["file"])], question, answer)


def audio_questions(audio: Iterable[Row]) -> Iterator[Example]:
    for row in audio:
        for task, question, answer in (
            ("audio/words", "What is said?", row["transcript"]),
            ("audio/category", "What kind of words are these?", row["category"]),
        ):
            yield example(task, row["file"], [("audio", row["file"])], question, answer)


def pair_questions(
    images: Sequence[Row], audio: Sequence[Row], audio_per_image: int = 1, first: int = 0, seed: int = 0
) -> Iterator[Example]:
    """
    Yield questions about each image with some of the recordings.

    A seed gives each image its own fixed order of the recordings, of which `first` to `first + audio_per_image` are
    used. Two ranges that do not overlap therefore give different pairs, for training and for a test. All recordings
    are used about equally often.

    Raises:
        ValueError: if there are fewer recordings.
    """
    if first + audio_per_image > len(audio):
        raise ValueError(
            f"Each image needs recordings {first} to {first + audio_per_image}, but there are only {len(audio)}."
        )
    images, audio = list(images), list(audio)
    rng = random.Random(seed)
    rng.shuffle(images)
    rng.shuffle(audio)
    for turn in range(first, first + audio_per_image):
        for number, image in enumerate(images):
            recording = audio[(number + turn) % len(audio)]
            media = [("image", image["file"]), ("audio", recording["file"])]
            key = f"{image['file']}+{recording['file']}"
            answer = f'{image["caption"]} and "{recording["transcript"]}"'
            yield example("image and audio", key, media, "What is in the picture and what is said?", answer)


def training_and_new_pairs(images: Sequence[Row], audio: Sequence[Row]) -> tuple[list[Example], list[Example]]:
    """
    Return training questions, and questions about pairs of image and recording that are not among them.

    Every image and recording of the new pairs is in the training questions too, in other pairs.
    """
    training = [*image_questions(images), *audio_questions(audio), *pair_questions(images, audio, AUDIO_PER_IMAGE)]
    return training, list(pair_questions(images, audio, first=AUDIO_PER_IMAGE))
