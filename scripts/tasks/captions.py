# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Images with the voices that name them, split by concept, by hand and by voice.

In `test_hand`, images of known concepts by a hand that training lacks come with names in a voice that it lacks. In
`test_concepts`, the concepts are new, and the voice too.
"""

import random
from typing import Any

from ..workshop.corpus import read_rows
from .examples import TRAIN, Sources

Row = dict[str, Any]
HAND, CONCEPTS = "test_hand", "test_concepts"
VOICES = {TRAIN: "train", HAND: "test_voice", CONCEPTS: "test_concepts"}  # splits of the spoken captions


def read_images(sources: Sources, split: str) -> list[Row]:
    """Return the images of a split, each with `path`, as examples name it."""
    rows = read_rows(sources.corpora / "images", split)
    return [{**row, "path": sources.media(sources.corpora / "images" / row["file_name"])} for row in rows]


def read_voices(sources: Sources, split: str) -> dict[str, list[str]]:
    """Return the recordings of each name that are for the images of a split."""
    found: dict[str, list[str]] = {}
    for row in read_rows(sources.corpora / "spoken-captions", VOICES[split]):
        path = sources.media(sources.corpora / "spoken-captions" / row["file_name"])
        found.setdefault(row["text"], []).append(path)
    return found


def voice_of(row: Row, voices: dict[str, list[str]]) -> str | None:
    """Return a recording of an image's name, the same at every call, or `None` if nobody says it."""
    known = voices.get(row["name_en"])
    return random.Random(row["file_name"]).choice(known) if known else None


def one_of_each_name(rows: list[Row]) -> list[Row]:
    """Return one image of each English name, whoever drew it."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row["name_en"], []).append(row)
    return [random.Random(name).choice(each) for name, each in by_name.items()]


def group_of(row: Row, split: str) -> str:
    """Return what must not be both in training and in a test: the concept, or the image by an unseen hand."""
    return f"{row['hand']}/{row['file_name']}" if split == HAND else row["concept"]
