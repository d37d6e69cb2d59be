# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Recommendation of one more item for a basket, whose items are of one category.

The items are emoji, the categories those of the npm package `emoji-datasource-google`. A shop has each item's image,
and its title in the one language that its seller writes. Training sees other items of a basket; the catalogs of the
tests hold images by an unseen hand, and items that nobody has bought before.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..workshop.corpus import read_description
from ..workshop.sources import LANGUAGES
from .captions import CONCEPTS, HAND, Row, group_of, read_images
from .examples import TRAIN, Example, Sources, example

QUESTION = "What else?"  # retrieval leaves it out
DATASETS = {HAND: "known items by an unseen hand", CONCEPTS: "unseen items"}
LIKED = {HAND: 3, CONCEPTS: 2}  # items of a basket: few unseen items share a category
MATES = 2  # other items of its basket that an image of training is paired with, beside its title
TOP = 10
METRIC = f"hit@{TOP}"
REACH = {(dataset, METRIC): "above popularity and text alone" for dataset in DATASETS.values()}
LEAST = -2.0  # below every sum of cosines: for items that are in the basket already


@dataclass(frozen=True)
class Basket:
    """Numbers of the items of a catalog that somebody has, and of the one that is wanted."""

    liked: tuple[int, ...]
    wanted: int


def build(sources: Sources) -> dict[str, list[Example]]:
    """Return images with titles of their basket's items, and for the tests those of a basket with the title wanted."""
    categories = read_categories(sources)
    splits = {TRAIN: training(items_of(read_images(sources, TRAIN), categories))}
    for split in DATASETS:
        items = catalog(sources, split, categories)
        splits[split] = [question(items, basket, split) for basket in baskets(items, LIKED[split])]
    return splits


def prepare(sources: Sources, splits: Mapping[str, Sequence[Example]]) -> None:
    """Write the components that the recipe joins."""
    from .components import write_components  # imports torch

    write_components(sources, splits, hears=False, layers=2)


# ---- Items ----------------------------------------------------------------------------------------------------------


def read_categories(sources: Sources) -> dict[str, str]:
    """Return the category of each emoji by its code points, as the names of images have them."""
    path = sources.fetch(read_description("images").packages["noto"]) / "package/emoji.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {entry["unified"].lower(): entry.get("subcategory", entry["category"]) for entry in entries}


def code_of(row: Row) -> str:
    """Return the code points of an image's emoji: `train/noto-1f381.png` -> `1f381`."""
    return Path(row["file_name"]).stem.partition("-")[2]


def items_of(rows: Sequence[Row], categories: Mapping[str, str]) -> list[Row]:
    """Return the images that are items, each with its category, its title and the title's language."""
    found = []
    for row in rows:
        if code_of(row) in categories:
            language = random.Random(f"seller of {code_of(row)}").choice(LANGUAGES)
            item = {"category": categories[code_of(row)], "language": language, "title": row[f"name_{language}"]}
            found.append({**row, **item})
    return found


def catalog(sources: Sources, split: str, categories: Mapping[str, str]) -> list[Row]:
    """Return the items of a test, each once, as the unseen hand has drawn them."""
    hand = read_description("images").settings["unseen_hand"]
    return [item for item in items_of(read_images(sources, split), categories) if item["hand"] == hand]


def mates_of(items: Sequence[Row]) -> dict[str, list[int]]:
    """Return the numbers of the items of each category."""
    found: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        found.setdefault(item["category"], []).append(number)
    return found


# ---- Examples -------------------------------------------------------------------------------------------------------


def baskets(items: Sequence[Row], size: int) -> list[Basket]:
    """Return a basket for each item that is wanted, with `size` others of its category if there are so many."""
    by_category, found = mates_of(items), []
    for number, item in enumerate(items):
        others = [other for other in by_category[item["category"]] if other != number]
        if len(others) >= size:
            rng = random.Random(f"basket of {item['file_name']}")
            found.append(Basket(tuple(rng.sample(others, size)), number))
    return found


