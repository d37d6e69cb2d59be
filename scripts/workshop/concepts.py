# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Concepts: group things that share a name in any language, and assign each concept to one split."""

import hashlib
import re
import unicodedata
from collections.abc import Hashable, Mapping, Sequence

ARTICLES = r"^(?:(?:a|an|the|some|un|une|des|le|la|les|el|los|las|unos|unas)\s+|l')"
# "woman running" and "person running" are drawn almost alike: one concept.
PERSONS = (
    *("man", "woman", "person", "men", "women", "people", "boy", "girl", "child", "hombre", "mujer", "persona"),
    *("homme", "femme", "personne", "мужчина", "женщина", "человек", "男人", "女人", "男", "女"),
)
PEOPLE = rf"^({'|'.join(PERSONS)})[\s:,-]+"


def normalize_name(name: str) -> str:
    """
    Return a name without case, articles and marks, so that "A lion." and "lion" are equal.

    >>> normalize_name("A lion.")
    'lion'
    """
    name = unicodedata.normalize("NFKC", name).casefold().replace("’", "'")
    name = re.sub(r"[^\w\s']", " ", name)
    name = re.sub(r"\s+", " ", name).strip()
    name = re.sub(ARTICLES, "", name)
    return re.sub(PEOPLE, "", name) or name


class DisjointSets:
    """Groups of items that are joined directly or through others (union-find)."""

    def __init__(self) -> None:
        self.parent: dict[Hashable, Hashable] = {}

    def find(self, item: Hashable) -> Hashable:
        """Return the item that represents the group of `item`: the first in alphabetical order."""
        self.parent.setdefault(item, item)
        while self.parent[item] != item:
            self.parent[item] = self.parent[self.parent[item]]
            item = self.parent[item]
        return item

    def join(self, first: Hashable, second: Hashable) -> None:
        first, second = self.find(first), self.find(second)
        if first != second:
            self.parent[max(first, second, key=str)] = min(first, second, key=str)


def group_concepts(names: Sequence[Mapping[str, str]]) -> list[str]:
    """
    Return the concept of each thing, given its names by language.

    Two things are one concept if they have the same name in any language. A name of a held-out concept therefore never
    occurs in training.
    """
    groups = DisjointSets()
    keys = [[f"{language}:{normalize_name(name)}" for language, name in sorted(each.items())] for each in names]
    for key in keys:
        for other in key[1:]:
            groups.join(key[0], other)
    return [str(groups.find(key[0])) for key in keys]


def split_of(key: str, shares: Mapping[str, float], seed: str = "") -> str:
    """
    Return the split of a key, which depends on nothing but these arguments.

    Args:
        key: the name of the concept or the text of the transcript.
        shares: the share of each held-out split; the rest is `"train"`.
        seed: a name for this way of splitting.
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for name, share in shares.items():
        if position < share:
            return name
        position -= share
    return "train"
