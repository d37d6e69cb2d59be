# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Images, voices and names that find each other, by hands, voices and concepts that training lacks."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..workshop.corpus import read_lines, read_rows
from .captions import CONCEPTS, HAND, group_of, one_of_each_name, read_images, read_voices, voice_of
from .examples import TRAIN, Example, Sources, answer_of, example
from .short_window import prepare_window

TRAIN_VOICES, TRAIN_WORDS = "train_voices", "train_words"
QUESTION = "What is this?"  # retrieval leaves it out
WINDOW, WINDOW_FOLDER = 3, Path("outputs/tasks/whisper-tiny-3s")  # seconds; 97% of the spoken names are shorter
SIDES = ("text", "image", "audio")
# Corpora of the splits of training that have no images.
SPOKEN = {TRAIN_VOICES: "spoken-captions", TRAIN_WORDS: "spoken-words"}
LEARNED = {TRAIN: SIDES} | dict.fromkeys(SPOKEN, ("text", "audio"))  # splits of training with their sides
DATASETS = {HAND: "unseen hand and voice", CONCEPTS: "unseen concepts"}  # names of the recipe's test sets
METRIC = "{}_to_{}_recall_at_1"
WANTED = {HAND: "0.5; above CCA", CONCEPTS: "above CCA"}
REACH = {
    (name, METRIC.format(query, item)): WANTED[split]
    for split, name in DATASETS.items()
    for pair in combinations(SIDES, 2)
    for query, item in (pair, pair[::-1])
}


def build(sources: Sources) -> dict[str, list[Example]]:
    """
    Return images with a voice and a name; of unseen concepts one image of each name.

    Training has all recordings of names, and words that no image has, without an image: what a name sounds like is
    learned from more than one voice, and from more words than there are images.
    """
    splits = {split: recordings(sources, corpus) for split, corpus in SPOKEN.items()}
    for split in (TRAIN, HAND, CONCEPTS):
        rows, voices = read_images(sources, split), read_voices(sources, split)
        chosen = one_of_each_name(rows) if split == CONCEPTS else rows
        splits[split] = [
            example(
                "retrieval",
                row["file_name"],
                group_of(row, split),
                [("image", row["path"]), ("audio", voice)],
                QUESTION,
                row["name_en"],
            )
            for row in chosen
            if (voice := voice_of(row, voices))
        ]
    return splits


def recordings(sources: Sources, corpus: str) -> list[Example]:
    """Return the recordings of training of a corpus, each with its text."""
    return [
        example(
            "retrieval",
            row["file_name"],
            row.get("concept", row["text"]),
            [("audio", sources.media(sources.corpora / corpus / row["file_name"]))],
            QUESTION,
            row["text"],
        )
        for row in read_rows(sources.corpora / corpus, TRAIN)
    ]


def prepare(sources: Sources, splits: Mapping[str, Sequence[Example]]) -> None:
    """Write the model that the recipe starts from: mm-whisper-tiny, with a window as long as a spoken name."""
    prepare_window("outputs/mm-whisper-tiny", WINDOW_FOLDER, WINDOW)


def measure(model: Path, sources: Sources) -> list[dict[str, Any]]:
    """Return recall at 1 of canonical correlation on the means of the frozen encoders' states."""
    from .correlation import best_correlation, recall  # imports scikit-learn

    rows = {split: read_lines(sources.folder / f"{split}.jsonl") for split in (*LEARNED, *DATASETS)}
    names = {split: [answer_of(row) for row in each] for split, each in rows.items()}
    features = frozen_features(model, sources.folder, names)
    found = []
    for pair in combinations(SIDES, 2):
        learned = [split for split, sides in LEARNED.items() if {*pair} <= {*sides}]
        concepts = [row["group"] for split in learned for row in rows[split]]
        known = [name for split in learned for name in names[split]]
        one, other = (np.concatenate([features[split][side] for split in learned]) for side in pair)  # (N, W)
        fitted = best_correlation(one, other, concepts, known)
        for split, dataset in DATASETS.items():
            sides = features[split][pair[0]], features[split][pair[1]]
            for number in (0, 1):
                metric = METRIC.format(pair[number], pair[1 - number])
                value = recall(fitted, sides, names[split], number)
                found.append({"dataset": dataset, "metric": metric, "name": "CCA", "value": value})
    return found


def frozen_features(model: Path, folder: Path, names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, np.ndarray]]:
    """Return the features (N, W) of each side of each split: means of encoder states, and parts of words."""
    from .correlation import NameFeatures
    from .frozen import Retriever, read_chats

    retriever = Retriever(model, "retrieval")
    as_vectors = NameFeatures([name for split in LEARNED for name in names[split]])
    found = {}
    for split, texts in names.items():
        rows = read_chats(folder / f"{split}.jsonl")
        kinds = [side for side in LEARNED.get(split, SIDES) if side != "text"]
        found[split] = {kind: retriever.means(rows, kind) for kind in kinds} | {"text": as_vectors(texts)}
    return found
