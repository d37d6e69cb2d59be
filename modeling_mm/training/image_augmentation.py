# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Random changes of images with Pillow: crops, flips that keep what is said true, and light."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ..boxes import ImageView, cropped, mirrored, resized
from ..data.chat_row import media_source
from ..data.examples import is_task_among
from ..images import load_image

# Aspect ratios of random crops (Szegedy et al., 2015, "Going deeper with convolutions").
LOG_ASPECTS = (math.log(3 / 4), math.log(4 / 3))
# Key of a changed image's part that tells where the places of the image went; texts follow it.
VIEW = "view"
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
# Beginnings of words in English, French, Spanish and Russian that are no longer true of a mirrored image: sides, and
# things that bear writing or mean something else when mirrored. A word too many costs only a flip.
# (French "montre" is a watch, but not in "que montre l'image".)
SIDE_WORDS = (
    *("left", "right", "mirror", "clockwise", "counterclockwise", "anticlockwise", "east", "west"),
    *("gauche", "droit", "miroir", "izquierd", "derech", "espejo", "лев", "прав", "зеркал"),
)
WRITING_WORDS = (
    *("letter", "text", "written", "writing", "read", "spell", "sign", "number", "numeral", "digit", "keycap"),
    *("flag", "clock", "watch", "arrow", "calendar", "lettre", "texte", "écrit", "panneau", "numéro", "nombre"),
    *("chiffre", "drapeau", "horloge", "montre(?! [cl])", "flèche", "calendrier", "letra", "texto", "escrit", "señal"),
    *("número", "dígito", "cifra", "bandera", "reloj", "flecha", "calendario", "букв", "текст", "надпис", "написан"),
    *("знак", "числ", "цифр", "номер", "флаг", "часы", "стрел", "календар"),
)
# Chinese has no spaces between words.
CHINESE_WORDS = (
    *("左", "右", "镜", "顺时针", "逆时针", "字母", "数字", "文字", "汉字", "写着", "读", "标志", "旗", "钟", "手表"),
    *("箭头", "日历"),
)
CANNOT_BE_MIRRORED = re.compile(rf"\b(?:{'|'.join((*SIDE_WORDS, *WRITING_WORDS))})|{'|'.join(CHINESE_WORDS)}", re.I)


@dataclass
class ImageAugmentation:
    """
    Random changes of the images of an example. Zero switches a change off.

    Args:
        crop: largest share of an image's area that is cut away, in [0, 1). The rest, whose aspect ratio is 3:4 to 4:3
            of the image's, is resized to the size of the image.
        flip: probability that all images of an example are mirrored, in [0, 1]. Images that bear writing are never
            mirrored: those of a part marked `"has_text": true`, of a task in `unflipped_tasks`, or of a conversation
            with words that would be wrong of the mirrored image (left, right, letter, clock, ...; in English, Chinese,
            French, Spanish and Russian).
        color: largest change of brightness, contrast and saturation, in [0, 1]: factors in [1 - color, 1 + color].
            Hues do not change, so that a red thing remains red.
        unflipped_tasks: tasks whose images are not mirrored, by their name or the part of it before the "/".
    """

    crop: float = 0.0
    flip: float = 0.0
    color: float = 0.0
    unflipped_tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.crop < 1:
            raise ValueError(f"`crop` of ImageAugmentation must lie in [0, 1), got {self.crop}.")
        for name in ("flip", "color"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` of ImageAugmentation must lie in [0, 1], got {getattr(self, name)}.")

    @property
    def is_on(self) -> bool:
        return self.crop > 0 or self.flip > 0 or self.color > 0

    def may_flip(self, task: str | None, texts: Iterable[str], has_text: bool) -> bool:
        """Return if an example stays true when its images are mirrored."""
        kept = has_text or is_task_among(task, self.unflipped_tasks)
        return not (kept or any(CANNOT_BE_MIRRORED.search(text) for text in texts))

    def change(
        self, part: dict[str, Any], generator: np.random.Generator, is_flipped: bool, rate: int | None
    ) -> dict[str, Any]:
        """Return the part of a message with its image loaded and changed."""
        if not self.is_on:
            return part
        image = cast(Image.Image, load_image(media_source(part)))
        image, view = self.apply(image, generator, is_flipped)
        return {"type": "image", "image": image, VIEW: view}

    def apply(
        self, image: Image.Image, generator: np.random.Generator, is_flipped: bool = False
    ) -> tuple[Image.Image, ImageView]:
        """Return an RGB image changed, of the same size, and where its places went."""
        view = resized(image.size, image.size)
        if self.crop > 0:
            box = random_box(image.size, 1 - self.crop, generator)
            image = image.resize(image.size, Image.Resampling.BICUBIC, box=box)
            view = view.then(cropped(box, image.size))
        if is_flipped:
            image = ImageOps.mirror(image)
            view = view.then(mirrored(image.size))
        if self.color > 0:
            for index in generator.permutation(len(ENHANCERS)):
                factor = generator.uniform(1 - self.color, 1 + self.color)
                image = ENHANCERS[index](image).enhance(factor)
        return image, view


def random_box(
    size: tuple[int, int], smallest: float, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """Draw a box of at least the share `smallest` of an image of `size` (width, height): left, top, right, bottom."""
    area = generator.uniform(smallest, 1.0)
    stretch = math.exp(generator.uniform(*LOG_ASPECTS))
    # If one side is cut to the image's, the other grows, so that the area stays.
    stretch = min(max(stretch, area), 1 / area)
    width, height = size[0] * math.sqrt(area * stretch), size[1] * math.sqrt(area / stretch)
    width, height = min(width, size[0]), min(height, size[1])
    left, top = generator.uniform(0, size[0] - width), generator.uniform(0, size[1] - height)
    return left, top, left + width, top + height
