# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Train the released model: a recipe, and lessons about the classes that its image encoder knows.

    python -m scripts.workshop.train configuration/recipes/mm-whisper-tiny.yaml [KEY=VALUE ...]

An interrupted run resumes from its last checkpoint.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the recipe")
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"))
    arguments = parser.parse_args()
    from .training import train  # after the arguments, as it imports torch

    train(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
