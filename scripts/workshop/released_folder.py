# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `release`: a folder that goes to the Hub as it is, from the output folder of training."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

import modeling_mm
from modeling_mm.evaluation import Figure
from modeling_mm.hub import render_card
from modeling_mm.prompts import set_prompts
from modeling_mm.recipes import RECIPE_FILE, RESULT_FILE, Recipe, card_content, read_recipe
from modeling_mm.utils import write_text

from .phrases import TRANSCRIBE, TRANSLATE


def release(arguments: argparse.Namespace) -> None:
    """Write weights, processor and links, unless figures are given, then the card."""
    recipe = read_recipe(arguments.trained / RECIPE_FILE)
    model = AutoModelForImageTextToText.from_pretrained(arguments.trained, dtype=torch.float16)
    if arguments.figures is None:
        remove_local_paths(model)
        set_prompts(model, transcription_prompts(), TRANSLATE)
        for link in filter(Path.is_symlink, arguments.released.glob("*")):  # of an earlier release
            link.unlink()
        model.save_pretrained(arguments.released)
        AutoProcessor.from_pretrained(arguments.trained).save_pretrained(arguments.released)
        link_code(arguments.released)
    write_text(arguments.released / "README.md", card(recipe, model, arguments))
    size = sum(path.stat().st_size for path in arguments.released.iterdir())
    print(f"{arguments.released}: {size / 1e6:.1f} MB")


def card(recipe: Recipe, model: PreTrainedModel, arguments: argparse.Namespace) -> str:
    """Return the card of the run, with the figures of the released weights if they are measured."""
    result = json.loads((arguments.trained / RESULT_FILE).read_text(encoding="utf-8"))
    content = card_content(recipe, model, result)
    if arguments.figures is not None:
        rows = json.loads((arguments.figures / "figures.json").read_text(encoding="utf-8"))
        content = replace(content, figures=[Figure(**row) for row in rows])
    return render_card(content)


def transcription_prompts() -> dict[str, str]:
    """Return the prompt of the released model for a transcript in each language."""
    # "Transcribe the speech." has fewer character errors than "What is said?" on the shipped recordings: 0.93 to 1.02.
    return {language: wordings[0] for language, wordings in TRANSCRIBE.items()} | {"en": TRANSCRIBE["en"][1]}


def remove_local_paths(model: PreTrainedModel) -> None:
    """Remove the folders that the components were read from, which exist on this machine only, from the configs."""
    for config in (model.config, *(getattr(model.config, name) for name in model.config.sub_configs)):
        if config is not None:
            config._name_or_path = ""


def link_code(folder: Path) -> None:
    """Replace copies of the package's files by links to them."""
    package = Path(modeling_mm.__file__).parent
    for path in [*folder.glob("*.py"), *folder.glob("*.jinja")]:
        path.unlink()
        path.symlink_to(os.path.relpath(package / path.name, folder.resolve()))
