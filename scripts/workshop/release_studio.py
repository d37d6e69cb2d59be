# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Make the release of mm-studio from a trained folder: weights in half precision, links to the code, a card with figures.

    python -m scripts.workshop.release_studio outputs/mm-studio-together model_cards/mm-studio
    python -m scripts.workshop.studio_figures model_cards/mm-studio
    python -m scripts.workshop.find_figures model_cards/mm-studio --detr outputs/studio-detr
    python -m scripts.workshop.release_studio outputs/mm-studio-together model_cards/mm-studio \\
        --figures outputs/studio-figures --found outputs/find-figures

The figures, the sheets and the recordings are those of the released weights, so they are made between two calls.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="output folder of training")
    parser.add_argument("released", type=Path)
    parser.add_argument("--figures", type=Path, help="output folder of studio_figures")
    parser.add_argument("--found", type=Path, help="that of find_figures, of a model that points")
    arguments = parser.parse_args()
    from .studio_release import release_studio  # after the arguments, as it imports torch

    release_studio(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
