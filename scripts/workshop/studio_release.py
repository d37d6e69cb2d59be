# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `release_studio`: a folder that goes to the Hub as it is, with what the model drew and said."""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PreTrainedModel

from modeling_mm.hub import CardComponent, render_card
from modeling_mm.modalities import MODALITIES
from modeling_mm.recipes import RECIPE_FILE, RESULT_FILE, card_content, read_recipe
from modeling_mm.utils import markdown_table, write_text

from .find_measures import DETR, OURS, SHEET
from .find_measures import FIGURES as FOUND_FIGURES
from .find_measures import SHEET_FILE as FOUND_FILE
from .released_folder import check_note, size_of, write_weights
from .studio_measures import FIGURES, PROMPTS, SHEET_FILE, SOUNDS_FOLDER

# What a set has in figures and in short in the card.
SETS = {
    "known things in wordings that training lacks": ("known", ("known_top5",)),
    "things that training lacks": ("unseen", ("unseen_category",)),
    "sentences that training lacks": ("speech", ("wer", "real_time_factor")),
}
# Splits of scenes, in the card's words, and their figures in short.
SCENES = {
    "test_hand": "scenes of known things by a hand that training lacks",
    "test_concepts": "scenes of things that training lacks",
}
FOUND = {"ap50": "found_ap50", "any_ap50": "found_places_ap50", "referring": "found_referring"}
ABOUT_FOUND = """
## What is found

![{number} scenes]({sheet})

The first scenes of a list in random order, none left out, of known things by a hand that training lacks, with boxes
that answer "What is where?". AP50 is COCO's average precision at an IoU of 0.5, with names and of the places
alone; the last column, how often "Find the apple." gives the only apple, at the same IoU.

{table}
"""
ABOUT_SHEET = """
## Drawings

![36 drawings]({sheet})

The first drawings of a list in random order, none left out, six in a row: half of known concepts in wordings that
training has not seen, half of concepts that it has not seen.

{prompts}
"""
ABOUT_SOUNDS = """
## Speech

The first six sentences of a list in random order, none left out:

{recordings}
"""
ABOUT_FIGURES = """
## What is recognized

A drawing is looked up among all images of training by the features of a frozen EfficientNet-Lite2. Speech is
transcribed by Whisper tiny.en.

{table}
"""


def release_studio(arguments: argparse.Namespace) -> None:
    """Write weights, processor and links, unless figures are given; else what was drawn and said, and the card."""
    recipe = read_recipe(arguments.trained / RECIPE_FILE)
    model = AutoModelForImageTextToText.from_pretrained(arguments.trained, dtype=torch.float16)
    if arguments.figures is None:
        write_weights(model, arguments.trained, arguments.released)
    result, more = json.loads((arguments.trained / RESULT_FILE).read_text(encoding="utf-8")), ""
    measured = [each for each in (arguments.figures, arguments.found) if each is not None]
    weights = {check_note(each, arguments.released) for each in measured}  # none, or those that are released
    if arguments.figures is not None:
        copy_samples(arguments.figures, arguments.released)
        figures = json.loads((arguments.figures / FIGURES).read_text(encoding="utf-8"))
        result["figures"] = {
            each: {"samples": int(figures[f"{kind}_samples"]), **{name: figures[name] for name in names}}
            for each, (kind, names) in SETS.items()
        }
        more = sections(
            figures,
            json.loads((arguments.figures / PROMPTS).read_text(encoding="utf-8")),
            sorted(f"{SOUNDS_FOLDER}/{path.name}" for path in (arguments.figures / SOUNDS_FOLDER).iterdir()),
        )
    if arguments.found is not None:
        shutil.copy(arguments.found / FOUND_FILE, arguments.released / FOUND_FILE)
        result["figures"] |= found_figures(arguments.found)
        more += found_section(arguments.found)
    content = card_content(recipe, model, result)
    components = [*(replace(each, weights="new") for each in content.components), *codecs(model)]
    content = replace(content, components=components, has_test_sets=True, weights=next(iter(weights), None))
    write_text(arguments.released / "README.md", render_card(content) + more)
    print(f"{arguments.released}: {size_of(arguments.released) / 1e6:.1f} MB")


