# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `release`: a folder that goes to the Hub as it is, from the output folder of training."""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

import modeling_mm
from modeling_mm.evaluation import Figure
from modeling_mm.hub import measured_digests, measured_on, render_card, weights_digest
from modeling_mm.recipes import RECIPE_FILE, RESULT_FILE, Recipe, card_content, read_recipe
from modeling_mm.utils import markdown_table, write_text

from .base_folder import remove_local_paths

NO_WEIGHTS = "weights that it does not name"
NOTE = "weights.txt"  # what weights a folder of figures was measured on
WHISPER = "openai/whisper-tiny.en"
WEIGHTS = {  # by component
    "decoder": WHISPER,
    "cross-attention": f"{WHISPER} for audio, new for images",
    "vision encoder": "EfficientNet-Lite2",
    "audio encoder": WHISPER,
}


def release(arguments: argparse.Namespace) -> None:
    """Write weights, processor and links, unless figures are given, then the card."""
    recipe = read_recipe(arguments.trained / RECIPE_FILE)
    model = AutoModelForImageTextToText.from_pretrained(arguments.trained, dtype=torch.float16)
    if arguments.figures is None:
        write_weights(model, arguments.trained, arguments.released)
    write_text(arguments.released / "README.md", card(recipe, model, arguments))
    print(f"{arguments.released}: {size_of(arguments.released) / 1e6:.1f} MB")


def write_weights(model: PreTrainedModel, trained: Path, released: Path) -> None:
    """Write a model, the processor of the folder `trained` and links to the code into the folder `released`."""
    remove_local_paths(model)
    for link in filter(Path.is_symlink, released.glob("*")):  # of an earlier release
        link.unlink()
    model.save_pretrained(released)
    AutoProcessor.from_pretrained(trained).save_pretrained(released)
    write_compactly(released / "tokenizer.json")
    link_code(released)


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_compactly(path: Path) -> None:
    """Write a file of JSON again without its spaces, which are half of a tokenizer's file."""
    values = json.loads(path.read_text(encoding="utf-8"))
    write_text(path, json.dumps(values, ensure_ascii=False, separators=(",", ":")))


def card(recipe: Recipe, model: PreTrainedModel, arguments: argparse.Namespace) -> str:
    """Return the card of the run, with the figures of the released weights if they are measured."""
    result = json.loads((arguments.trained / RESULT_FILE).read_text(encoding="utf-8"))
    content = card_content(recipe, model, result)
    components = [replace(each, weights=WEIGHTS.get(each.name, "new")) for each in content.components]
    content = replace(content, base_models=[WHISPER], components=components)
    if arguments.figures is not None:
        rows = json.loads((arguments.figures / "figures.json").read_text(encoding="utf-8"))
        section = arguments.figures / "card.md"
        (weights,) = check_weights(section, measured_digests(section.read_text("utf-8")), arguments.released)
        content = replace(content, figures=[Figure(**row) for row in rows], weights=weights)
    text = render_card(content)
    if arguments.parity is not None:
        parity = json.loads(arguments.parity.read_text(encoding="utf-8"))
        check_weights(arguments.parity, [parity.get("weights", NO_WEIGHTS)], arguments.released)
        text += beside_whisper(parity)
    return text


def check_weights(figures: Path, measured: list[str], released: Path) -> list[str]:
    """
    Return the digest of the released weights, on which alone figures may have been measured.

    Raises:
        ValueError: if they were measured on others.
    """
    own = weights_digest(released)
    if measured != [own]:
        stated = ", ".join(measured) or NO_WEIGHTS
        raise ValueError(f"{figures}: figures of {stated}, but {released} has the weights {own}. Measure {released}.")
    return measured


def note_weights(figures: Path, model: Path) -> None:
    """Write into a folder of figures which weights they were measured on."""
    write_text(figures / NOTE, measured_on(weights_digest(model)) + "\n")


def check_note(figures: Path, released: Path) -> str:
    """Return the digest of the released weights, as `check_weights`, for a folder of figures with a note."""
    note = figures / NOTE
    (weights,) = check_weights(figures, measured_digests(note.read_text("utf-8")) if note.exists() else [], released)
    return weights


def beside_whisper(parity: dict[str, Any]) -> str:
    """Return the section of the card that compares the model with Whisper, from the figures of `parity`."""
    rows = [(name, f"{rate:.4f}", str(parity["texts"].get(name, ""))) for name, rate in parity["spoken_wer"].items()]
    table = markdown_table(("model", "word error rate", "texts equal to Whisper's"), rows)
    before, after = parity["perplexity"]["converted Whisper"], parity["perplexity"]["ours"]
    return (
        f"\n## Beside Whisper tiny.en\n\n{parity['prompts']} telephone prompts of Asterisk, of at least three words, "
        f"which training has not heard, greedy decoding:\n\n{table}\n\nPerplexity of {parity['num_texts']} "
        f"definitions of WordNet without any audio or image: {before:.4f} before the model learned to see, "
        f"{after:.4f} now.\n"
    )


def link_code(folder: Path) -> None:
    """Replace copies of the package's files by links to them; a converted model has another chat template."""
    package = Path(modeling_mm.__file__).parent
    for path in [*folder.glob("*.py"), *folder.glob("*.jinja")]:
        if path.read_bytes() != (package / path.name).read_bytes():
            continue
        path.unlink()
        path.symlink_to(os.path.relpath(package / path.name, folder.resolve()))
