# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Chat examples from the other corpora: one JSONL for each task and split, whose media are the files of those corpora.

An example takes its media from the same split of the corpora. Random draws depend on the row, not on its neighbors, so
that the same corpora give the same examples.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modeling_mm.utils import markdown_table, remove_half_files, write_lines

from . import phrases
from .corpus import BUILT_FILE, dataset_card, finish, read_built, read_description, read_rows
from .sources import LANGUAGES

Row = dict[str, Any]
Example = dict[str, Any]
# The first release seeded its draws with other task names. These seeds build its training and test data again.
SEEDS = {
    "choose_image": "which",
    "match_audio_image": "match",
    "transcribe_caption": "heard",
    "transcribe_sentence": "sentence",
    "verify_audio": "sound-match",
    "verify_name": "named",
}
HUMAN = "_human"  # ends the name of a task if a person speaks


class CorpusReader:
    """
    Rows of all corpora, by corpus and split; a split that a corpus does not have is empty.

    Args:
        folder: the folder of all corpora.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def rows(self, corpus: str, split: str) -> list[Row]:
        if not (self.folder / corpus / split / "metadata.jsonl").is_file():
            return []
        return [
            {**row, "path": f"../../{corpus}/{row['file_name']}"} for row in read_rows(self.folder / corpus, split)
        ]


def example(task: str, key: str, media: Sequence[tuple[str, str]], question: str, answer: str) -> Example:
    """Return a question about media, given as type and path, with its answer."""
    content = [{"type": kind, "path": path} for kind, path in media] + [{"type": "text", "text": question}]
    return {
        "id": f"{task}/{key}",
        "task": task,
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
    }


def seeded(task: str, row: Row) -> random.Random:
    return random.Random(f"{SEEDS.get(task, task)}/{row['file_name']}")


def names_of(row: Row) -> dict[str, str]:
    return {language: row[f"name_{language}"] for language in LANGUAGES if row.get(f"name_{language}")}


# ---- One image ------------------------------------------------------------------------------------------------------


def caption(corpora: CorpusReader, split: str) -> Iterator[Example]:
    for row in corpora.rows("images", split):
        for language, name in names_of(row).items():
            question = random.Random(f"{language}/{row['file_name']}").choice(phrases.CAPTION[language])
            yield example(f"caption/{language}", row["file_name"], [("image", row["path"])], question, name)


def category(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """Ask about each image in English and in one other language."""
    for row in corpora.rows("images", split):
        rng = seeded("category", row)
        for language in ("en", rng.choice(LANGUAGES[1:])):
            question = rng.choice(phrases.CATEGORY[language])
            answer = phrases.KINDS[row["kind"]][language]
            yield example(f"category/{language}", row["file_name"], [("image", row["path"])], question, answer)


def translate(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """Translate each caption in two directions, beside its image."""
    for row in corpora.rows("images", split):
        names, rng = names_of(row), seeded("translate", row)
        pairs = [(a, b) for a in names for b in names if a != b]
        for source, target in rng.sample(pairs, min(2, len(pairs))):
            question = phrases.TRANSLATE.format(language=phrases.LANGUAGE_NAMES[target], text=names[source])
            media = [("image", row["path"])]
            yield example(f"translate/{source}-{target}", row["file_name"], media, question, names[target])


def verify_name(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """Ask if a name is the image's. Half of them are; half of the others are names of the same kind of thing."""
    rows = corpora.rows("images", split)
    distractors = DistractorSampler(rows)
    for row in rows:
        rng = seeded("verify_name", row)
        for language in rng.sample(sorted(names_of(row)), 2):
            is_right = rng.random() < 0.5
            named = row if is_right else distractors.pick(row, rng, language)
            question = phrases.VERIFY_NAME[language].format(name=named[f"name_{language}"])
            answer = phrases.YES_NO[language][0 if is_right else 1]
            yield example(f"verify_name/{language}", row["file_name"], [("image", row["path"])], question, answer)


