# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Compare cross-attention with its alternatives: train our model and the others alike, on the same captions.

    python -m scripts.workshop.compare                               # six systems, three seeds
    python -m scripts.workshop.compare --systems prefix mlp --seeds 1 --steps 100

Every system starts from the same small pretrained GPT-2, gets the same frozen outputs of the same vision encoder,
learns the same English captions in the same order, and is tested on images of the same things by a hand that is not in
training. Run `scripts.workshop.build_corpus` and `scripts.workshop.build_components` first.

Each run is appended to OUTPUT/runs.jsonl when it ends, and an interrupted comparison resumes. It ends with a table
(also OUTPUT/table.md) and a plot (OUTPUT/plot.png).
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from .comparison_settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    from .comparison_run import run  # after the arguments, as it imports torch

    return run(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--components", type=Path, default=Path("outputs/components"))
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"))
    parser.add_argument("--cache", type=Path, default=Path("outputs/encoder-cache"), help="filled as needed")
    parser.add_argument("--output", type=Path, default=Path("outputs/comparison"))
    parser.add_argument("--systems", nargs="*", default=[], help="names or substrings of them; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--column", default="name_en", help="column with the captions")
    parser.add_argument("--test-split", default="test_hand")
    parser.add_argument("--longest", type=int, default=16, help="longest caption, in tokens")
    parser.add_argument("--width", type=int, default=128, help="n_embd of the decoder")
    parser.add_argument("--layers", type=int, default=4, help="n_layer of the decoder")
    parser.add_argument("--heads", type=int, default=4, help="n_head of the decoder")
    parser.add_argument("--pretraining-steps", type=int, default=200)
    parser.add_argument("--pretraining-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
