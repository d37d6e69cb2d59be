# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Scenes: cut-out things pasted over drawn backgrounds, with the exact box of what is seen of each."""

import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .corpus import UnusableError
from .media_files import open_image, render_svg

# Shape legend: H and W of a scene, h and w of a thing.
OPAQUE = 128  # alpha from which on a pixel belongs to a thing
LEAST_SIDE = 8  # pixels of a thing's shorter side
ATTEMPTS = 12  # places that are tried for a thing
TURNS = 12.0  # degrees to either side
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Thing:
    """Something that may stand in a scene."""

    path: Path
    label: str
    concept: str
    hand: str


@dataclass(frozen=True)
class Scene:
    """An image with its things: label, box in pixels, area that is seen, concept and hand of each."""

    image: Image.Image
    objects: list[dict[str, Any]]


@lru_cache(maxsize=4096)  # more than there are things, of which many are slow to draw
def cut_out(path: Path) -> Image.Image:
    """
    Return a thing (h, w) as RGBA without its transparent margin.

    Raises:
        UnusableError: if the file cannot be read, or is not cut out of its background.
    """
    image = open_image(render_svg(path) if path.suffix == ".svg" else path.read_bytes())
    solid = np.asarray(image.getchannel("A")) >= OPAQUE
    if not solid.any() or solid.all():
        raise UnusableError("not cut out: it has no pixel, or none around it")
    return image.crop(box_of(solid))


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the true pixels of a mask (H, W)."""
    x, y = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1


def compose(rng: random.Random, draw_thing: Callable[[Sequence[Thing]], Thing], settings: Mapping[str, Any]) -> Scene:
    """
    Return a scene that depends on `rng` alone.

    Args:
        draw_thing: returns another thing for those that are there already.
        settings: those of processing/corpora/scenes.yaml.
    """
    width, height = (rng.randint(*settings["sides"]) for _ in range(2))
    image = background(rng, width, height, settings["clutter"])
    placed: list[tuple[Thing, np.ndarray, int]] = []  # with what is seen of it (H, W), and its pixels
    for _ in range(rng.randint(*settings["things"])):
        thing = draw_thing([each for each, _, _ in placed])
        share = rng.uniform(0, 1)
        low, high = settings["scale"]
        sprite = sized(cut_out(thing.path), rng, low * (high / low) ** share * min(width, height))
        for _ in range(ATTEMPTS):
            left = rng.randint(0, max(0, width - sprite.width))
            top = rng.randint(0, max(0, height - sprite.height))
            solid = np.zeros((height, width), bool)
            alpha = np.asarray(sprite.getchannel("A"))[: height - top, : width - left] >= OPAQUE
            solid[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha
            seen = [(mask & ~solid).sum() / whole for _, mask, whole in placed]
            if solid.any() and all(each >= settings["least_visible"] for each in seen):
                placed = [(each, mask & ~solid, whole) for each, mask, whole in placed]
                placed.append((thing, solid, int(solid.sum())))
                image.alpha_composite(sprite.crop((0, 0, alpha.shape[1], alpha.shape[0])), (left, top))
                break
    objects = [
        {
            "label": thing.label,
            "box": list(box_of(mask)),
            "area": int(mask.sum()),
            "concept": thing.concept,
            "hand": thing.hand,
        }
        for thing, mask, _ in placed
    ]
    return Scene(image.convert("RGB"), objects)


def sized(sprite: Image.Image, rng: random.Random, side: float) -> Image.Image:
    """Return a thing turned a little, with its longer side scaled to `side` pixels."""
    turned = sprite.rotate(rng.uniform(-TURNS, TURNS), Image.Resampling.BICUBIC, expand=True)
    factor = side / max(turned.size)
    size = tuple(max(LEAST_SIDE, round(each * factor)) for each in turned.size)
    return turned.resize((size[0], size[1]), Image.Resampling.LANCZOS)


# ---- Backgrounds ----------------------------------------------------------------------------------------------------


def background(rng: random.Random, width: int, height: int, clutter: Sequence[int]) -> Image.Image:
    """Return a background (H, W) as RGBA: plain, a gradient, clouds or stripes, with shapes that mean nothing."""
    colors = np.array([[rng.randint(40, 255) for _ in range(3)] for _ in range(2)], np.float32)  # (2, 3)
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))  # (H, W) each
    kind = rng.choice(("plain", "gradient", "clouds", "stripes"))
    if kind == "plain":
        share = np.zeros_like(x)
    elif kind == "gradient":
        share = np.clip(rng.uniform(-1, 1) * (x - 0.5) + rng.uniform(-1, 1) * (y - 0.5) + 0.5, 0, 1)
    elif kind == "clouds":
        coarse = np.array([[rng.random() for _ in range(6)] for _ in range(6)], np.float32)
        share = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)
    else:
        share = (np.floor(rng.uniform(4, 16) * (x * rng.uniform(-1, 1) + y)) % 2).astype(np.float32)
    pixels = colors[0] + share[..., None] * (colors[1] - colors[0])  # (H, W, 3)
    image = Image.fromarray(pixels.astype(np.uint8)).convert("RGBA")
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(*clutter)):
        left, top = rng.randint(-20, width), rng.randint(-20, height)
        box = (left, top, left + rng.randint(4, width // 3), top + rng.randint(4, height // 3))
        color = tuple(rng.randint(0, 255) for _ in range(3))
        shape = rng.choice((draw.ellipse, draw.rectangle, draw.line))
        shape(box, fill=color)
    return image


def to_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