# ---- Two images -----------------------------------------------------------------------------------------------------


def choose_image(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """Ask which of two images by one hand has a name."""
    rows = corpora.rows("images", split)
    distractors = DistractorSampler(rows)
    for row in rows:
        rng = seeded("choose_image", row)
        language = rng.choice(sorted(names_of(row)))
        other = distractors.pick(row, rng, language, same_hand=True)
        is_first = rng.random() < 0.5
        media = [("image", each["path"]) for each in ((row, other) if is_first else (other, row))]
        question = phrases.CHOOSE_IMAGE[language].format(name=row[f"name_{language}"])
        answer = phrases.FIRST_SECOND[language][0 if is_first else 1]
        yield example(f"choose_image/{language}", row["file_name"], media, question, answer)


class DistractorSampler:
    """
    Sampler of images of other concepts.

    Args:
        rows: the images to sample from.
    """

    def __init__(self, rows: list[Row]):
        self.by_kind: dict[str, list[Row]] = {}
        self.by_hand: dict[str, list[Row]] = {}
        self.rows = rows
        for row in rows:
            self.by_kind.setdefault(row["kind"], []).append(row)
            self.by_hand.setdefault(row["hand"], []).append(row)

    def pick(self, row: Row, rng: random.Random, language: str, same_hand: bool = False) -> Row:
        """
        Return an image of another concept with a name in the language; half the time of the same kind.

        Raises:
            ValueError: if there is no such image.
        """
        pool = self.by_hand[row["hand"]] if same_hand else self.rows
        if not same_hand and rng.random() < 0.5:
            pool = self.by_kind[row["kind"]]
        for candidates in (pool, self.rows):
            for _ in range(100):
                other = rng.choice(candidates)
                if other["concept"] != row["concept"] and other.get(f"name_{language}"):
                    return other
        raise ValueError(f"There is no concept except {row['concept']!r} to ask about in {language!r}.")


# ---- Audio ----------------------------------------------------------------------------------------------------------


def transcribe_caption(corpora: CorpusReader, split: str) -> Iterator[Example]:
    yield from transcriptions(corpora, split, "spoken-captions", "transcribe_caption")


def transcribe(corpora: CorpusReader, split: str) -> Iterator[Example]:
    yield from transcriptions(corpora, split, "prompts", "transcribe")


def transcribe_sentence(corpora: CorpusReader, split: str) -> Iterator[Example]:
    yield from transcriptions(corpora, split, "sentences", "transcribe_sentence")


def transcriptions(corpora: CorpusReader, split: str, corpus: str, task: str) -> Iterator[Example]:
    for row in corpora.rows(corpus, split):
        question = seeded(task, row).choice(phrases.TRANSCRIBE[row["language"]])
        name = f"{task}{HUMAN if row.get('synthetic') is False else ''}/{row['language']}"
        yield example(name, row["file_name"], [("audio", row["path"])], question, row["text"])


def name_audio(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """Ask in each language what makes a noise."""
    for row in corpora.rows("animal-audio", split):
        for language, name in names_of(row).items():
            question = phrases.NAME_AUDIO[language][0]
            yield example(f"name_audio/{language}", row["file_name"], [("audio", row["path"])], question, name)


# ---- Audio and image ------------------------------------------------------------------------------------------------


def verify_audio(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """Ask if a noise belongs to an image: each with its own image and with another's."""
    shown = {row["file_name"] for row in corpora.rows("images", split)}  # an image may have been left out
    rows = [row for row in corpora.rows("animal-audio", split) if row["image_file"] in shown]
    for row in rows:
        others = [other for other in rows if other["concept"] != row["concept"]]
        if not others:
            continue
        for is_right, about in ((True, row), (False, seeded("verify_audio", row).choice(others))):
            media = [("image", f"../../images/{about['image_file']}"), ("audio", row["path"])]
            answer = phrases.YES_NO["en"][0 if is_right else 1]
            yield example("verify_audio/en", f"{row['file_name']}/{answer}", media, phrases.VERIFY_AUDIO, answer)


def match_audio_image(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """
    Ask if a voice names an image. The answer is the transcript, then yes or no, which are equally likely.

    In `test_hand`, images of known concepts by the unseen hand come with synthetic names in the unseen voice. As there
    is one human voice for each language, they come with human recordings from training too, never of this image.
    """
    spoken = corpora.rows("spoken-captions", split)
    if split == "test_hand":
        human = [row for row in corpora.rows("spoken-captions", "train") if not row["synthetic"]]
        spoken = corpora.rows("spoken-captions", "test_voice") + human
    by_name: dict[tuple[str, str], list[Row]] = {}
    by_language: dict[str, list[Row]] = {}
    for row in spoken:
        if row["language"] in LANGUAGES:
            by_name.setdefault((row["language"], row["text"]), []).append(row)
            by_language.setdefault(row["language"], []).append(row)
    for row in corpora.rows("images", split):
        rng = seeded("match_audio_image", row)
        recordings = [each for pair in names_of(row).items() for each in by_name.get(pair, [])]
        if not recordings:
            continue
        right = rng.choice(recordings)
        voices = by_language[right["language"]]
        if all(voice["concept"] == row["concept"] for voice in voices):
            continue  # that language has no other name
        wrong = rng.choice(voices)
        while wrong["concept"] == row["concept"]:
            wrong = rng.choice(voices)
        for is_right, recording in ((True, right), (False, wrong)):
            language = recording["language"]
            media = [("image", row["path"]), ("audio", recording["path"])]
            answer = f"{recording['text']} – {phrases.YES_NO[language][0 if is_right else 1]}"
            task = f"match_audio_image{'' if recording['synthetic'] else HUMAN}/{language}"
            key = f"{row['file_name']}/{is_right}"
            yield example(task, key, media, phrases.MATCH_AUDIO_IMAGE[language], answer)


# ---- All tasks ------------------------------------------------------------------------------------------------------

MAKERS: tuple[Callable[[CorpusReader, str], Iterator[Example]], ...] = (
    *(caption, category, translate, verify_name, choose_image),
    *(transcribe_caption, transcribe, transcribe_sentence, name_audio),
    *(verify_audio, match_audio_image),
)
TASKS = {make.__name__: make for make in MAKERS}
SOURCES = ("images", "spoken-captions", "prompts", "sentences", "animal-audio")


def build_chats(folder: Path) -> Counter:
    """
    Write the chat examples of all corpora below `folder`; return their number in each split.

    Raises:
        FileNotFoundError: if a corpus is not built.
    """
    description = read_description("chat")
    corpora, target = CorpusReader(folder), folder / "chat"
    if missing := [name for name in SOURCES if not read_built(folder / name)]:
        raise FileNotFoundError(f"{folder} lacks the corpora {', '.join(missing)} of the chats. Build them first.")
    (target / BUILT_FILE).unlink(missing_ok=True)
    remove_half_files(target)
    stale = set(target.glob("*/*.jsonl"))  # of tasks and splits that no longer exist
    counts: Counter = Counter()
    by_task: dict[str, Counter] = {}
    for split in tqdm(description.splits, "chat"):
        for name, make in TASKS.items():
            if examples := list(make(corpora, split)):
                path = target / split / f"{name}.jsonl"
                write_lines(path, examples)
                stale.discard(path)
                counts[split] += len(examples)
                by_task.setdefault(name, Counter())[split] = len(examples)
    for path in stale:
        path.unlink()
    finish(target, description, counts, dataset_card(description, counts) + task_table(by_task, description.splits))
    return counts


def task_table(by_task: dict[str, Counter], splits: Iterable[str]) -> str:
    rows = [(name, *(str(counts[split]) for split in splits)) for name, counts in by_task.items()]
    return f"\n## Examples of each task\n\n{markdown_table(('task', *splits), rows)}\n"
