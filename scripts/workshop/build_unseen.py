# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Draw the questions of `scripts/ask.py` from the held-out splits of the corpora, and copy their media.

    python -m scripts.workshop.build_unseen        # outputs/corpora -> processing/corpora/unseen

They are drawn at random with a fixed seed, before any model answered them, from media that may be redistributed:
Twemoji (CC-BY-4.0), photographs in the public domain, Asterisk's prompts (CC-BY-SA-3.0), synthetic speech.
"""

import argparse
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from modeling_mm.utils import write_lines

from .chats import Example
from .corpus import read_lines, read_rows

# Split, task, number of questions: first those that a visitor understands at once.
DRAWS = (
    ("test_prompts", "transcribe", 3),
    ("test_hand", "caption", 3),
    ("test_hand", "choose_image", 3),
    ("test_hand", "verify_name", 2),
    ("test_hand", "match_audio_image", 2),
    ("test_photographs", "photograph", 1),
    ("test_concepts", "category", 1),
    ("test_prompts", "transcribe_beside_image", 1),
)
SEED = 1
FEWEST_WORDS = 3  # of a transcript: a sentence, and no letter or name of one
MOST_WORDS = 12  # of an answer: Whisper tiny.en repeats itself in some synthetic clips, which nobody wants to read
FREE = ("Public Domain", "CC0-1.0")  # licenses of photographs that are shipped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--folder", type=Path, default=Path("processing/corpora/unseen"))
    arguments = parser.parse_args()
    examples = list(draw(arguments.corpora))
    shutil.rmtree(arguments.folder / "media", ignore_errors=True)
    for part in (part for example in examples for part in media(example)):
        target = arguments.folder / "media" / Path(part["path"]).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part["path"], target)
        part["path"] = f"media/{target.name}"
    write_lines(arguments.folder / "questions.jsonl", examples)
    print(f"{len(examples)} questions in {arguments.folder}")
    return 0


def draw(corpora: Path) -> Iterator[Example]:
    """Yield the drawn examples, with absolute paths."""
    rng = random.Random(SEED)
    licenses = {row["file_name"]: row["license"] for row in read_rows(corpora / "photographs", "test_photographs")}
    for split, task, count in DRAWS:
        path = corpora / "chat" / split / f"{task}.jsonl"
        candidates = [
            example
            for example in read_lines(path)
            if is_redistributable(example, licenses)
            and (FEWEST_WORDS if "transcribe" in task else 1) <= len(answer(example).split()) <= MOST_WORDS
        ]
        for example in rng.sample(candidates, count):
            for part in media(example):
                part["path"] = str((path.parent / part["path"]).resolve())
            yield example


def media(example: Example) -> list[dict[str, str]]:
    """Return the image and audio parts of the question."""
    return [part for part in example["messages"][0]["content"] if "path" in part]


def answer(example: Example) -> str:
    return example["messages"][1]["content"][0]["text"]


def is_redistributable(example: Example, licenses: dict[str, str]) -> bool:
    """
    Check that all media may be shipped, without stamps of Tux Paint or their names.

    Args:
        licenses: of the photographs, by file.
    """
    paths = [Path(part["path"]) for part in media(example)]
    names = ("twemoji-", "flite_rms-emoji")
    return all(
        path.name.startswith(names) or "prompts" in path.parts or licenses.get(f"test_photographs/{path.name}") in FREE
        for path in paths
    )


if __name__ == "__main__":
    sys.exit(main())
