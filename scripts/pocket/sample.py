# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The small real sample in processing/corpora/sample, as questions and answers in chat form."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SAMPLE_FOLDER = Path(__file__).resolve().parents[2] / "processing" / "corpora" / "sample"

PICTURE_NAME = "What is this?"
PICTURE_KIND = "What kind of thing is this?"
SPOKEN_WORDS = "What is said?"
SPOKEN_KIND = "What kind of words are these?"
PICTURE_AND_SOUND = "What is in the picture and what is said?"


@dataclass(frozen=True)
class Item:
    """A picture or a sound: where it lies, what it shows or says, and its category."""

    path: Path
    text: str
    category: str


@dataclass(frozen=True)
class ChatSample:
    """A question about a picture, a sound or both, and its answer."""

    question: str
    answer: str
    image: Path | None = None
    audio: Path | None = None

    @property
    def about(self) -> str:
        """The names of its files, such as `cat.png + zero.flac`."""
        return " + ".join(path.name for path in (self.image, self.audio) if path is not None)

    def prompt(self) -> list[dict[str, Any]]:
        """The user's turn, media first, as `apply_chat_template` takes it."""
        media = [{"type": "image", "path": str(self.image)}] if self.image is not None else []
        media += [{"type": "audio", "path": str(self.audio)}] if self.audio is not None else []
        return [{"role": "user", "content": [*media, {"type": "text", "text": self.question}]}]

    def messages(self) -> list[dict[str, Any]]:
        """The whole conversation: the prompt and the assistant's answer."""
        return [*self.prompt(), {"role": "assistant", "content": [{"type": "text", "text": self.answer}]}]


def read_pictures(folder: Path = SAMPLE_FOLDER) -> list[Item]:
    """The pictures of a sample folder, in the order of its `pictures.jsonl`; the text is the caption."""
    return read_items(folder, "pictures.jsonl", "caption")


def read_sounds(folder: Path = SAMPLE_FOLDER) -> list[Item]:
    """The sounds of a sample folder, in the order of its `sounds.jsonl`; the text is the transcript."""
    return read_items(folder, "sounds.jsonl", "transcript")


def read_items(folder: Path, list_name: str, text_field: str) -> list[Item]:
    """
    Reads one of the sample's lists.

    Raises:
        FileNotFoundError: where the list, or a file that it names, is missing.
        ValueError: for a line that is no JSON object or lacks a field; with the file and the line's number.
    """
    items = []
    path = Path(folder) / list_name
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            item = Item(Path(folder) / row["file"], row[text_field], row["category"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected file, {text_field} and category; {error!r}") from error
        if not item.path.is_file():
            raise FileNotFoundError(f"{path}, line {number}: there is no file {item.path}")
        items.append(item)
    return items


def picture_questions(pictures: Iterable[Item]) -> list[ChatSample]:
    """What each picture shows, and of what kind it is."""
    return [
        ChatSample(question, answer, image=picture.path)
        for picture in pictures
        for question, answer in ((PICTURE_NAME, picture.text), (PICTURE_KIND, picture.category))
    ]


def sound_questions(sounds: Iterable[Item]) -> list[ChatSample]:
    """What is said in each sound, and what kind of words they are."""
    return [
        ChatSample(question, answer, audio=sound.path)
        for sound in sounds
        for question, answer in ((SPOKEN_WORDS, sound.text), (SPOKEN_KIND, sound.category))
    ]


def pair_question(picture: Item, sound: Item) -> ChatSample:
    """A question that only picture and sound together answer."""
    answer = f'{picture.text} and "{sound.text}"'
    return ChatSample(PICTURE_AND_SOUND, answer, image=picture.path, audio=sound.path)


def pair_questions(
    pictures: Sequence[Item], sounds: Sequence[Item], sounds_a_picture: int = 1, first: int = 0, seed: int = 0
) -> list[ChatSample]:
    """
    Pairs every picture with some sounds.

    With one seed, pictures meet the sounds in one fixed order, each picture in its own: `first` to
    `first + sounds_a_picture` says which of them. Ranges that do not overlap therefore give pairs without repetition,
    such as pairs to train on and pairs to test with. All sounds are used about equally often.

    Raises:
        ValueError: where there are fewer sounds than are asked for.
    """
    if first + sounds_a_picture > len(sounds):
        raise ValueError(
            f"Sounds {first} to {first + sounds_a_picture} for each picture, of only {len(sounds)} sounds."
        )
    shuffled_pictures, shuffled_sounds = list(pictures), list(sounds)
    generator = random.Random(seed)
    generator.shuffle(shuffled_pictures)
    generator.shuffle(shuffled_sounds)
    return [
        pair_question(picture, shuffled_sounds[(number + turn) % len(sounds)])
        for turn in range(first, first + sounds_a_picture)
        for number, picture in enumerate(shuffled_pictures)
    ]


def training_and_new_pairs(
    folder: Path = SAMPLE_FOLDER, sounds_a_picture: int = 4
) -> tuple[list[ChatSample], list[ChatSample]]:
    """
    Questions to learn from the sample, and questions about pairs of picture and sound that are not among them.

    Every picture and every sound of the new pairs occurs in the others; only that they come together is new.
    """
    pictures, sounds = read_pictures(folder), read_sounds(folder)
    training = picture_questions(pictures) + sound_questions(sounds)
    training += pair_questions(pictures, sounds, sounds_a_picture)
    return training, pair_questions(pictures, sounds, first=sounds_a_picture)
