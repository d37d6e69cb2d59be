# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Transcribe with Whisper tiny.en, converted and in int8, beside faster-whisper on the same weights.

    pip install "faster-whisper>=1.2,<2"
    python -m scripts.workshop.faster_whisper --out scripts/results/faster-whisper.json

Each clip is transcribed by both in turn, greedily and without timestamps. Each side has a process, since the threads
of both in one process would wait for each other. The clips are Asterisk's prompts of at least three words
(`build_corpus prompts` builds them).
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=100, help="number of clips (default: %(default)s)")
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"))
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    arguments = parser.parse_args()
    if find_spec("faster_whisper") is None:
        parser.error("faster-whisper is not installed. Run: pip install 'faster-whisper>=1.2,<2'")
    from .faster_whisper_run import compare  # after the arguments, as it imports torch

    compare(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
