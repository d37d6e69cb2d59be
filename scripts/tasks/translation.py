# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Translation of names between English and four languages, guided by an image or by a voice.

The text leaves out articles, and the word for who it is: English may say "judge" where French says "juge femme" or
"juge homme". A name is ambiguous if a test has it with several translations, so that the text alone cannot tell.
"""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..workshop.concepts import normalize_name
from ..workshop.corpus import read_lines
from ..workshop.sources import LANGUAGES
from .captions import CONCEPTS, HAND, Row, group_of, one_of_each_name, read_images, read_voices, voice_of
from .examples import TRAIN, Example, Sources, answer_of, example

PIVOT = "en"
TEXTS = f"{TRAIN}_texts"
FIRST = ("translation-texts",)  # the recipe whose model learns the dictionary, on which media are learned
DIRECTIONS = tuple(
    pair for each in LANGUAGES if each != PIVOT for pair in ((PIVOT, each), (each, PIVOT))
)  # source, target
QUESTION = "{target}: {text}"
VOICE_SHARE = 0.3  # of the guides in training, where there is one; the others are images
MOST = 400  # examples of a test set that is not of ambiguous names
AMBIGUOUS_IMAGE, AMBIGUOUS_VOICE = "ambiguous names with an image", "ambiguous names with a voice"
DATASETS = {
    "test_ambiguous_image": AMBIGUOUS_IMAGE,
    "test_ambiguous_voice": AMBIGUOUS_VOICE,
    "test_known": "known names with an image",
    "test_concepts": "unseen names with an image",
}
LONGEST = 60  # characters of a name; two of them fit into the decoder's positions
METRICS = ("exact_match", "chrf", "bleu")
REACH = {
    (dataset, metric): "0.1 above text alone" if number < 2 and metric == "exact_match" else ""
    for number, dataset in enumerate(DATASETS.values())
    for metric in METRICS
}


def build(sources: Sources) -> dict[str, list[Example]]:
    """Return the training rows, their texts alone, and tests of ambiguous, of known and of unseen names."""
    train, hand, unseen = (read_images(sources, split) for split in (TRAIN, HAND, CONCEPTS))
    known, voices = translations(train), read_voices(sources, HAND)
    heard = [row for row in hand if voice_of(row, voices)]
    return {
        TRAIN: list(training(train, read_voices(sources, TRAIN))),
        TEXTS: texts(train),
        "test_ambiguous_image": [
            guided(row, HAND, pair, "image", row["path"]) for row, pair in ambiguous_names(hand, known)
        ],
        "test_ambiguous_voice": [
            guided(row, HAND, pair, "audio", str(voice_of(row, voices)))
            for row, pair in ambiguous_names(heard, known)
            if pair[1] != PIVOT  # a voice would say the answer
        ],
        "test_known": drawn(hand, HAND),
        "test_concepts": drawn(one_of_each_name(unseen), CONCEPTS),
    }


def prepare(sources: Sources, splits: Mapping[str, Sequence[Example]]) -> None:
    """Write the components that the recipe joins."""
    from .components import write_components  # imports torch

    # A dictionary is to be learned by heart, and its decoder, frozen afterwards, has seen no placeholder.
    write_components(sources, splits, layers=4, dropout=0.0, placeholders="hidden")


# ---- Names ----------------------------------------------------------------------------------------------------------

Pair = tuple[str, str]  # languages of source and target


def source_text(row: Row, pair: Pair) -> str:
    """Return the text to translate, without articles and the word for who it is; empty if there is none."""
    return normalize_name(row[f"name_{pair[0]}"] or "")


def target_text(row: Row, pair: Pair) -> str:
    """
    Return the translation: the whole name, in small letters and without a full stop.

    >>> target_text({"name_fr": "Une roue."}, ("en", "fr"))
    'une roue'
    """
    name = unicodedata.normalize("NFKC", row[f"name_{pair[1]}"] or "").casefold()
    return re.sub(r"\s+", " ", name).strip(" .。")


def pairs_of(row: Row) -> list[Pair]:
    """Return the directions in which an image's name can be translated; not of descriptions, which are sentences."""
    texts = {pair: (source_text(row, pair), target_text(row, pair)) for pair in DIRECTIONS}
    return [pair for pair, both in texts.items() if all(0 < len(text) <= LONGEST for text in both)]


