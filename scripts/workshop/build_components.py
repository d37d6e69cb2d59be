# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Make the components of `make compare`: two real encoders from packages, a new decoder and a new tokenizer.

    python -m scripts.workshop.build_components                  # outputs/corpora -> outputs/components

The tokenizer and the decoder learn from the training examples of the corpora and from some of WordNet's definitions,
so run `python -m scripts.workshop.build_corpus` first.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/components"))
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"))
    parser.add_argument("--vocabulary", type=int, default=24000, help="large, so that a name has few tokens")
    parser.add_argument("--width", type=int, default=192, help="n_embd of the decoder")
    parser.add_argument("--layers", type=int, default=4, help="n_layer of the decoder")
    parser.add_argument("--heads", type=int, default=6, help="n_head of the decoder")
    parser.add_argument("--positions", type=int, default=192, help="longest text, in tokens")
    parser.add_argument("--initializer-range", type=float, default=0.05, help="0.02 is too small for small matrices")
    parser.add_argument("--epochs", type=int, default=3, help="of pretraining on text; 0 for random weights")
    parser.add_argument("--definitions", type=int, default=2000, help="number of WordNet's definitions to learn from")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--window", type=int, default=6, help="seconds of an audio window")
    arguments = parser.parse_args()
    from .component_folder import build_components  # after the arguments, as it imports torch

    build_components(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
