# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The corpora of processing/corpora, each from its packages: what goes in, into which split, under which name."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from .concepts import group_concepts, normalize_name, split_of
from .corpus import Description, PendingFile, numbered, read_description, safe_name, write_corpus
from .media_files import Synthesizer, UnusableError, picture_png, sound_flac
from .packages import fetch_package
from .sources import LANGUAGES, Clip, Picture, read_emoji, read_prompts, read_sentences, read_stamps

NAME_COLUMNS = (*LANGUAGES, "ca", "ro", "bg")
SPLIT_SEED = "concepts"


class CorpusBuilder:
    """
    What the builders share: the packages, read once, and the concepts and splits of all that has a name.

    Args:
        packages: the folder that packages are fetched into
        description: that of the pictures, which names the packages of all that has a name and the shares of the splits
    """

    def __init__(self, packages: Path, description: Description | None = None):
        self.folder = packages
        self.description = description or read_description("pictures")
        self.shares = self.description.settings["held_out"]
        self.unseen_hand = self.description.settings["unseen_hand"]
        self.pictures = self.read_pictures()
        self.concepts = dict(
            zip(map(id, self.pictures), group_concepts([p.names for p in self.pictures]), strict=True)
        )

    @cached_property
    def held_out_names(self) -> set[str]:
        """The names, in any language, of concepts that are not trained on."""
        held_out = (picture for picture in self.pictures if self.split(picture) != "train")
        return {normalize_name(name) for picture in held_out for name in picture.names.values()}

    def fetch(self, description: Description, name: str) -> Path:
        return fetch_package(description.packages[name], self.folder)

    def read_pictures(self) -> list[Picture]:
        fetch = partial(self.fetch, self.description)
        hands = {
            "noto": (fetch("noto") / "package/img/google/64", "{}.png"),
            "twemoji": (fetch("twemoji") / "package/img/twitter/64", "{}.png"),
            "fluent": (fetch("fluent") / "package/assets", "{}.webp"),
            "openmoji": (fetch("openmoji") / "package/color/svg", "{}.svg"),
        }
        return [*read_emoji(fetch("noto"), fetch("names"), hands), *read_stamps(fetch("stamps"))]

    def concept(self, picture: Picture) -> str:
        return self.concepts[id(picture)]

    def split(self, picture: Picture) -> str:
        """The split of a picture's concept, whoever drew it."""
        return split_of(self.concept(picture), self.shares, SPLIT_SEED)

    def picture_split(self, picture: Picture) -> str | None:
        """Concepts held out come first; a known concept by the unseen hand is a test of its own."""
        split = self.split(picture)
        if picture.hand != self.unseen_hand or split == "test_concepts":
            return split
        return "test_hand" if split == "train" else None  # that hand is kept out of the validation too


# ---- Pictures and the sounds of what they show ----------------------------------------------------------------------


