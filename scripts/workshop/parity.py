# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Compare the released model with Whisper tiny.en: transcripts, also beside an image, and perplexity of text.

    python -m scripts.workshop.parity model_cards/mm-whisper-tiny --out outputs/parity.json

The prompts are Asterisk's, of at least three words, none of which training has heard.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=100, help="number of prompts (default: %(default)s)")
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"))
    parser.add_argument("--out", type=Path, default=Path("outputs/parity.json"))
    arguments = parser.parse_args()
    from .parity_run import compare  # after the arguments, as it imports torch

    compare(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
