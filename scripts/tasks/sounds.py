# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Sound of an animal or a thing: birds, mammals, objects or instruments.

The sounds belong to Tux Paint's stamps, whose folders are the categories, and to two activities of GCompris. There are
few of them, so that a figure of the test is good to a few points only.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from modeling_mm.utils import write_bytes

from ..workshop.concepts import split_of
from ..workshop.corpus import UnusableError, read_description, safe_name
from ..workshop.media_files import samples_to_flac
from ..workshop.qt_resources import read_qt_resources
from .examples import TRAIN, Example, Sources, example
from .figures import Row, ScoredTask, nearest_neighbor
from .short_window import SECONDS, prepare_window

LABELS = ["birds", "instruments", "mammals", "objects"]
QUESTION = "What makes this sound?"
# The folders of the stamps; those of other animals have too few sounds, those of festivals have music and voices.
FOLDERS = {
    "animals/birds": "birds",
    "animals/mammals": "mammals",
    "animals/marsupials": "mammals",
    "hobbies/music": "instruments",
    "food": "objects",
    "household": "objects",
    "naturalforces": "objects",
    "town/roadsigns": "objects",
    "vehicles": "objects",
}
FARM = {"chickens": "birds", "duck": "birds", "owl": "birds"}  # the other animals of a farm are mammals
PIECES = 3  # of a long sound in training; a test has the first
SHARES = {"test": 0.35}
UNSEEN = "unseen sounds"
REACH = {(UNSEEN, "accuracy"): "above 1-NN", (UNSEEN, "f1"): "", (UNSEEN, "auroc"): ""}


@dataclass(frozen=True)
class Sound:
    """
    Sound with its category.

    Args:
        data: the file.
        name: a name within its source.
        label: the category.
    """

    data: bytes
    name: str
    label: str

    @property
    def thing(self) -> str:
        """Return the animal or thing, without what is told about it: a white cow is a cow."""
        return re.split(r"[_-]", Path(self.name).stem.casefold())[0].removesuffix("s")


def prepare(sources: Sources, splits: dict[str, list[Example]]) -> None:
    """Write the model with the short window that the recipe starts from."""
    prepare_window()


def build(sources: Sources) -> dict[str, list[Example]]:
    """Return pieces of the sounds, those of a thing in one split."""
    description = read_description("images")
    stamps, gcompris = (
        sources.fetch(name)
        for name in (description.packages["stamps"], read_description("photographs").packages["photographs"])
    )
    splits: dict[str, list[Example]] = {"train": [], "test": []}
    for sound in (*stamp_sounds(stamps), *activity_sounds(gcompris)):
        split = split_of(sound.thing, SHARES, "sounds")
        for path in pieces(sound, sources)[: PIECES if split == TRAIN else 1]:
            media = [("audio", sources.media(path))]
            splits[split].append(example("sounds", path.stem, sound.thing, media, QUESTION, sound.label))
    return splits


def stamp_sounds(stamps: Path) -> Iterator[Sound]:
    """Yield the sounds of stamps, not what is said about them."""
    root = stamps / "usr/share/tuxpaint/stamps"
    for path in sorted([*root.rglob("*.ogg"), *root.rglob("*.wav")]):
        place = path.relative_to(root).as_posix()
        label = next((label for folder, label in FOLDERS.items() if place.startswith(f"{folder}/")), None)
        if label is not None and "_desc" not in path.stem:
            yield Sound(path.read_bytes(), place, label)


def activity_sounds(gcompris: Path) -> Iterator[Sound]:
    """Yield the instruments and the animals of a farm of GCompris."""
    root = gcompris / "usr/share/gcompris-qt/rcc"
    for activity in ("instruments", "explore_farm_animals"):
        for place, data in read_qt_resources(root / f"{activity}.rcc"):
            if place.endswith(".ogg"):
                name = Path(place).stem
                label = "instruments" if activity == "instruments" else FARM.get(name, "mammals")
                yield Sound(data, f"{activity}/{name}.ogg", label)


def pieces(sound: Sound, sources: Sources) -> list[Path]:
    """Write the files of a sound, cut to the window of the encoder; none if it is unreadable or silent."""
    try:
        samples, rate = soundfile.read(io.BytesIO(sound.data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return []
    paths = []
    for number, start in enumerate(range(0, len(samples), SECONDS * rate)[:PIECES]):
        path = sources.folder / "audio" / f"{safe_name(f'{sound.name}-{number}')}.flac"
        try:
            write_bytes(path, samples_to_flac(np.mean(samples[start : start + SECONDS * rate], 1), rate))
        except UnusableError:  # too short or silent
            continue
        paths.append(path)
    return paths


def measure(model: Path, sources: Sources) -> list[Row]:
    """Return the figure of 1-NN on the frozen encoder."""
    return [nearest_neighbor(ScoredTask("tasks-sounds", model, sources.folder), TRAIN, "test", UNSEEN)]
