# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Give a decoder that draws and speaks an eye, which it cannot use yet, as a folder to train from.

    python -m scripts.workshop.build_find outputs/mm-studio outputs/studio-find-base

Nothing that it can do changes: only the eye's connector and cross-attention learn.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=Path("outputs/mm-studio"), help="without an eye")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs/studio-find-base"))
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"))
    arguments = parser.parse_args()
    from .find_folder import build_find  # after the arguments, as it imports torch

    build_find(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
