# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Build the corpus of scenes: images, chats that ask where things are, and annotations in COCO's form.

    python -m scripts.workshop.build_scenes                      # into outputs/corpora/scenes
    python -m scripts.workshop.build_scenes --share 0.01         # a hundredth of it, to look at

Packages are fetched as for `build_corpus`. The same packages give the same files.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/corpora/scenes"))
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"), help="folder of unpacked packages")
    parser.add_argument("--share", type=float, default=1.0, help="share of the scenes")
    arguments = parser.parse_args()
    from .builders import CorpusBuilder  # after the arguments, as they import torch
    from .corpus import read_description
    from .scenes import build_scenes

    description = read_description("scenes")
    counts = {split: max(1, round(n * arguments.share)) for split, n in description.settings["counts"].items()}
    description = replace(description, settings={**description.settings, "counts": counts})
    built = build_scenes(CorpusBuilder(arguments.packages), arguments.folder, description)
    print("scenes: " + ", ".join(f"{split} {number}" for split, number in built.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
