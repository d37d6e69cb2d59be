# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Files of a web page's answers: images and audio that the model has written, and images with the places it names."""

import asyncio
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..boxes import BOX, ImageObject, parse_objects
from ..images import decode_image
from ..utils.audio_writing import encode_audio
from .engine import Engine

# Colors that people with any color vision distinguish (Okabe and Ito).
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
LEAST_SIDE = 320  # of an image with places, in pixels: names have a fixed size


async def written_files(engine: Engine, processor: Any, tokens: Sequence[int], folder: str) -> list[str]:
    """Return the paths of an answer's images and audio, which the codecs decode between two steps of other answers."""
    if not processor.written:
        return []
    parts = await asyncio.wrap_future(engine.call(processor.decode_media, list(tokens)))
    media = [part for part in parts if part.get(part["type"]) is not None and part["type"] in processor.written]
    return [save_media(part, folder) for part in media]


def save_media(part: Mapping[str, Any], folder: str) -> str:
    """Save an image as PNG or audio as WAV under a new name, and return its path."""
    suffix = ".png" if part["type"] == "image" else ".wav"
    with tempfile.NamedTemporaryFile(dir=folder, suffix=suffix, delete=False) as file:
        if suffix == ".png":
            part["image"].save(file, "PNG")
        else:
            samples, rate = part["audio"]
            file.write(encode_audio(samples, rate, "wav"))
    return file.name


def places_file(turns: Sequence[Mapping[str, Any]], text: str, folder: str) -> str | None:
    """
    Return the path of a conversation's last image with the places that an answer names.

    None without an image, and for an answer that names no place.
    """
    paths = [part["path"] for turn in turns for part in turn["content"] if part["type"] == "image"]
    if not paths or "<loc_" not in text:
        return None
    image = decode_image(Path(paths[-1]).read_bytes())
    if not (objects := parse_objects(text, image.size).objects):
        return None
    return save_media({"type": "image", "image": draw_objects(image, objects)}, folder)


def draw_objects(image: Image.Image, objects: Sequence[ImageObject]) -> Image.Image:
    """Return a copy of an image, enlarged if it is small, with a box or a dot and the name of each object."""
    scale = max(1.0, LEAST_SIDE / max(image.size))
    drawn = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    canvas = ImageDraw.Draw(drawn)
    width = max(2, round(max(drawn.size) / 200))
    for each, color in zip(objects, itertools.cycle(COLORS), strict=False):
        place = [value * scale for value in each.place]
        if each.kind == BOX:
            canvas.rectangle(place, outline=color, width=width)
        else:
            canvas.circle(place, 2 * width, fill=color)
        if each.label:
            corner = (place[0] + width, place[1] + width)
            canvas.rectangle(canvas.textbbox(corner, each.label), fill=color)
            canvas.text(corner, each.label, fill="white" if color != COLORS[-1] else "black")
    return drawn
