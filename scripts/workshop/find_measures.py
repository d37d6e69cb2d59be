# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Figures of a model that points, and of a DETR beside it."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.boxes import BOX, DETECT_PROMPT, ImageObject
from modeling_mm.data import ChatRow
from modeling_mm.evaluation import detection_figures, referring_accuracy
from modeling_mm.explain import draw_objects
from modeling_mm.training import CachedCollator, EncoderCache
from modeling_mm.utils import markdown_table, show_progress, write_text

from .detr import DetrDetector, open_cache
from .find_scenes import Detector, Found, Scene, prompts_of, question, scenes_of
from .released_folder import note_weights
from .studio_measures import sheet

BATCH = 32
MOST_TOKENS = 160  # of an answer: six things with long names
FIGURES, SHEET_FILE = "figures.json", "found.png"
SHEET, COLUMNS, CELL = 6, 3, 384  # scenes of the sheet, and pixels a side of each
OURS, DETR = "ours", "DETR"


class Pointer:
    """
    A model that answers by boxes, read from the states of an encoder cache.

    Args:
        folder: of the model.
        encoder_cache: folder of encoder states, which is filled as needed.
    """

    def __init__(self, folder: Path, encoder_cache: Path):
        self.processor = MMProcessor.from_pretrained(folder)
        self.model = MMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.processor.use_codecs(self.model)
        self.cache = EncoderCache(encoder_cache, self.model, self.processor)
        self.collator = CachedCollator(self.processor, self.cache)

    def detect(self, scenes: Sequence[Scene]) -> list[Found]:
        """Return the boxes of one greedy answer to each scene."""
        answers = self.answer([question(scene.path, DETECT_PROMPT) for scene in scenes], scenes)
        return [Found(objects, objects) for objects in answers]

    def find(self, scenes: Sequence[Scene], rows: Sequence[ChatRow]) -> list[list[ImageObject]]:
        return self.answer(rows, scenes)

    @torch.no_grad()
    def answer(self, rows: Sequence[ChatRow], scenes: Sequence[Scene]) -> list[list[ImageObject]]:
        """Return the boxes of each answer with the probabilities of their tokens as scores, the likeliest first."""
        self.cache.fill(rows, progress=False)
        found: list[list[ImageObject]] = []
        for start in show_progress(range(0, len(rows), BATCH), desc="answering"):
            part = slice(start, start + BATCH)
            inputs = self.collator.prompt_batch(rows[part])
            outputs = self.model.generate(
                **inputs,
                max_new_tokens=MOST_TOKENS,
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
            )
            sizes = [(height, width) for width, height in (scene.size for scene in scenes[part])]
            found += [answer.objects for answer in self.processor.parse_answers(outputs, sizes, (BOX,))]
        return found


# ---- Figures --------------------------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    """Return the figures of each detector by split and name, and write them beside a sheet of what the model finds."""
    detectors: dict[str, Detector] = {OURS: Pointer(arguments.model, arguments.encoder_cache)}
    if arguments.detr is not None:
        detectors[DETR] = DetrDetector(arguments.detr, open_cache(arguments.model, arguments.encoder_cache))
    figures: dict[str, dict[str, float | None]] = {}
    for split in arguments.splits:
        scenes = scenes_of(arguments.scenes, split, arguments.limit)
        prompts = prompts_of(arguments.scenes, split, scenes, arguments.limit)
        for name, detector in detectors.items():
            figures[f"{split}, {name}"] = figures_of(detector, scenes, prompts)
    arguments.out.mkdir(parents=True, exist_ok=True)
    scenes = scenes_of(arguments.scenes, arguments.splits[0], SHEET)
    scene_sheet(scenes, detectors[OURS].detect(scenes)).save(arguments.out / SHEET_FILE)
    note_weights(arguments.out, arguments.model)
    write_text(arguments.out / FIGURES, json.dumps(figures, indent=1))
    return figures


def figures_of(
    detector: Detector, scenes: Sequence[Scene], prompts: Sequence[tuple[Scene, ChatRow, ImageObject]]
) -> dict[str, float | None]:
    """Return average precision and referring accuracy of a detector by name, with the numbers that they are of."""
    found, truths = detector.detect(scenes), [scene.objects for scene in scenes]
    named = detection_figures([each.named for each in found], truths)
    places = detection_figures([each.places for each in found], truths, ignore_labels=True)
    given = detector.find([scene for scene, _, _ in prompts], [row for _, row, _ in prompts])
    figures: dict[str, float | None] = {name: getattr(named, name) for name in ("ap", "ap50")}
    figures |= {f"ap_{name}": getattr(named, name) for name in ("small", "medium", "large")}
    figures |= {"any_ap": places.ap, "any_ap50": places.ap50}
    figures["referring"] = referring_accuracy(given, [truth for _, _, truth in prompts]) if prompts else None
    return figures | {"scenes": named.images, "objects": named.objects, "prompts": len(prompts)}


def scene_sheet(scenes: Sequence[Scene], found: Sequence[Found]) -> Image.Image:
    """Return scenes in rows, with the boxes and names that were found in each."""
    drawn = []
    for scene, each in zip(scenes, found, strict=True):
        with Image.open(scene.path) as image:
            drawn.append(ImageOps.pad(draw_objects(image, each.named), (CELL, CELL), color="white"))
    return sheet(drawn, COLUMNS)


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Return figures as a Markdown table, a row for each split and detector."""
    names = list(next(iter(figures.values())))
    rows = [[label, *(shown(values[name]) for name in names)] for label, values in figures.items()]
    return markdown_table(["", *names], rows)


def shown(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
