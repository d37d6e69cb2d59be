# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Images with the places that an answer names."""

import itertools
from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..boxes import BOX, ImageObject

# Colors that people with any color vision distinguish (Okabe and Ito).
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
LEAST_SIDE = 320  # of an image with places, in pixels: names have a fixed size


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
