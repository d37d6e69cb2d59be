# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Draw the questions of `scripts/ask.py` from the held-out splits of the corpora, and copy their media.

    python -m scripts.workshop.build_unseen        # outputs/corpora -> processing/corpora/unseen

They are drawn at random with a fixed seed, before any model answered them, from media that may be redistributed:
Twemoji (CC-BY-4.0), Asterisk's prompts (CC-BY-SA-3.0), synthetic speech.
"""

import argparse
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from modeling_mm.utils import write_lines

from .chats import Example
from .corpus import read_lines

# Split, task, language, number of questions.
DRAWS = (
    ("test_hand", "caption", "en", 2),
    ("test_hand", "caption", "fr", 1),
    ("test_hand", "caption", "es", 1),
    ("test_hand", "caption", "ru", 1),
    ("test_hand", "caption", "zh", 1),
    ("test_concepts", "category", "en", 2),
    ("test_hand", "choose_image", "en", 1),
    ("test_voice", "transcribe_caption", "en", 2),
    ("test_voice", "transcribe_caption", "zh", 1),
    ("test_prompts", "transcribe", "en", 2),
    ("test_hand", "match_audio_image", "en", 2),
)
SEED = 1


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
    for split, task, language, count in DRAWS:
        path = corpora / "chat" / split / f"{task}.jsonl"
        candidates = [
            example
            for example in read_lines(path)
            if example["task"] == f"{task}/{language}" and is_redistributable(example)
        ]
        for example in rng.sample(candidates, count):
            for part in media(example):
                part["path"] = str((path.parent / part["path"]).resolve())
            yield example


def media(example: Example) -> list[dict[str, str]]:
    """Return the image and audio parts of the question."""
    return [part for part in example["messages"][0]["content"] if "path" in part]


def is_redistributable(example: Example) -> bool:
    """Check that all media are Twemoji, prompts or synthetic speech, without stamps of Tux Paint or their names."""
    paths = [Path(part["path"]) for part in media(example)]
    names = ("twemoji-", "flite_rms-emoji", "espeak-ng_cmn_m3-emoji")
    return all(path.name.startswith(names) or "prompts" in path.parts for path in paths)


if __name__ == "__main__":
    sys.exit(main())