def translations(rows: Iterable[Row]) -> dict[tuple[Pair, str], Counter[str]]:
    """Return how often each text has each translation."""
    found: dict[tuple[Pair, str], Counter[str]] = {}
    for row in rows:
        for pair in pairs_of(row):
            found.setdefault((pair, source_text(row, pair)), Counter())[target_text(row, pair)] += 1
    return found


def ambiguous_names(rows: Sequence[Row], known: Mapping[tuple[Pair, str], Counter[str]]) -> list[tuple[Row, Pair]]:
    """Return the rows and directions of texts with several translations among the rows, all of which are known."""
    found = translations(rows)
    ambiguous = {key for key, targets in found.items() if len(targets.keys() & known.get(key, {}).keys()) > 1}
    return [
        (row, pair)
        for row in rows
        for pair in pairs_of(row)
        if (key := (pair, source_text(row, pair))) in ambiguous and known[key][target_text(row, pair)]
    ]


# ---- Examples -------------------------------------------------------------------------------------------------------


def guided(row: Row, split: str, pair: Pair, kind: str | None, path: str = "") -> Example:
    """Return the question for a translation beside an image, a recording or nothing."""
    return example(
        "translation",
        f"{row['file_name']}/{pair[0]}-{pair[1]}/{kind}",
        group_of(row, split),
        [] if kind is None else [(kind, path)],
        QUESTION.format(target=pair[1], text=source_text(row, pair)),
        target_text(row, pair),
    )


def training(rows: Iterable[Row], voices: Mapping[str, Sequence[str]]) -> Iterator[Example]:
    """Yield every direction of each name, with the image or with a voice, drawn by `VOICE_SHARE`."""
    for row in rows:
        for pair in pairs_of(row):
            rng = random.Random(f"{row['file_name']}/{pair}")
            known = voices.get(row["name_en"], []) if pair[1] != PIVOT else []
            is_heard = rng.random() < VOICE_SHARE and len(known) > 0
            yield guided(row, TRAIN, pair, *(("audio", rng.choice(known)) if is_heard else ("image", row["path"])))


def texts(rows: Iterable[Row]) -> list[Example]:
    """Return each question without media, once with each of its answers."""
    found: dict[tuple[str, str], Example] = {}
    for row in rows:
        for pair in pairs_of(row):
            each = guided(row, TRAIN, pair, None)
            found.setdefault((asked(each), answer_of(each)), each)
    return list(found.values())


def drawn(rows: Sequence[Row], split: str) -> list[Example]:
    """Return a fixed draw of rows and directions, each with its image."""
    every = [(row, pair) for row in rows for pair in pairs_of(row)]
    chosen = random.Random(split).sample(every, min(MOST, len(every)))
    return [guided(row, split, pair, "image", row["path"]) for row, pair in chosen]


# ---- A dictionary ---------------------------------------------------------------------------------------------------


def measure(model: Path, sources: Sources) -> list[dict[str, Any]]:
    """Return the figures of a dictionary: the most frequent translation of each text in training."""
    from modeling_mm.evaluation import score  # imports torch

    usual = dictionary(read_lines(sources.folder / f"{TRAIN}.jsonl"))
    found = []
    for split, dataset in DATASETS.items():
        rows = read_lines(sources.folder / f"{split}.jsonl")
        answers = [usual.get(asked(row), "") for row in rows]
        truths = [answer_of(row) for row in rows]
        for metric in METRICS:
            value = score(metric, answers, truths)
            found.append({"dataset": dataset, "metric": metric, "name": "dictionary", "value": value})
    return found


def dictionary(rows: Iterable[Example]) -> dict[str, str]:
    """Return the most frequent answer of each question, the first in alphabetical order if several are."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(asked(row), Counter())[answer_of(row)] += 1
    return {text: min(each, key=lambda answer: (-each[answer], answer)) for text, each in counts.items()}


def asked(row: Example) -> str:
    """Return the text of a question."""
    text: str = row["messages"][0]["content"][-1]["text"]
    return text
