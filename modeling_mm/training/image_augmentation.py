# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Pictures changed with Pillow: cropped, mirrored unless they would then say something else, in other light."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

# The sides of a random crop, width to height (Szegedy et al., 2015, "Going deeper with convolutions").
LOG_ASPECTS = (math.log(3 / 4), math.log(4 / 3))
ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
# Beginnings of words, in the languages of the corpora, that are no longer true of a mirrored picture: sides, and what
# bears writing or means something else the other way round. Too many words cost nothing but a flip.
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
class PictureAugmentation:
    """
    What may happen to the pictures of a sample. Everything is off at zero.

    Args:
        crop: the largest share of a picture's area that is cut away, in [0, 1). What is left, of sides up to 3:4 or
            4:3 times as long as the picture's, is brought back to its size.
        flip: how likely a sample's pictures are mirrored, all of them alike, in [0, 1]. Samples whose pictures bear
            writing never are: those with a part marked `"has_text": true`, of a task in `unflipped_tasks`, or whose
            conversation has words that would be wrong of the mirrored picture (left, right, letter, clock, ...; in
            English, Chinese, French, Spanish and Russian).
        color: how far brightness, contrast and saturation go up or down, in [0, 1]: factors in [1 - color, 1 + color].
            Hues stay, so that a red thing remains red.
        unflipped_tasks: tasks, or what stands before the "/" of theirs, whose pictures are not mirrored.
    """

    crop: float = 0.0
    flip: float = 0.0
    color: float = 0.0
    unflipped_tasks: tuple[str, ...] = ("ocr", "read")

    def __post_init__(self):
        if not 0 <= self.crop < 1:
            raise ValueError(f"`crop` of PictureAugmentation must lie in [0, 1), got {self.crop}")
        for name in ("flip", "color"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` of PictureAugmentation must lie in [0, 1], got {getattr(self, name)}")

    @property
    def is_on(self) -> bool:
        return self.crop > 0 or self.flip > 0 or self.color > 0

    def may_flip(self, task: str | None, texts: Iterable[str], has_text: bool) -> bool:
        """Whether a sample stays true when its pictures are mirrored."""
        kept = task is not None and (task in self.unflipped_tasks or task.split("/")[0] in self.unflipped_tasks)
        return not (has_text or kept or any(CANNOT_BE_MIRRORED.search(text) for text in texts))

    def apply(self, picture: Image.Image, is_flipped: bool, generator: np.random.Generator) -> Image.Image:
        """An RGB picture changed, of the same size."""
        if self.crop > 0:
            box = random_box(picture.size, 1 - self.crop, generator)
            picture = picture.resize(picture.size, Image.Resampling.BICUBIC, box=box)
        if is_flipped:
            picture = ImageOps.mirror(picture)
        if self.color > 0:
            for index in generator.permutation(len(ENHANCERS)):
                factor = generator.uniform(1 - self.color, 1 + self.color)
                picture = ENHANCERS[index](picture).enhance(factor)
        return picture


def random_box(
    size: tuple[int, int], smallest: float, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """
    A box within a picture of `size` (width, height): left, top, right, bottom.

    Its area is drawn from [`smallest`, 1] of the picture's and its sides' ratio from 3:4 to 4:3 of the picture's; a
    side that would be longer than the picture is the picture's.
    """
    area = generator.uniform(smallest, 1.0)
    stretch = math.exp(generator.uniform(*LOG_ASPECTS))
    # Where one side is cut to the picture's, the other grows so that the area stays.
    stretch = min(max(stretch, area), 1 / area)
    width, height = size[0] * math.sqrt(area * stretch), size[1] * math.sqrt(area / stretch)
    width, height = min(width, size[0]), min(height, size[1])
    left, top = generator.uniform(0, size[0] - width), generator.uniform(0, size[1] - height)
    return left, top, left + width, top + height
