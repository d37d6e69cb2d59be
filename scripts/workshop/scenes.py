# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `build_scenes`: scenes, chats that ask where things are, and annotations in COCO's form."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from modeling_mm.boxes import FIND_PROMPT
from modeling_mm.data import COCO_TASKS, located_row, located_rows, to_coco
from modeling_mm.utils import write_lines, write_text

from .builders import CorpusBuilder
from .composing import Thing, compose, cut_out, to_jpeg
from .concepts import normalize_name
from .corpus import Description, PendingFile, UnusableError, is_built, read_rows, write_corpus

ABSENT = 0.2  # of the scenes, that are also asked for a thing that is not there


def things_of(builder: CorpusBuilder, split: str, kinds: Sequence[str], most_words: int) -> list[Thing]:
    """Return the cut-out things of a split whose names have few words, in the order of the packages."""
    things = []
    for image in builder.images:
        label = normalize_name(image.names["en"])
        if image.kind not in kinds or builder.image_split(image) != split:
            continue
        if not 1 <= len(label.split()) <= most_words:
            continue
        try:
            cut_out(image.path)
        except UnusableError:
            continue
        things.append(Thing(image.path, label, builder.concept(image), image.hand))
    return things


def draw_thing(rng: random.Random, things: Sequence[Thing], again: float, there: Sequence[Thing]) -> Thing:
    """Draw a thing: mostly any, at times another one that is there already."""
    if there and rng.random() < again:
        return rng.choice(there)
    return rng.choice(things)


def scene_files(builder: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    settings = description.settings
    for split, count in settings["counts"].items():
        things = things_of(builder, split, settings["kinds"], settings["most_words"])
        for number in range(count if things else 0):
            rng = random.Random(f"scenes/{split}/{number}")
            scene = compose(rng, partial(draw_thing, rng, things, settings["again"]), settings)
            columns = {"width": scene.image.width, "height": scene.image.height, "objects": scene.objects}
            yield PendingFile(split, f"{number:05d}.jpg", partial(bytes, to_jpeg(scene.image)), columns)


def scene_chats(folder: Path, split: str) -> dict[str, list[dict[str, Any]]]:
    """Return the chats of a split by task, with paths from the folder that they are written to."""
    rows = read_rows(folder, split)
    labels = sorted({each["label"] for row in rows for each in row["objects"]})
    chats: dict[str, list[dict[str, Any]]] = {task: [] for task in COCO_TASKS}
    for row in rows:
        path, size = Path("../..") / row["file_name"], (row["width"], row["height"])
        found = list(located_rows(path, row["file_name"], row["objects"], size, COCO_TASKS))
        rng = random.Random(f"absent/{row['file_name']}")
        others = sorted(set(labels) - {each["label"] for each in row["objects"]})
        if others and rng.random() < ABSENT:
            label = rng.choice(others)
            found.append(
                located_row(
                    path, FIND_PROMPT.format(label=label), [], size, "find", f"find/{row['file_name']}/{label}"
                )
            )
        for each in found:
            chats[each.task or ""].append({"id": each.id, "task": each.task, "messages": each.messages})
    return chats


def build_scenes(builder: CorpusBuilder, folder: Path, description: Description) -> Counter:
    """Build the corpus in `folder`; return the number of scenes in each split."""
    description = replace(description, settings={**description.settings, "concepts": builder.description.settings})
    if is_built(folder, description):
        return write_corpus(folder, description, ())
    counts = write_corpus(folder, description, scene_files(builder, description))
    for split in description.splits:
        for task, chats in scene_chats(folder, split).items():
            write_lines(folder / "chats" / split / f"{task}.jsonl", chats)
        items = [(row["file_name"], (row["width"], row["height"]), row["objects"]) for row in read_rows(folder, split)]
        write_text(folder / f"instances_{split}.json", json.dumps(to_coco(items), ensure_ascii=False))
    return counts
