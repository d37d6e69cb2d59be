# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Chat samples from the corpora: one JSONL for each task and split, whose media are the files of the other corpora.

What goes into a split comes from that split of the corpora alone. Draws depend on the sample, not on its neighbours,
so that the same corpora give the same samples.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modeling_mm.utils.tables import markdown_table

from .corpus import (
    MARK,
    card,
    fingerprint,
    read_description,
    read_mark,
    read_rows,
    remove_half_files,
    write_lines,
    write_text,
)
from .phrases import (
    CAPTION,
    CATEGORY,
    FIRST_SECOND,
    HEARD,
    KINDS,
    LANGUAGE_NAMES,
    MATCH,
    NAMED,
    SOUND,
    SOUND_MATCH,
    TRANSLATE,
    WHICH,
    YES_NO,
)
from .sources import LANGUAGES

Sample = dict[str, Any]
Rows = list[dict[str, Any]]


class CorpusReader:
    """The rows of all corpora, by corpus and split; splits that a corpus has not are empty."""

    def __init__(self, folder: Path):
        self.folder = folder

    def rows(self, corpus: str, split: str) -> Rows:
        if not (self.folder / corpus / split / "metadata.jsonl").is_file():
            return []
        return [
            {**row, "path": f"../../{corpus}/{row['file_name']}"} for row in read_rows(self.folder / corpus, split)
        ]


def sample(task: str, key: str, media: Sequence[tuple[str, str]], question: str, answer: str) -> Sample:
    """A question about media, given as kind and path, and its answer."""
    content = [{"type": kind, "path": path} for kind, path in media] + [{"type": "text", "text": question}]
    return {
        "id": f"{task}/{key}",
        "task": task,
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
    }


def names_of(row: dict[str, Any]) -> dict[str, str]:
    return {language: row[f"name_{language}"] for language in LANGUAGES if row.get(f"name_{language}")}


# ---- One picture ----------------------------------------------------------------------------------------------------


def captions(material: CorpusReader, split: str) -> Iterator[Sample]:
    for row in material.rows("pictures", split):
        for language, name in names_of(row).items():
            key = f"{language}/{row['file_name']}"
            question = random.Random(key).choice(CAPTION[language])
            yield sample(f"caption/{language}", row["file_name"], [("image", row["path"])], question, name)


def categories(material: CorpusReader, split: str) -> Iterator[Sample]:
    """Each picture in English and in one other language."""
    for row in material.rows("pictures", split):
        chance = random.Random(f"category/{row['file_name']}")
        for language in ("en", chance.choice(LANGUAGES[1:])):
            question = chance.choice(CATEGORY[language])
            answer = KINDS[row["kind"]][language]
            yield sample(f"category/{language}", row["file_name"], [("image", row["path"])], question, answer)


def translations(material: CorpusReader, split: str) -> Iterator[Sample]:
    """Two directions for each picture."""
    for row in material.rows("pictures", split):
        names, chance = names_of(row), random.Random(f"translate/{row['file_name']}")
        pairs = [(a, b) for a in names for b in names if a != b]
        for source, target in chance.sample(pairs, min(2, len(pairs))):
            question = TRANSLATE.format(language=LANGUAGE_NAMES[target], text=names[source])
            yield sample(
                f"translate/{source}-{target}", row["file_name"], [("image", row["path"])], question, names[target]
            )


def named(material: CorpusReader, split: str) -> Iterator[Sample]:
    """Is a name the picture's? Half of them are; of the others half are names of the same kind of thing."""
    rows = material.rows("pictures", split)
    others = DistractorSampler(rows)
    for row in rows:
        chance = random.Random(f"named/{row['file_name']}")
        for language in chance.sample(sorted(names_of(row)), 2):
            is_right = chance.random() < 0.5
            about = row if is_right else others.pick(row, chance, language)
            question = NAMED[language].format(name=about[f"name_{language}"])
            answer = YES_NO[language][0 if is_right else 1]
            yield sample(f"named/{language}", row["file_name"], [("image", row["path"])], question, answer)


