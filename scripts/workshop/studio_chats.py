# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Chats whose answers are drawn or spoken: images by one hand, and sentences in one voice.

A prompt names what an image shows, at times with CLDR's keywords of it, from which a model can tell what a thing is
that it has never drawn; in training also the keywords alone, so that they come to mean something.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from modeling_mm.prompts import DEFAULT_DRAWING_PROMPT, DEFAULT_SPEECH_PROMPT

from . import phrases
from .builders import CorpusBuilder
from .chats import TRAIN, CorpusReader, Example, Row, seeded, write_chats
from .corpus import read_built, read_description
from .sources import read_cldr_keywords, read_cldr_names

NAME = "studio"
SPEECH = "studio-speech"
HAND = "noto"  # who draws
WORDINGS = "test_wordings"  # the split of known concepts in wordings that are not in training
KEYWORDS = 3  # of an image in a prompt, at most
DRAWS = 24  # prompts for each image in training
DRAW = (DEFAULT_DRAWING_PROMPT, *phrases.DRAW)
WITHOUT_PROMPT = 0.1  # share of the training examples that have none, for guidance
WITHOUT_NAME = 0.15  # share of those with at least two keywords that have these alone
WITH_ARTICLE = 0.3
LOWER_CASE = 0.2
CHARACTERS = 60  # of a sentence, at most: what fits the decoder's positions


def drawn(key: str, prompt: str | None, path: str) -> Example:
    """Return an example of an answer that is an image."""
    return written("draw/en", key, prompt, {"type": "image", "path": path})


def written(task: str, key: str, prompt: str | None, answer: dict[str, str]) -> Example:
    """Return a prompt, if there is one, and an answer that is a media part."""
    asked = [] if prompt is None else [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    return {"id": f"{task}/{key}", "task": task, "messages": [*asked, {"role": "assistant", "content": [answer]}]}


def drawing_prompt(row: Row, keywords: Sequence[str], rng: random.Random, wordings: Sequence[str]) -> str:
    """Return a prompt for an image; every other one has some of its keywords."""
    some = rng.sample(list(keywords), min(KEYWORDS, len(keywords)))
    name = row["name_en"] if not some or rng.random() < 0.5 else f"{row['name_en']}: {', '.join(some)}"
    return rng.choice(wordings).format(text=name)


def training_prompt(row: Row, keywords: Sequence[str], rng: random.Random) -> str | None:
    """Return a prompt for an image in one of many forms, or None."""
    if rng.random() < WITHOUT_PROMPT:
        return None
    name = row["name_en"]
    if len(keywords) > 1 and rng.random() < WITHOUT_NAME:
        some = rng.sample(list(keywords), rng.randint(2, min(KEYWORDS, len(keywords))))
        prompt = rng.choice(DRAW).format(text=", ".join(some))
    else:
        article = rng.choice(("the", "an" if name[0].casefold() in "aeiou" else "a"))
        named = {**row, "name_en": f"{article} {name}"} if rng.random() < WITH_ARTICLE else row
        prompt = drawing_prompt(named, keywords, rng, DRAW)
    return prompt.lower() if rng.random() < LOWER_CASE else prompt


def draw(corpora: CorpusReader, keywords: Mapping[str, Sequence[str]], split: str) -> Iterator[Example]:
    """Ask for images: in training in many wordings and at times without one, else once in an unseen one."""
    for row in corpora.rows("images", TRAIN if split == WORDINGS else split):
        if row["hand"] != HAND:
            continue
        words = [word for word in keywords.get(row["name_en"], ()) if word != row["name_en"]]
        for number in range(DRAWS if split == TRAIN else 1):
            rng = seeded("draw", row, number)
            if split == TRAIN:
                prompt = training_prompt(row, words, rng)
            else:
                prompt = drawing_prompt(row, words, rng, phrases.DRAW_UNSEEN)
            yield drawn(f"{row['file_name']}/{number}", prompt, row["path"])


def say(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """Ask for sentences to be spoken, but for long ones."""
    for row in corpora.rows(SPEECH, split):
        if len(row["text"]) > CHARACTERS:
            continue
        prompt = DEFAULT_SPEECH_PROMPT.format(text=row["text"])
        yield written("say/en", row["file_name"], prompt, {"type": "audio", "path": row["path"]})


def build_studio_chats(folder: Path, builder: CorpusBuilder) -> Counter:
    """
    Write the chats below `folder`, where the corpora of images and of speech are; return their number in each split.

    Raises:
        FileNotFoundError: if a corpus is not built.
    """
    description = read_description(NAME)
    if missing := [name for name in ("images", SPEECH) if not read_built(folder / name)]:
        raise FileNotFoundError(f"{folder} lacks the corpora {', '.join(missing)} of the chats. Build them first.")
    cldr = builder.fetch(builder.description, "names")
    words, corpora = read_cldr_keywords(cldr), CorpusReader(folder)
    keywords = {names["en"]: words[bare] for bare, names in read_cldr_names(cldr).items() if "en" in names}
    return write_chats(
        folder / NAME, description, {"draw": partial(draw, corpora, keywords), "say": partial(say, corpora)}
    )
