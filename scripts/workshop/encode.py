# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Encode the images of the corpora for a recipe with an encoder cache, by ONNX Runtime instead of torch.

    python -m scripts.workshop.encode configuration/recipes/mm-whisper-tiny-names.yaml

Training would encode them too, more slowly. An interrupted run resumes.
"""

import argparse
import sys
from pathlib import Path

CORPORA = ("images", "photographs")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--corpus", nargs="+", default=CORPORA, help="names of corpora with images")
    arguments = parser.parse_args()
    from .quick_encoding import encode  # after the arguments, as it imports torch

    encode(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