# ---- Two pictures ---------------------------------------------------------------------------------------------------


def which(material: CorpusReader, split: str) -> Iterator[Sample]:
    """Which of two pictures is named; both by the same hand."""
    rows = material.rows("pictures", split)
    others = DistractorSampler(rows)
    for row in rows:
        chance = random.Random(f"which/{row['file_name']}")
        language = chance.choice(sorted(names_of(row)))
        other = others.pick(row, chance, language, same_hand=True)
        is_first = chance.random() < 0.5
        paths = [row["path"], other["path"]] if is_first else [other["path"], row["path"]]
        question = WHICH[language].format(name=row[f"name_{language}"])
        answer = FIRST_SECOND[language][0 if is_first else 1]
        yield sample(f"which/{language}", row["file_name"], [("image", path) for path in paths], question, answer)


class DistractorSampler:
    """Pictures of other concepts."""

    def __init__(self, rows: Rows):
        self.by_kind: dict[str, Rows] = {}
        self.by_hand: dict[str, Rows] = {}
        self.rows = rows
        for row in rows:
            self.by_kind.setdefault(row["kind"], []).append(row)
            self.by_hand.setdefault(row["hand"], []).append(row)

    def pick(
        self, row: dict[str, Any], chance: random.Random, language: str, same_hand: bool = False
    ) -> dict[str, Any]:
        """
        A picture of another concept that has a name in the language; half the time of the same kind.

        Raises:
            ValueError: where there is none.
        """
        pool = self.by_hand[row["hand"]] if same_hand else self.rows
        if not same_hand and chance.random() < 0.5:
            pool = self.by_kind[row["kind"]]
        for candidates in (pool, self.rows):
            for _ in range(100):
                other = chance.choice(candidates)
                if other["concept"] != row["concept"] and other.get(f"name_{language}"):
                    return other
        raise ValueError(f"There is no other concept beside {row['concept']!r} to ask about in {language!r}.")


# ---- Sound ----------------------------------------------------------------------------------------------------------


def heard(material: CorpusReader, split: str) -> Iterator[Sample]:
    yield from transcriptions(material, split, "spoken-captions", "heard")


def prompts(material: CorpusReader, split: str) -> Iterator[Sample]:
    yield from transcriptions(material, split, "prompts", "transcribe")


def sentences(material: CorpusReader, split: str) -> Iterator[Sample]:
    yield from transcriptions(material, split, "sentences", "sentence")


def transcriptions(material: CorpusReader, split: str, corpus: str, task: str) -> Iterator[Sample]:
    for row in material.rows(corpus, split):
        question = random.Random(f"{task}/{row['file_name']}").choice(HEARD[row["language"]])
        by = "-human" if row.get("synthetic") is False else ""
        yield sample(
            f"{task}{by}/{row['language']}", row["file_name"], [("audio", row["path"])], question, row["text"]
        )


def sounds(material: CorpusReader, split: str) -> Iterator[Sample]:
    """What makes a sound, in each language."""
    for row in material.rows("animal-sounds", split):
        for language, name in names_of(row).items():
            question = SOUND[language][0]
            yield sample(f"sound/{language}", row["file_name"], [("audio", row["path"])], question, name)


def sound_matches(material: CorpusReader, split: str) -> Iterator[Sample]:
    """Does a sound belong to a picture? Each sound with its picture and with that of another."""
    shown = {row["file_name"] for row in material.rows("pictures", split)}  # a picture may have been left out
    rows = [row for row in material.rows("animal-sounds", split) if row["picture"] in shown]
    for row in rows:
        chance = random.Random(f"sound-match/{row['file_name']}")
        others = [other for other in rows if other["concept"] != row["concept"]]
        if not others:
            continue
        for is_right, about in ((True, row), (False, chance.choice(others))):
            media = [("image", f"../../pictures/{about['picture']}"), ("audio", row["path"])]
            answer = YES_NO["en"][0 if is_right else 1]
            yield sample("sound-match/en", f"{row['file_name']}/{answer}", media, SOUND_MATCH, answer)


