# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Scenes with their truths, and what a detector has to say of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modeling_mm.boxes import ImageObject, Size, read_objects
from modeling_mm.data import ChatRow, load_chats
from modeling_mm.recipes import rows_of

from .corpus import read_rows


@dataclass(frozen=True)
class Scene:
    """An image of a split, its size, and the things in it."""

    path: str
    size: Size
    objects: list[ImageObject]


@dataclass(frozen=True)
class Found:
    """Boxes in a scene: with their names, and of anything, each place once."""

    named: list[ImageObject]
    places: list[ImageObject]


class Detector(Protocol):
    """Something that finds things in scenes."""

    def detect(self, scenes: Sequence[Scene]) -> list[Found]:
        """Return all that is found in each scene."""
        ...

    def find(self, scenes: Sequence[Scene], rows: Sequence[ChatRow]) -> list[list[ImageObject]]:
        """Return the boxes of the thing that each prompt, about the scene of its number, asks for."""
        ...


def question(path: str, text: str) -> ChatRow:
    content = [{"type": "image", "path": path}, {"type": "text", "text": text}]
    answer = [{"type": "text", "text": ""}]
    return ChatRow([{"role": "user", "content": content}, {"role": "assistant", "content": answer}])


def scenes_of(folder: Path, split: str, limit: int | None) -> list[Scene]:
    """Return the first scenes of a split; all are composed at random."""
    scenes = []
    for row in read_rows(folder, split)[:limit]:
        size = (row["width"], row["height"])
        scenes.append(Scene(str(folder / row["file_name"]), size, read_objects(row["objects"], size)))
    return scenes


def prompts_of(
    folder: Path, split: str, scenes: Sequence[Scene], limit: int | None
) -> list[tuple[Scene, ChatRow, ImageObject]]:
    """Return the first prompts for a thing that a scene has once, each with its scene and this thing."""
    by_name = {Path(scene.path).name: scene for scene in scenes}
    found = []
    for row in rows_of(load_chats(folder / "chats" / split / "find.jsonl")):
        image, _ = row.messages[0]["content"]
        scene = by_name.get(Path(image["path"]).name)
        (answer,) = row.messages[-1]["content"]
        if scene is not None and len(answer["objects"]) == 1:
            found.append((scene, row, read_objects(answer["objects"], scene.size)[0]))
    return found[:limit]
