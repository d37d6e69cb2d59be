# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Train a DETR on the scenes and the frozen encoder of a recipe, to compare the model that points with.

    python -m scripts.workshop.train_detr configuration/recipes/mm-studio-find.yaml outputs/studio-detr

It takes as many steps as the recipe. `run.json` of both folders has the seconds of training; `--steps` makes them
equal. An interrupted run resumes from its last checkpoint.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path, help="where checkpoints and the model go")
    parser.add_argument("--scenes", type=Path, default=Path("outputs/corpora/scenes"))
    parser.add_argument("--steps", type=int, help="by default those of the recipe")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16, for CPUs that have them")
    parser.add_argument("--limit", type=int, help="number of scenes to train on")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from .detr_training import train_detr  # after the arguments, as it imports torch

    print(train_detr(arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
