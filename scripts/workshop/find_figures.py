# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Measure a model that points, and a DETR beside it, on scenes that training has not seen.

    python -m scripts.workshop.find_figures outputs/mm-studio-together --detr outputs/studio-detr --limit 100

Average precision of the boxes that answer "What is where?" (COCO's, by size too), with the names and of the places
alone, and how often "Find the apple." finds the only one, at an IoU of 0.5. `test_hand` has known things drawn by an
unseen hand, `test_concepts` things that training lacks.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--detr", type=Path, help="folder of `train_detr`, to measure beside the model")
    parser.add_argument("--out", type=Path, default=Path("outputs/find-figures"))
    parser.add_argument("--scenes", type=Path, default=Path("outputs/corpora/scenes"))
    parser.add_argument("--encoder-cache", type=Path, default=Path("outputs/encoder-cache"))
    parser.add_argument("--limit", type=int, help="number of scenes of each split, and of prompts; all by default")
    parser.add_argument("--splits", nargs="+", default=["test_hand", "test_concepts"])
    arguments = parser.parse_args()
    from .find_measures import measure, table  # after the arguments, as it imports torch

    print(table(measure(arguments)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
