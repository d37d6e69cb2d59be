# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Make a released checkpoint from a trained folder: weights in half precision, links to the code, a card with figures.

    python -m scripts.workshop.release outputs/mm-whisper-tiny model_cards/mm-whisper-tiny
    python -m scripts.workshop.parity model_cards/mm-whisper-tiny
    python scripts/evaluate.py configuration/recipes/mm-whisper-tiny.yaml model_cards/mm-whisper-tiny
    python -m scripts.workshop.release outputs/mm-whisper-tiny model_cards/mm-whisper-tiny \\
        --figures outputs/evaluation --parity outputs/parity.json

The figures are those of the released weights, so they are measured between two calls. The folder goes to the Hub as it
is; its code files are links to the package, which the Hub's client follows.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="output folder of scripts/train.py")
    parser.add_argument("released", type=Path)
    parser.add_argument("--figures", type=Path, help="output folder of scripts/evaluate.py")
    parser.add_argument("--parity", type=Path, help="figures of scripts.workshop.parity")
    arguments = parser.parse_args()
    from .released_folder import release  # after the arguments, as it imports torch

    release(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
