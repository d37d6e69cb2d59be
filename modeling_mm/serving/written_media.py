# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Files of a web page's answers: images and audio that the model has written, and images with the places it names."""

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..boxes import parse_objects
from ..explain import draw_objects
from ..images import decode_image
from ..utils.audio_writing import encode_audio
from .engine import Engine


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
