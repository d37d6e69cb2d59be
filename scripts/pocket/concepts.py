# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""What is the same thing, whoever drew it and in whatever language it is named; and in which split it belongs."""

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
    A name without case, articles and marks, so that "A lion." and "lion" are the same.

    >>> normalize_name("A lion.")
    'lion'
    """
    name = unicodedata.normalize("NFKC", name).casefold().replace("’", "'")
    name = re.sub(r"[^\w\s']", " ", name)
    name = re.sub(r"\s+", " ", name).strip()
    name = re.sub(ARTICLES, "", name)
    return re.sub(PEOPLE, "", name) or name


class Groups:
    """Things that share anything belong together (union-find)."""

    def __init__(self):
        self.parent: dict[Hashable, Hashable] = {}

    def find(self, item: Hashable) -> Hashable:
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
    For each thing, by its names in several languages, the concept it belongs to.

    Two things are one concept where any language gives them the same name: so no name of a concept that is held out
    can be among those trained on.

    Args:
        names: for each thing its name by language
    """
    groups = Groups()
    keys = [[f"{language}:{normalize_name(name)}" for language, name in sorted(each.items())] for each in names]
    for key in keys:
        for other in key[1:]:
            groups.join(key[0], other)
    return [str(groups.find(key[0])) for key in keys]


def split_of(key: str, shares: Mapping[str, float], seed: str = "") -> str:
    """
    The split of a key, always the same for it whatever else there is.

    Args:
        key: what is split by
        shares: the share of each split that is held out; the rest is `"train"`
        seed: another one gives other splits
    """
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for name, share in shares.items():
        if position < share:
            return name
        position -= share
    return "train"