def draft_pictures(workshop: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    names = numbered(f"{picture.hand}-{picture.key.removeprefix('emoji/')}" for picture in workshop.pictures)
    for picture, name in zip(workshop.pictures, names, strict=True):
        split = workshop.picture_split(picture)
        if split is not None:
            columns = {
                "concept": workshop.concept(picture),
                "hand": picture.hand,
                "kind": picture.kind,
                **{f"name_{language}": picture.names.get(language) for language in LANGUAGES},
            }
            yield PendingFile(split, f"{name}.png", partial(picture_png, picture.path), columns)


def draft_animal_sounds(workshop: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    for picture in workshop.pictures:
        if picture.sound is not None:
            name = safe_name(picture.key)
            columns = {
                "concept": workshop.concept(picture),
                "picture": f"{workshop.split(picture)}/tuxpaint-{name}.png",
                **{f"name_{language}": picture.names.get(language) for language in LANGUAGES},
            }
            yield PendingFile(workshop.split(picture), f"{name}.flac", partial(sound_flac, picture.sound), columns)


# ---- Speech ---------------------------------------------------------------------------------------------------------


def draft_spoken_captions(workshop: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    """Human recordings of the stamps' captions, then synthetic ones of all names in English and Chinese."""
    for picture in workshop.pictures:
        for language, path in picture.recordings.items():
            if language in picture.names:
                name = safe_name(f"human-{language}-{picture.key}")
                columns = spoken_columns(picture.names[language], language, workshop.concept(picture))
                columns |= {"voice": f"tuxpaint/{language}", "synthetic": False}
                yield PendingFile(workshop.split(picture), f"{name}.flac", partial(sound_flac, path), columns)
    yield from draft_synthetic_captions(workshop, description)


def draft_synthetic_captions(workshop: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    """
    Each name in some of the voices; the unseen voice says names of known concepts, as a test of its own, and those of
    the concepts held out.
    """
    synthesizer = workshop_synthesizer(workshop, description)
    for language, voices in description.settings["voices"].items():
        said = set()
        for picture in workshop.pictures:
            text = picture.names.get(language)
            if text is None or text in said:
                continue
            said.add(text)
            chance = random.Random(f"{language}/{text}")
            split = workshop.split(picture)
            unseen = [(voices["unseen"], "test_voice" if split == "train" else split)]
            seen = [(v, split) for v in chance.sample(voices["seen"], voices["each"])]
            if split == "train" and chance.random() >= description.settings["share_of_unseen_voice"]:
                unseen = []
            for voice, where in (seen if split != "test_concepts" else []) + (unseen if split != "validation" else []):
                name = safe_name(f"{voice}-{picture.key}")
                columns = spoken_columns(text, language, workshop.concept(picture))
                columns |= {"voice": voice, "synthetic": True}
                yield PendingFile(where, f"{name}.flac", partial(synthesizer.speak, text, voice), columns)


def spoken_columns(text: str, language: str, concept: str) -> dict[str, Any]:
    return {"text": text, "language": language, "concept": concept}


def workshop_synthesizer(workshop: CorpusBuilder, description: Description) -> Synthesizer:
    names = [name for name in description.packages if name.startswith("speech")]
    return Synthesizer([workshop.fetch(description, name) for name in names])


def draft_prompts(workshop: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    for language in description.settings["languages"]:
        transcripts = workshop.fetch(description, f"transcripts_{language}")
        sounds = workshop.fetch(description, f"sounds_{language}")
        for clip in read_prompts(transcripts, sounds, language):
            name = safe_name(clip.key)
            said = normalize_name(clip.text)
            split = split_of(said.replace(" ", ""), description.settings["held_out"], "prompts")
            columns = {"text": clip.text, "language": language, "voice": clip.voice}
            is_kept_out = split == "train" and said in workshop.held_out_names
            yield PendingFile(split, f"{name}.flac", partial(prompt_flac, clip, is_kept_out), columns)


def prompt_flac(clip: Clip, is_kept_out: bool = False) -> bytes:
    """
    Raises:
        UnusableError: where the transcript has no words: a signal, a letter's sign, a note in brackets; or where it is
            the name of a concept that is held out.
    """
    if is_kept_out:
        raise UnusableError("the name of a concept that is held out")
    words = re.sub(r"[\[(<].*?[\])>]", "", clip.text)
    if not re.search(r"\w", words) or words != clip.text:
        raise UnusableError("transcript without words, or with a note in brackets")
    return sound_flac(clip.path)


def draft_sentences(workshop: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    """English sentences in synthetic voices, for transcription; the voices are those of the spoken captions."""
    synthesizer = workshop_synthesizer(workshop, description)
    sentences = sorted(read_sentences(workshop.fetch(description, "wordnet")))
    chance = random.Random("sentences")
    for number, text in enumerate(chance.sample(sentences, description.settings["count"])):
        voice = chance.choice(description.settings["voices"])
        split = split_of(normalize_name(text), description.settings["held_out"], "sentences")
        columns = {"text": text, "language": "en", "voice": voice, "synthetic": True}
        yield PendingFile(split, f"{number:05d}.flac", partial(synthesizer.speak, text, voice), columns)


# Corpora whose splits are those of the pictures' concepts.
FOLLOW_CONCEPTS = ("animal-sounds", "spoken-captions", "prompts")
BUILDERS: dict[str, Callable[[CorpusBuilder, Description], Iterator[PendingFile]]] = {
    "pictures": draft_pictures,
    "animal-sounds": draft_animal_sounds,
    "spoken-captions": draft_spoken_captions,
    "prompts": draft_prompts,
    "sentences": draft_sentences,
}


def describe(name: str, workshop: CorpusBuilder) -> Description:
    """A corpus's description with all that it depends on: another split of the concepts makes another corpus."""
    description = read_description(name)
    if name not in FOLLOW_CONCEPTS:
        return description
    return replace(description, settings={**description.settings, "concepts": workshop.description.settings})


def build(name: str, workshop: CorpusBuilder, folder: Path, workers: int = 2) -> Counter:
    """Builds one corpus below `folder`; returns the number of rows in each split."""
    description = describe(name, workshop)
    return write_corpus(folder / name, description, BUILDERS[name](workshop, description), workers)
