# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""ImageNet's classes: their names, whether an answer names one, and what EfficientNet-Lite says that images show."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

PACKAGE = "pypi:timm==1.0.20"  # which lists the names of the classes
ARTICLES = {"a", "an", "the"}
# Their words name other things than they do, so that each counts as one word: a sea lion is not a lion.
COMPOUNDS = (
    "custard apple",
    "guinea pig",
    "hot dog",
    "koala bear",
    "red panda",
    "lesser panda",
    "sea cucumber",
    "sea lion",
    "teddy bear",
    "tiger beetle",
    "tiger cat",
    "tiger shark",
)


def class_lemmas(timm_folder: Path) -> list[list[str]]:
    """
    Read the names of the 1000 classes in the order of their indices, the most common name of each first.

    Args:
        timm_folder: the unpacked `timm`

    Raises:
        ValueError: if a class has no names.
    """
    folder = timm_folder / "timm/data/_info"
    lines = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    lemmas = dict(line.split("\t", 1) for line in lines if "\t" in line)
    synsets = (folder / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    if missing := [synset for synset in synsets if synset not in lemmas]:
        raise ValueError(f"{folder}: {len(missing)} classes have no names, such as {missing[0]}.")
    return [lemmas[synset].split(", ") for synset in synsets]


def words(text: str) -> list[str]:
    """Return the words of a text without case, punctuation and articles; a compound is one word."""
    found = " ".join(word for word in re.findall(r"\w+", text.casefold()) if word not in ARTICLES)
    for compound in COMPOUNDS:
        found = re.sub(rf"\b{compound}\b", compound.replace(" ", "_"), found)
    return found.split()


def agrees(answer: str, lemmas: Sequence[str]) -> bool:
    """
    Return whether an answer names a class.

    It does if it contains one of the names as whole words, or is the last word of a name, which says what kind of
    thing it is: "retriever" for "golden retriever". That word does not count if it may as well be left out: "German
    shepherd" is also "German shepherd dog", so that "dog" is not enough.

    Args:
        answer: such as `"A golden retriever."`
        lemmas: names of the class, as in `class_lemmas`
    """
    given, names = words(answer), [words(lemma) for lemma in lemmas]
    if not given:
        return False
    kinds = {name[-1] for name in names} - {name[-1] for name in names if name[:-1] in names}
    text = f" {' '.join(given)} "
    return (len(given) == 1 and given[0] in kinds) or any(f" {' '.join(name)} " in text for name in names)


def classify(
    images: Sequence[bytes], weights: Path, variant: str = "lite2", rows: int = 16
) -> list[tuple[int, float]]:
    """
    Return the most probable class of each image and its probability, by EfficientNet-Lite's own ImageNet head.

    Args:
        images: files, prepared as for the encoder of a joint model
        weights: see [`lite.efficientnet_lite`]
        variant: `lite0`, `lite1` or `lite2`
        rows: images in a batch
    """
    import torch  # what needs names alone, and `--help`, do without

    from .lite import efficientnet_lite, lite_head, lite_processor

    model, processor = efficientnet_lite(weights, variant), lite_processor(variant)
    weight, bias = lite_head(weights)
    found = []
    for start in range(0, len(images), rows):
        batch = [Image.open(io.BytesIO(image)).convert("RGB") for image in images[start : start + rows]]
        with torch.no_grad():
            states = model(**processor(batch, return_tensors="pt")).last_hidden_state  # (N, 1280, H, W)
            probabilities = (states.mean((2, 3)) @ weight.T + bias).softmax(-1)  # (N, 1000)
        values, indices = probabilities.max(-1)
        found += list(zip(indices.tolist(), values.tolist(), strict=True))
    return found
