# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Builders of the corpora in processing/corpora: the files of each, their splits and their names."""

import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from .concepts import group_concepts, normalize_name, split_of
from .corpus import (
    Description,
    PendingFile,
    UnusableError,
    number_duplicates,
    read_description,
    safe_name,
    write_corpus,
)
from .imagenet import class_lemmas, classify
from .media_files import Synthesizer, audio_to_flac, image_to_png, photograph_to_png
from .packages import fetch_package
from .sources import (
    LANGUAGES,
    SENTENCE,
    Clip,
    NamedImage,
    read_emoji,
    read_nouns,
    read_photographs,
    read_prompts,
    read_sentences,
    read_stamps,
)


class CorpusBuilder:
    """
    Data that all builders share: the packages, read once, and the concepts and splits of everything with a name.

    Args:
        packages: the folder that packages are fetched into.
        description: the description of the images, with the packages of everything that has a name and the shares of
            the splits.
    """

    def __init__(self, packages: Path, description: Description | None = None):
        self.folder = packages
        self.description = description or read_description("images")
        self.shares = self.description.settings["held_out"]
        self.unseen_hand = self.description.settings["unseen_hand"]
        self.images = self.read_images()
        concepts = group_concepts([image.names for image in self.images])
        self.concepts = dict(zip(map(id, self.images), concepts, strict=True))

    @cached_property
    def held_out_names(self) -> set[str]:
        """Names, in any language, of concepts that are not in training."""
        held_out = (image for image in self.images if self.split(image) != "train")
        return {normalize_name(name) for image in held_out for name in image.names.values()}

    def fetch(self, description: Description, name: str) -> Path:
        return fetch_package(description.packages[name], self.folder)

    def read_images(self) -> list[NamedImage]:
        fetch = partial(self.fetch, self.description)
        hands = {
            "noto": (fetch("noto") / "package/img/google/64", "{}.png"),
            "twemoji": (fetch("twemoji") / "package/img/twitter/64", "{}.png"),
            "fluent": (fetch("fluent") / "package/assets", "{}.webp"),
            "openmoji": (fetch("openmoji") / "package/color/svg", "{}.svg"),
        }
        return [*read_emoji(fetch("noto"), fetch("names"), hands), *read_stamps(fetch("stamps"))]

    def synthesizer(self, description: Description) -> Synthesizer:
        names = [name for name in description.packages if name.startswith("speech")]
        return Synthesizer([self.fetch(description, name) for name in names])

    def concept(self, image: NamedImage) -> str:
        return self.concepts[id(image)]

    def split(self, image: NamedImage) -> str:
        """Return the split of the image's concept, whoever drew it."""
        return split_of(self.concept(image), self.shares, "concepts")

    def image_split(self, image: NamedImage) -> str | None:
        """
        Return the split of the image itself, or `None` if it is left out.

        Known concepts by the unseen hand are a separate test, and that hand is kept out of the validation split.
        """
        split = self.split(image)
        if image.hand != self.unseen_hand or split == "test_concepts":
            return split
        return "test_hand" if split == "train" else None


# ---- Images ---------------------------------------------------------------------------------------------------------


