# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Category of an image with its history, either of which may be missing.

The history is one keyword of Unicode CLDR that shares no word with the image's name: a hint that rarely settles the
category.
"""

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..workshop.concepts import normalize_name
from ..workshop.corpus import read_description, read_rows
from ..workshop.phrases import KINDS
from .examples import Example, Sources, example

LABELS = sorted(KINDS.values())
QUESTION = "What is its category?"
HISTORY = "Its owner says: {keyword}. "
WORDINGS = 2  # histories of an image in training
REACH = {
    ("image and history", "accuracy"): "each alone + 0.05",
    ("image and history", "f1"): "",
    ("image and history", "auroc"): "",
    ("image alone", "accuracy"): "",
    ("history alone", "accuracy"): "",
}


def build(sources: Sources) -> dict[str, list[Example]]:
    """Return the training rows, and one test set three times: with both, with the image and with the history alone."""
    keywords = read_keywords(sources.fetch(read_description("images").packages["names"]))
    rows = {split: read_rows(sources.corpora / "images", split) for split in ("train", "test_concepts")}
    told = [row for row in rows["test_concepts"] if hints(row, keywords)]
    make = partial(question, sources)
    return {
        "train": list(training(sources, rows["train"], keywords)),
        "test_both": [make(row, hint(row, keywords), True) for row in told],
        "test_image": [make(row, None, True) for row in told],
        "test_history": [make(row, hint(row, keywords), False) for row in told],
    }


def training(sources: Sources, rows: list[dict[str, Any]], keywords: dict[str, list[str]]) -> Iterator[Example]:
    """Yield each image with some of its histories and without one, and one history without the image."""
    for row in rows:
        known = hints(row, keywords)
        drawn = random.Random(row["file_name"]).sample(known, min(WORDINGS, len(known)))
        yield question(sources, row, None, True)
        yield from (question(sources, row, keyword, True) for keyword in drawn)
        yield from (question(sources, row, keyword, False) for keyword in drawn[:1])


def question(sources: Sources, row: dict[str, Any], keyword: str | None, with_image: bool) -> Example:
    """Return the question about an image, a history or both."""
    path = sources.media(sources.corpora / "images" / row["file_name"])
    history = "" if keyword is None else HISTORY.format(keyword=keyword)
    return example(
        "category",
        f"{row['file_name']}/{keyword}/{'image' if with_image else 'no image'}",
        row["concept"],
        [("image", path)] if with_image else [],
        history + QUESTION,
        KINDS[row["kind"]],
    )


def hint(row: dict[str, Any], keywords: dict[str, list[str]]) -> str:
    return random.Random(row["file_name"]).choice(hints(row, keywords))


def hints(row: dict[str, Any], keywords: dict[str, list[str]]) -> list[str]:
    """Return the keywords of an image that share no word with its name; they may be none."""
    name = normalize_name(row["name_en"])
    words = {word: {*normalize_name(word).split()} for word in keywords.get(name, [])}
    return [word for word, parts in words.items() if parts and not parts & {*name.split()}]


def read_keywords(cldr: Path) -> dict[str, list[str]]:
    """Return the English keywords of each name, normalized, from the unpacked `cldr-annotations-full`."""
    path = cldr / "package/annotations/en/annotations.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"].values()
    return {normalize_name(entry["tts"][0]): entry.get("default", []) for entry in entries if entry.get("tts")}