def training(items: Sequence[Row]) -> list[Example]:
    """Return each image with its title, and with the titles of other items of its category."""
    by_category, found = mates_of(items), []
    for item in items:
        rng = random.Random(f"mates of {item['file_name']}")
        others = [other for other in by_category[item["category"]] if code_of(items[other]) != code_of(item)]
        chosen = [items[other] for other in rng.sample(others, min(MATES, len(others)))]
        for number, each in enumerate([item, *chosen]):
            key, media = f"{item['file_name']}/{number}", [("image", item["path"])]
            found.append(example("recommendation", key, group_of(item, TRAIN), media, QUESTION, each["title"]))
    return found


def question(items: Sequence[Row], basket: Basket, split: str) -> Example:
    """Return the images of a basket, with the title of the wanted item."""
    wanted = items[basket.wanted]
    media = [("image", items[number]["path"]) for number in basket.liked]
    return example("recommendation", wanted["file_name"], group_of(wanted, split), media, QUESTION, wanted["title"])


# ---- Figures --------------------------------------------------------------------------------------------------------


def measure(model: Path, sources: Sources) -> list[dict[str, Any]]:
    """Return the hits of items with image and title, and of either alone, of popularity and of chance."""
    from .frozen import Retriever  # imports torch

    retriever, categories, found = Retriever(model, "recommendation"), read_categories(sources), []
    for split, dataset in DATASETS.items():
        items = catalog(sources, split, categories)
        wished = baskets(items, LIKED[split])
        sides = embedded(retriever, items, sources.folder)
        text, image = (similarities(sides[side], wished) for side in ("text", "image"))
        alone, both = hits(text, wished), hits(text + image, wished)
        figure = {"dataset": dataset, "metric": METRIC, "samples": len(wished)}
        found.append({**figure, "model": both, "majority": popular_hits(len(items), wished), "text_only": alone})
        found.append({**figure, "name": "image alone", "value": hits(image, wished)})
        found.append({**figure, "name": "chance", "value": TOP / (len(items) - LIKED[split])})
    return found


def embedded(retriever: Any, items: Sequence[Row], folder: Path) -> dict[str, np.ndarray]:
    """Return the embeddings (N, P) of the titles and of the images of items."""
    from modeling_mm.data import ChatRow

    rows = []
    for item in items:
        content = [{"type": "image", "path": str(folder / item["path"])}]
        answer = [{"type": "text", "text": item["title"]}]
        rows.append(ChatRow([{"role": "user", "content": content}, {"role": "assistant", "content": answer}]))
    found: dict[str, np.ndarray] = retriever.embed(rows, ("text", "image"))
    return found


def similarities(vectors: np.ndarray, wished: Sequence[Basket]) -> np.ndarray:
    """
    Return the mean cosine of each item of a catalog to the liked items, (baskets, items), from vectors (items, P).

    Those of titles and of images are added, not the vectors: an image says nothing about the title of another item.
    """
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    return np.stack([units @ units[list(basket.liked)].mean(0) for basket in wished])


def hits(scores: np.ndarray, wished: Sequence[Basket]) -> float:
    """Return the share of baskets whose wanted item is among the first, by scores (baskets, items)."""
    from modeling_mm.evaluation import recall_at_k

    return recall_at_k(without_liked(scores, wished), TOP, [basket.wanted for basket in wished])


def popular_hits(count: int, wished: Sequence[Basket]) -> float:
    """Return the hits of the items that are in most of the other baskets."""
    bought = np.zeros(count)
    for basket in wished:
        bought[[*basket.liked, basket.wanted]] += 1
    scores = np.tile(bought, (len(wished), 1))
    for row, basket in enumerate(wished):
        scores[row, [*basket.liked, basket.wanted]] -= 1  # what the other baskets say
    return hits(scores, wished)


def without_liked(scores: np.ndarray, wished: Sequence[Basket]) -> np.ndarray:
    """Return scores (baskets, items) in which what is in the basket comes last."""
    found = scores.copy()
    for row, basket in enumerate(wished):
        found[row, list(basket.liked)] = LEAST
    return found