def image_files(builder: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    names = number_duplicates(f"{image.hand}-{image.key.removeprefix('emoji/')}" for image in builder.images)
    for image, name in zip(builder.images, names, strict=True):
        split = builder.image_split(image)
        if split is not None:
            columns = {
                "concept": builder.concept(image),
                "hand": image.hand,
                "kind": image.kind,
                **name_columns(image),
            }
            yield PendingFile(split, f"{name}.png", partial(image_to_png, image.path), columns)


def name_columns(image: NamedImage) -> dict[str, str | None]:
    return {f"name_{language}": image.names.get(language) for language in LANGUAGES}


# ---- Photographs ----------------------------------------------------------------------------------------------------


def photograph_files(builder: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    """Yield photographs with the class that EfficientNet-Lite2 sees in each, at the size that they are written in."""
    settings = description.settings
    photographs = list(
        read_photographs(builder.fetch(description, "photographs"), settings["folders"], settings["left_out"])
    )
    files = [photograph_to_png(photograph.data) for photograph in photographs]
    weights = next(builder.fetch(description, "weights").rglob("*.pth"))
    lemmas = class_lemmas(builder.fetch(description, "names"))
    for photograph, data, (index, probability) in zip(photographs, files, classify(files, weights), strict=True):
        columns = {
            "class_index": index,
            "class_name": lemmas[index][0],
            "probability": round(probability, 3),
            "author": photograph.author,
            "license": photograph.license,
        }
        yield PendingFile("test_photographs", f"{safe_name(photograph.key)}.png", partial(bytes, data), columns)


# ---- Speech ---------------------------------------------------------------------------------------------------------


def spoken_caption_files(builder: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    """
    Yield each English name in some of the synthetic voices.

    The unseen voice speaks the names of held-out concepts, and names of known concepts as a separate test.
    """
    synthesizer, voices = builder.synthesizer(description), description.settings["voices"]
    spoken = set()
    for image in builder.images:
        text = image.names["en"]
        if text in spoken:
            continue
        spoken.add(text)
        rng = random.Random(f"en/{text}")
        split = builder.split(image)
        unseen = [(voices["unseen"], "test_voice" if split == "train" else split)]
        seen = [(voice, split) for voice in rng.sample(voices["seen"], voices["each"])]
        if split == "train" and rng.random() >= description.settings["share_of_unseen_voice"]:
            unseen = []
        pairs = (seen if split != "test_concepts" else []) + (unseen if split != "validation" else [])
        for voice, target in pairs:
            columns: dict[str, Any] = {"text": text, "language": "en", "concept": builder.concept(image)}
            columns |= {"voice": voice, "synthetic": True}
            name = safe_name(f"{voice}-{image.key}")
            yield PendingFile(target, f"{name}.flac", partial(synthesizer.speak, text, voice), columns)


def prompt_files(builder: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    transcripts, recordings = (builder.fetch(description, name) for name in ("transcripts", "recordings"))
    for clip in read_prompts(transcripts, recordings, "en"):
        text = normalize_name(clip.text)
        split = split_of(text.replace(" ", ""), description.settings["held_out"], "prompts")
        columns = {"text": clip.text, "language": "en", "voice": clip.voice}
        make = partial(prompt_to_flac, clip, split == "train" and text in builder.held_out_names)
        yield PendingFile(split, f"{safe_name(clip.key)}.flac", make, columns)


def prompt_to_flac(clip: Clip, names_held_out: bool = False) -> bytes:
    """
    Convert a prompt to FLAC.

    Args:
        clip: the prompt.
        names_held_out: the transcript is the name of a held-out concept.

    Raises:
        UnusableError: if the transcript names a held-out concept, has no words, or has a note in brackets.
    """
    if names_held_out:
        raise UnusableError("name of a held-out concept")
    words = re.sub(r"[\[(<].*?[\])>]", "", clip.text)
    if not re.search(r"\w", words) or words != clip.text:
        raise UnusableError("transcript without words, or with a note in brackets")
    return audio_to_flac(clip.path)


def sentence_files(builder: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    """Yield English sentences in the synthetic voices of the spoken captions, for transcription."""
    synthesizer = builder.synthesizer(description)
    sentences = sorted(read_sentences(builder.fetch(description, "wordnet")))
    rng = random.Random("sentences")
    for number, text in enumerate(rng.sample(sentences, description.settings["count"])):
        voice = rng.choice(description.settings["voices"])
        split = split_of(normalize_name(text), description.settings["held_out"], "sentences")
        columns = {"text": text, "language": "en", "voice": voice, "synthetic": True}
        yield PendingFile(split, f"{number:05d}.flac", partial(synthesizer.speak, text, voice), columns)


def spoken_word_files(builder: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    """Yield nouns in the synthetic voices of the spoken captions, none with a word of a held-out concept's name."""
    synthesizer, settings = builder.synthesizer(description), description.settings
    held_out = {word for name in builder.held_out_names for word in name.split()}
    nouns = read_nouns(builder.fetch(description, "wordnet"), settings["most_words"])
    known = [noun for noun in nouns if held_out.isdisjoint(normalize_name(noun).split())]
    rng = random.Random("words")
    for number, text in enumerate(rng.sample(known, min(settings["count"], len(known)))):
        voice = rng.choice(settings["voices"])
        columns = {"text": text, "language": "en", "voice": voice, "synthetic": True}
        yield PendingFile("train", f"{number:05d}.flac", partial(synthesizer.speak, text, voice), columns)


def studio_speech_files(builder: CorpusBuilder, description: Description) -> Iterator[PendingFile]:
    """Yield sentences of frequent words, names of known concepts, and in training other sentences, in one voice."""
    synthesizer, settings = builder.synthesizer(description), description.settings
    sentences = list(read_sentences(builder.fetch(description, "wordnet"), *settings["words"]))
    splits = split_by_words(sentences_of_frequent(sentences, settings["frequent"]), settings["held_out"])
    names = {image.names["en"] for image in builder.images if builder.split(image) == "train"}
    splits["train"] += sorted(name for name in names - {*splits["train"]} if SENTENCE.fullmatch(name))
    held_out = {text for split, texts in splits.items() if split != "train" for text in texts}
    splits["train"] += mixed_sentences(splits["train"], settings["mixed"], settings["words"], held_out)
    splits["train"] += other_sentences(sentences, settings["others"], {*splits["train"], *held_out})
    columns = {"language": "en", "voice": settings["voice"], "synthetic": True}
    for split, texts in splits.items():
        for number, text in enumerate(texts):
            make = partial(synthesizer.speak, text, settings["voice"])
            yield PendingFile(split, f"{number:05d}.flac", make, {"text": text, **columns})


def words_of(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.casefold())


def sentences_of_frequent(sentences: Sequence[str], number: int) -> list[str]:
    """Return the sentences of which every word is one of the most frequent ones in all of them, sorted."""
    counts = Counter(word for sentence in sentences for word in words_of(sentence))
    frequent = {word for word, _ in counts.most_common(number)}
    return sorted(sentence for sentence in sentences if frequent.issuperset(words_of(sentence)))


def mixed_sentences(
    sentences: Sequence[str], number: int, words: tuple[int, int], held_out: Collection[str]
) -> list[str]:
    """
    Return beginnings of some sentences with ends of others, so that a voice says each word beside many.

    Args:
        sentences: of training.
        number: of new ones; fewer if they are hard to find.
        words: the fewest and the most of a new one.
        held_out: sentences that may not come out.
    """
    rng, (fewest, most) = random.Random("mixed"), words
    taken, made = {normalize_name(text) for text in (*sentences, *held_out)}, []
    for _ in range(20 * number):
        first, second = (rng.choice(sentences).split() for _ in range(2))
        mixed = first[: rng.randint(1, len(first))] + second[rng.randrange(len(second)) :]
        text = " ".join(mixed)
        if fewest <= len(mixed) <= most and SENTENCE.fullmatch(text) and normalize_name(text) not in taken:
            taken.add(normalize_name(text))
            made.append(text)
        if len(made) == number:
            break
    return made


def other_sentences(sentences: Sequence[str], number: int, taken: Collection[str]) -> list[str]:
    """Return at most `number` of the sentences, none of which is in `taken`, drawn at random and sorted."""
    known = {normalize_name(text) for text in taken}
    others = {normalize_name(text): text for text in sentences}
    left = sorted(text for name, text in others.items() if name not in known)
    return sorted(random.Random("others").sample(left, min(number, len(left))))


def split_by_words(sentences: Sequence[str], shares: Mapping[str, float]) -> dict[str, list[str]]:
    """Return the sentences by split; one with a word that training would lack is in training."""
    drawn = {sentence: split_of(normalize_name(sentence), shares, "sentences") for sentence in sentences}
    known = {word for sentence, split in drawn.items() if split == "train" for word in words_of(sentence)}
    splits: dict[str, list[str]] = {"train": [], **{name: [] for name in shares}}
    for sentence, split in drawn.items():
        splits[split if known.issuperset(words_of(sentence)) else "train"].append(sentence)
    return splits


# Corpora that are split by the concepts of the images.
SPLIT_BY_CONCEPT = ("spoken-captions", "spoken-words", "prompts", "studio-speech")
BUILDERS: dict[str, Callable[[CorpusBuilder, Description], Iterator[PendingFile]]] = {
    "images": image_files,
    "spoken-captions": spoken_caption_files,
    "prompts": prompt_files,
    "sentences": sentence_files,
    "spoken-words": spoken_word_files,
    "photographs": photograph_files,
    "studio-speech": studio_speech_files,
}


def full_description(name: str, builder: CorpusBuilder) -> Description:
    """Return a corpus's description with everything it depends on, so that other splits of the concepts rebuild it."""
    description = read_description(name)
    if name not in SPLIT_BY_CONCEPT:
        return description
    return replace(description, settings={**description.settings, "concepts": builder.description.settings})


def build(name: str, builder: CorpusBuilder, folder: Path, workers: int = 2) -> Counter:
    """Build one corpus below `folder`; return the number of rows in each split."""
    description = full_description(name, builder)
    return write_corpus(folder / name, description, BUILDERS[name](builder, description), workers)
