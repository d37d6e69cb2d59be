# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Texts with the places of objects, which follow the changes of their image.

Such a part of a message has its `objects` beside its text, in pixels of the image, and the number of the image:

    {"type": "text", "text": "apple<loc_51>...", "objects": [{"label": "apple", "box": [33, 160, 262, 418]}],
     "image_index": 0}
"""

from collections.abc import Sequence
from typing import Any

from ..boxes import LOCATION, ImageView, follow, read_objects, write_objects
from ..data.chat_row import Message
from .image_augmentation import VIEW


def located_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the text parts with objects."""
    return [part for turn in messages for part in turn["content"] if "objects" in part]


def points_in_prompt(messages: Sequence[Message]) -> bool:
    """Return if a user's text has the place of an object."""
    return any(located_parts([turn]) for turn in messages if turn["role"] != "assistant")


def check_places_can_follow(messages: Sequence[Message]) -> None:
    """Raise a `ValueError` for a text with location tokens whose objects are not known."""
    for turn in messages:
        for part in turn["content"]:
            text = part.get("text", "") if part["type"] == "text" and "objects" not in part else ""
            if LOCATION.search(text):
                raise ValueError(
                    f"The text {text!r:.80} has location tokens, but no `objects` beside it whose places could follow "
                    "a crop or a flip of the image. Give the part its `objects`, or set `crop` and `flip` to 0."
                )


def follow_images(messages: Sequence[Message]) -> list[Message]:
    """
    Return a conversation whose located texts are those of its changed images.

    Raises:
        ValueError: for a text that does not have the places of its `objects`, or names an image that is not there.
    """
    images = [part for turn in messages for part in turn["content"] if part["type"] == "image"]

    def followed(part: dict[str, Any]) -> dict[str, Any]:
        part = {key: value for key, value in part.items() if key != VIEW}
        if "objects" not in part:
            return part
        number = part.get("image_index", 0)
        if not 0 <= number < len(images):
            raise ValueError(
                f"The text {part['text']!r:.80} is about image {number}, but the conversation has {len(images)}. "
                "`image_index` counts from 0."
            )
        view = images[number].get(VIEW)
        return part if view is None else located_part(part, view)

    return [{**turn, "content": [followed(part) for part in turn["content"]]} for turn in messages]


def located_part(part: dict[str, Any], view: ImageView) -> dict[str, Any]:
    """Return a text part as it is of the changed image, which has the size that it had before."""
    objects = read_objects(part["objects"], view.size)
    if (expected := write_objects(objects, view.size)) != part["text"]:
        raise ValueError(
            f"The text {part['text']!r:.120} does not have the places of its `objects` in an image of "
            f"{view.size[0]}x{view.size[1]} pixels, which are {expected!r:.120}. Write it by `write_objects`, with "
            "the size of the upright image."
        )
    moved = follow(objects, view)
    return {**part, "text": write_objects(moved, view.size), "objects": [each.to_dict() for each in moved]}
