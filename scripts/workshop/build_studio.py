# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Write a small decoder with the codecs of images and of speech, which it cannot write yet, as a folder to train from.

    python -m scripts.workshop.build_studio outputs/studio-base

The corpus `studio` gives the texts of its tokenizer; `train_codec` makes the codecs.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs/studio-base"))
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--image-codec", type=Path, default=Path("outputs/codecs/image"))
    parser.add_argument("--audio-codec", type=Path, default=Path("outputs/codecs/speech"))
    arguments = parser.parse_args()
    from .studio_folder import build_studio  # after the arguments, as it imports torch

    build_studio(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
