# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Draws the questions of `scripts/ask.py` from the held-out splits of the corpora, and copies their media.

    python -m scripts.pocket.build_unseen        # outputs/corpora -> processing/corpora/unseen

Drawn at random with a fixed seed, before any model was asked; only media that may be redistributed are drawn from:
Twemoji (CC-BY-4.0), Asterisk's prompts (CC-BY-SA-3.0), synthetic speech.
"""

import argparse
import json
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modeling_mm.utils.files import write_lines

# Split, file, task, how many.
DRAWN = (
    ("test_hand", "caption", "caption/en", 2),
    ("test_hand", "caption", "caption/fr", 1),
    ("test_hand", "caption", "caption/es", 1),
    ("test_hand", "caption", "caption/ru", 1),
    ("test_hand", "caption", "caption/zh", 1),
    ("test_concepts", "category", "category/en", 2),
    ("test_hand", "which", "which/en", 1),
    ("test_voice", "heard", "heard/en", 2),
    ("test_voice", "heard", "heard/zh", 1),
    ("test_prompts", "transcribe", "transcribe/en", 2),
    ("test_hand", "match", "match/en", 2),
)
SEED = 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--folder", type=Path, default=Path("processing/corpora/unseen"))
    arguments = parser.parse_args()
    samples = list(draw(arguments.corpora))
    shutil.rmtree(arguments.folder / "media", ignore_errors=True)
    for sample in samples:
        for part in sample["messages"][0]["content"]:
            if "path" in part:
                source = Path(part["path"])
                target = arguments.folder / "media" / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
                part["path"] = f"media/{source.name}"
    write_lines(arguments.folder / "questions.jsonl", samples)
    print(f"{len(samples)} questions in {arguments.folder}")
    return 0


def draw(corpora: Path) -> Iterator[dict[str, Any]]:
    """The drawn samples, with paths from here."""
    chance = random.Random(SEED)
    for split, name, task, count in DRAWN:
        path = corpora / "chat" / split / f"{name}.jsonl"
        samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        samples = [sample for sample in samples if sample["task"] == task and may_be_shipped(sample)]
        for sample in chance.sample(samples, count):
            for part in sample["messages"][0]["content"]:
                if "path" in part:
                    part["path"] = str((path.parent / part["path"]).resolve())
            yield sample


def may_be_shipped(sample: dict[str, Any]) -> bool:
    """Whether all of its media are Twemoji, prompts or synthetic speech, and none a stamp of Tux Paint or its name."""
    paths = [Path(part["path"]) for part in sample["messages"][0]["content"] if "path" in part]
    names = ("twemoji-", "flite_rms-emoji", "espeak-ng_cmn_m3-emoji")
    return all(path.name.startswith(names) or "prompts" in path.parts for path in paths)


if __name__ == "__main__":
    sys.exit(main())
