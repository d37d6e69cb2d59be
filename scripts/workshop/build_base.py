# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Write Whisper tiny.en with EfficientNet-Lite2, which it has not yet learned to read, as a folder to train from.

    python -m scripts.workshop.build_base outputs/base
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs/base"))
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"))
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"), help="whose names of images are tags")
    arguments = parser.parse_args()
    from .base_folder import build_base  # after the arguments, as it imports torch

    build_base(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