# ---- Picture and voice ----------------------------------------------------------------------------------------------


def matches(material: CorpusReader, split: str) -> Iterator[Sample]:
    """
    Does a voice name a picture? The answer says first what is heard, then yes or no, which are equally likely.

    Pictures of known concepts by the unseen hand come with synthetic names in the unseen voice and, as there is one
    human voice a language, with human names that were heard in training, never with this picture.
    """
    pictures = material.rows("pictures", split)
    spoken = material.rows("spoken-captions", split)
    if split == "test_hand":
        human = [row for row in material.rows("spoken-captions", "train") if not row["synthetic"]]
        spoken = material.rows("spoken-captions", "test_voice") + human
    by_name: dict[tuple[str, str], Rows] = {}
    by_language: dict[str, Rows] = {}
    for row in spoken:
        if row["language"] in LANGUAGES:
            by_name.setdefault((row["language"], row["text"]), []).append(row)
            by_language.setdefault(row["language"], []).append(row)
    for row in pictures:
        chance = random.Random(f"match/{row['file_name']}")
        recordings = [by_name.get((language, name), []) for language, name in names_of(row).items()]
        named_so = [recording for each in recordings for recording in each]
        if not named_so:
            continue
        right = chance.choice(named_so)
        voices = by_language[right["language"]]
        if all(voice["concept"] == row["concept"] for voice in voices):
            continue  # nothing else is named in that language
        wrong = chance.choice(voices)
        while wrong["concept"] == row["concept"]:
            wrong = chance.choice(voices)
        for is_right, recording in ((True, right), (False, wrong)):
            language = recording["language"]
            media = [("image", row["path"]), ("audio", recording["path"])]
            verdict = YES_NO[language][0 if is_right else 1]
            answer = f"{recording['text']} – {verdict}"
            by = "" if recording["synthetic"] else "-human"
            yield sample(f"match{by}/{language}", f"{row['file_name']}/{is_right}", media, MATCH[language], answer)


# ---- All of them ----------------------------------------------------------------------------------------------------

TASKS: dict[str, Callable[[CorpusReader, str], Iterator[Sample]]] = {
    "caption": captions,
    "category": categories,
    "translate": translations,
    "named": named,
    "which": which,
    "heard": heard,
    "transcribe": prompts,
    "sentence": sentences,
    "sound": sounds,
    "sound-match": sound_matches,
    "match": matches,
}


def build_chats(folder: Path) -> Counter:
    """Writes the chat samples of all corpora below `folder`; returns the number in each split."""
    description = read_description("chat")
    material, target = CorpusReader(folder), folder / "chat"
    built = {name: read_mark(folder / name) for name in ("pictures", "spoken-captions", "prompts", "sentences",
                                                         "animal-sounds")}  # fmt: skip
    if missing := [name for name, mark in built.items() if not mark]:
        raise FileNotFoundError(
            f"The chat samples need the corpora {', '.join(missing)} in {folder}; build them first."
        )
    (target / MARK).unlink(missing_ok=True)
    remove_half_files(target)
    stale = set(target.glob("*/*.jsonl"))  # tasks and splits that are no more
    counts: Counter = Counter()
    tasks: dict[str, Counter] = {}
    for split in tqdm(description.splits, "chat"):
        for name, make in TASKS.items():
            samples = list(make(material, split))
            if samples:
                path = target / split / f"{name}.jsonl"
                write_lines(path, samples)
                stale.discard(path)
                counts[split] += len(samples)
                tasks.setdefault(name, Counter())[split] = len(samples)
    for path in stale:
        path.unlink()
    write_text(target / "README.md", card(description, counts, []) + task_table(tasks, list(description.splits)))
    write_text(target / MARK, json.dumps({"settings": fingerprint(description), "rows": counts}))
    return counts


def task_table(tasks: dict[str, Counter], splits: list[str]) -> str:
    rows = [(name, *(str(counts[split]) for split in splits)) for name, counts in tasks.items()]
    return f"\n## Samples of each task\n\n{markdown_table(('task', *splits), rows)}\n"