def codecs(model: PreTrainedModel) -> list[CardComponent]:
    """Return the card's rows of a model's codecs."""
    inside = {name: getattr(model.model, f"{name}_codec", None) for name in MODALITIES}
    sizes = {
        name: sum(each.numel() for each in codec.parameters()) for name, codec in inside.items() if codec is not None
    }
    return [CardComponent(f"{name} codec", "new", size, "before, alone") for name, size in sizes.items()]


def copy_samples(figures: Path, released: Path) -> None:
    """Copy the sheet and the recordings."""
    shutil.copy(figures / SHEET_FILE, released / SHEET_FILE)
    shutil.rmtree(released / SOUNDS_FOLDER, ignore_errors=True)
    shutil.copytree(figures / SOUNDS_FOLDER, released / SOUNDS_FOLDER)


def read_found(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the figures of `find_figures` by split and detector."""
    return json.loads((folder / FOUND_FIGURES).read_text(encoding="utf-8"))


def found_figures(folder: Path) -> dict[str, dict[str, float]]:
    """Return the model's figures for the card's index, by set."""
    found = read_found(folder)
    return {
        name: {
            "samples": found[f"{split}, {OURS}"]["scenes"],
            **{short: found[f"{split}, {OURS}"][figure] for figure, short in FOUND.items()},
        }
        for split, name in SCENES.items()
    }


def found_section(folder: Path) -> str:
    """Return the card's section of what is found, beside a DETR if one was measured."""
    found, names = read_found(folder), ("AP50", "AP50 of places", "found when named")
    rows = [
        [f"{SCENES[split]} ({values['scenes']}), {who}", *(f"{values[figure]:.3f}" for figure in FOUND)]
        for split in SCENES
        for key, who in ((OURS, "this model"), (DETR, "a Conditional DETR on the same encoder states"))
        if (values := found.get(f"{split}, {key}"))
    ]
    return ABOUT_FOUND.format(number=SHEET, sheet=FOUND_FILE, table=markdown_table(("", *names), rows))


def sections(figures: Mapping[str, float], prompts: Mapping[str, Sequence[str]], recordings: Sequence[str]) -> str:
    """Return the card's sections of figures, drawings and recordings."""
    numbered = "\n".join(f"{number}. {prompt}" for number, prompt in enumerate(prompts["images"], 1))
    spoken = "\n".join(f"- [{text}]({path})" for text, path in zip(prompts["audio"], recordings, strict=True))
    return (
        ABOUT_FIGURES.format(table=figure_table(figures))
        + ABOUT_SHEET.format(sheet=SHEET_FILE, prompts=numbered)
        + ABOUT_SOUNDS.format(recordings=spoken)
    )


def figure_table(figures: Mapping[str, float]) -> str:
    """Return the figures, each beside what it is to be compared with."""
    hand = {
        key: f"{figures[f'unseen_hand_{key}']:.3f}, images by a hand that training lacks" for key in ("top5", "top1")
    }
    rows = [
        ("known concepts, one of the five nearest", figures["known_top5"], hand["top5"]),
        ("known concepts, the nearest", figures["known_top1"], hand["top1"]),
        ("unseen concepts, category", figures["unseen_category"], f"{figures['unseen_majority']:.3f}, the majority"),
        ("unseen sentences, word error rate", figures["wer"], f"{figures['wer_teacher']:.3f}, the synthesizer"),
        ("seconds of work for a second of speech", figures["real_time_factor"], ""),
    ]
    return markdown_table(("", "model", "beside it"), [(name, f"{value:.3f}", other) for name, value, other in rows])
