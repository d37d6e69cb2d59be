# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Write down what the untrained model hears in some clips of the corpora, for examples with audio and an image.

    python -m scripts.workshop.hear

The answers of these examples are the model's own transcripts, so that it learns to hear beside an image as it hears
without one. The clips' encoder states stay in the encoder cache for the training. An interrupted run resumes.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from .corpus import read_description, read_lines, read_rows

HEARD_FILE = "heard.jsonl"
BATCH = 16
MAX_NEW_TOKENS = 100


def chosen_clips(folder: Path) -> Iterator[str]:
    """Yield the clips that examples are made of, by their paths below the folder of all corpora."""
    for corpus, limits in read_description("chat").settings["heard"].items():
        for split, limit in limits.items():
            rows = read_rows(folder / corpus, split)
            names = [f"{corpus}/{row['file_name']}" for row in rows]
            yield from sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:limit]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="outputs/base")
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--cache", type=Path, default=Path("outputs/encoder-cache"))
    arguments = parser.parse_args()
    path = arguments.corpora / HEARD_FILE
    known = {row["file_name"]: row["heard"] for row in read_lines(path)} if path.is_file() else {}
    names = list(chosen_clips(arguments.corpora))
    if todo := [name for name in names if name not in known]:
        from .hearing import hear  # after the arguments, as it imports torch

        hear(arguments, todo, known)
    print(f"{path}: {len(known)} clips")
    return 0


if __name__ == "__main__":
    sys.exit(main())
