# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Chat examples from the other corpora: one JSONL for each task and split, whose media are the files of those corpora.

An example takes its media from the same split of the corpora. Random draws depend on the row, not on its neighbors, so
that the same corpora give the same examples.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from modeling_mm.utils import markdown_table, remove_half_files, write_lines

from . import phrases
from .corpus import BUILT_FILE, Description, dataset_card, finish, read_built, read_description, read_lines, read_rows
from .hear import HEARD_FILE

Row = dict[str, Any]
Example = dict[str, Any]
TRAIN = "train"
DRAWS = 4  # questions about each image in training, in tasks that draw another image, name or voice
SURE = 0.5  # probability from which on the encoder's own head is believed


class CorpusReader:
    """
    Rows of all corpora, by corpus and split; a split that a corpus does not have is empty.

    Args:
        folder: the folder of all corpora.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        path = folder / HEARD_FILE
        rows = read_lines(path) if path.is_file() else []
        self.heard = {row["file_name"]: row["heard"] for row in rows if not repeats_itself(row["heard"])}

    def rows(self, corpus: str, split: str) -> list[Row]:
        if not (self.folder / corpus / split / "metadata.jsonl").is_file():
            return []
        rows = []
        for row in read_rows(self.folder / corpus, split):
            name = f"{corpus}/{row['file_name']}"
            rows.append({**row, "path": f"../../{name}", "heard": self.heard.get(name)})
        return rows


REPEATED = re.compile(r"\b(\w[\w ]*?)(?:\W+\1\b){2}")  # words three times in a row


def repeats_itself(text: str) -> bool:
    """Return whether a transcript has a sentence twice or words three times, as Whisper does that is lost."""
    sentences = [words for sentence in re.split(r"[.!?]", text) if (words := sentence.casefold().strip())]
    return len(sentences) > len({*sentences}) or REPEATED.search(text.casefold()) is not None


def example(task: str, key: str, media: Sequence[tuple[str, str]], question: str | None, answer: str) -> Example:
    """Return a question about media, given as type and path, with its answer; a transcript needs no question."""
    content = [{"type": kind, "path": path} for kind, path in media]
    content += [] if question is None else [{"type": "text", "text": question}]
    return {
        "id": f"{task}/{key}",
        "task": task,
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ],
    }


def seeded(task: str, row: Row, draw: int = 0) -> random.Random:
    return random.Random(f"{task}/{row['file_name']}/{draw}")


def draws_of(split: str) -> range:
    """Return the numbers of the draws for each image: several in training, one in a test."""
    return range(DRAWS if split == TRAIN else 1)


# ---- One image ------------------------------------------------------------------------------------------------------


def caption(corpora: CorpusReader, split: str) -> Iterator[Example]:
    for row in corpora.rows("images", split):
        question = "What is this?" if split != TRAIN else seeded("caption", row).choice(phrases.CAPTION)
        yield example("caption/en", row["file_name"], [("image", row["path"])], question, row["name_en"])


def category(corpora: CorpusReader, split: str) -> Iterator[Example]:
    for row in corpora.rows("images", split):
        question = seeded("category", row).choice(phrases.CATEGORY)
        yield example("category/en", row["file_name"], [("image", row["path"])], question, phrases.KINDS[row["kind"]])


def photograph(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """Ask about photographs that the encoder's own head is sure about; its name for them is the answer."""
    for row in corpora.rows("photographs", split):
        if row["probability"] > SURE:
            yield example(
                "photograph/en", row["file_name"], [("image", row["path"])], "What is this?", row["class_name"]
            )


def verify_name(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """Ask if a name is the image's: once for its own name and once for another's, half of these of the same kind."""
    rows = corpora.rows("images", split)
    distractors = DistractorSampler(rows)
    for row in rows:
        for draw in draws_of(split):
            other = distractors.pick(row, seeded("verify_name", row, draw))
            for answer, named in zip(phrases.YES_NO, (row, other), strict=True):
                question = phrases.VERIFY_NAME.format(name=named["name_en"])
                key = f"{row['file_name']}/{draw}/{answer}"
                yield example("verify_name/en", key, [("image", row["path"])], question, answer)


# ---- Two images -----------------------------------------------------------------------------------------------------


def choose_image(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """Ask which of two images by one hand has a name."""
    rows = corpora.rows("images", split)
    distractors = DistractorSampler(rows)
    for row in rows:
        for draw in draws_of(split):
            rng = seeded("choose_image", row, draw)
            pair = [row, distractors.pick(row, rng, same_hand=True)]
            rng.shuffle(pair)
            media = [("image", each["path"]) for each in pair]
            question = phrases.CHOOSE_IMAGE.format(name=row["name_en"])
            answer = phrases.FIRST_SECOND[pair.index(row)]
            yield example("choose_image/en", f"{row['file_name']}/{draw}", media, question, answer)


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

    def pick(self, row: Row, rng: random.Random, same_hand: bool = False) -> Row:
        """
        Return an image of another concept; half the time of the same kind.

        Raises:
            ValueError: if there is no such image.
        """
        pool = self.by_hand[row["hand"]] if same_hand else self.rows
        if rng.random() < 0.5:
            pool = [each for each in self.by_kind[row["kind"]] if not same_hand or each["hand"] == row["hand"]]
        for candidates in (pool, self.rows):
            for _ in range(100):
                other = rng.choice(candidates)
                if other["concept"] != row["concept"] and other["name_en"] != row["name_en"]:
                    return other
        raise ValueError(f"There is no concept except {row['concept']!r} to ask about.")


# ---- Audio, with and without an image -------------------------------------------------------------------------------


def transcribe(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """Transcribe speech alone. Nothing learns it, as the model hears as it did before it could see."""
    if split == TRAIN:
        return
    for corpus in SPEECH:
        for row in corpora.rows(corpus, split):
            name = f"transcribe/{corpus}"
            yield example(name, row["file_name"], [("audio", row["path"])], None, row["text"])


def transcribe_beside_image(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """
    Transcribe speech beside an image that has nothing to do with it.

    In training the answer is what the model hears without the image; every second row asks for the transcript.
    """
    images = corpora.rows("images", split) or corpora.rows("images", "test_hand")
    for corpus in SPEECH:
        for row in corpora.rows(corpus, split):
            text = row["heard"] if split == TRAIN else row["text"]
            if text is None:
                continue
            for draw in draws_of(split):
                rng = seeded("transcribe_beside_image", row, draw)
                media = [("image", rng.choice(images)["path"]), ("audio", row["path"])]
                rng.shuffle(media)
                question = rng.choice(phrases.TRANSCRIBE) if draw % 2 else None
                key = f"{row['file_name']}/{draw}"
                yield example(f"transcribe_beside_image/{corpus}", key, media, question, text)


def match_audio_image(corpora: CorpusReader, split: str) -> Iterator[Example]:
    """
    Ask if a voice names an image. The answer is the transcript, then yes or no, which are equally likely.

    In `test_hand`, images of known concepts by the unseen hand come with their names in the unseen voice.
    """
    spoken = [row for row in corpora.rows("spoken-captions", VOICES.get(split, split)) if row["heard"]]
    by_name: dict[str, list[Row]] = {}
    for row in spoken:
        by_name.setdefault(row["text"], []).append(row)
    for row in corpora.rows("images", split):
        if row["name_en"] not in by_name:
            continue
        for draw in draws_of(split):
            rng = seeded("match_audio_image", row, draw)
            right = rng.choice(by_name[row["name_en"]])
            wrong = rng.choice(spoken)
            if wrong["concept"] == row["concept"]:
                continue
            for verdict, recording in zip(phrases.YES_NO, (right, wrong), strict=True):
                media = [("image", row["path"]), ("audio", recording["path"])]
                key = f"{row['file_name']}/{draw}/{verdict}"
                answer = phrases.VERDICT.format(text=recording["heard"], verdict=verdict)
                yield example("match_audio_image/en", key, media, phrases.MATCH_AUDIO_IMAGE, answer)


# ---- All tasks ------------------------------------------------------------------------------------------------------

SPEECH = ("prompts", "sentences", "spoken-captions")
VOICES = {"test_hand": "test_voice"}  # the split of the voices for the images of a split, where it is another
MAKERS: tuple[Callable[[CorpusReader, str], Iterator[Example]], ...] = (
    *(caption, category, photograph, verify_name, choose_image),
    *(transcribe, transcribe_beside_image, match_audio_image),
)
TASKS = {make.__name__: make for make in MAKERS}
SOURCES = ("images", "photographs", *SPEECH)


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
    return write_chats(target, description, {name: partial(make, corpora) for name, make in TASKS.items()})


def write_chats(
    target: Path, description: Description, makers: Mapping[str, Callable[[str], Iterable[Example]]]
) -> Counter:
    """
    Write a corpus of chats, whose earlier files go.

    Args:
        makers: what makes the examples of a split, by task.

    Returns:
        the number of examples in each split.
    """
    (target / BUILT_FILE).unlink(missing_ok=True)
    remove_half_files(target)
    stale = set(target.glob("*/*.jsonl"))  # of tasks and splits that no longer exist
    counts: Counter = Counter()
    by_task: dict[str, Counter] = {}
    for split in tqdm(description.splits, description.name):
        for name, make in makers.items():
            if examples := list(make(split)):
                random.Random(f"{split}/{name}").shuffle(examples)  # so that the first ones are a random draw
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
