# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Train a tiny model on images and audio, in about three minutes on two CPU cores, from the sample in this repository.

    python -m scripts.workshop.demo_train --help
    python -m scripts.workshop.demo_train                              # everything; results go to outputs/demo-train
    python -m scripts.workshop.demo_train --steps 50 --output /tmp/d   # a short run with bad answers

Three small components with random weights (a ResNet, a Whisper encoder, a GPT-2) are joined into one model, which the
stock `Trainer` trains end to end on questions about the sample's images and recordings. The model is saved, loaded
with `Auto*` classes, and asked all of these questions, and others about pairs of image and recording that are not in
training. The script fails if less than 90 % of the former answers are exactly right.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Read when torch and transformers are imported: no downloads, and waiting threads leave the cores to others.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    from .demonstration import demonstrate  # after the arguments, as it imports torch

    return demonstrate(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo-train"), help="folder of model and figure")
    parser.add_argument("--steps", type=int, default=800, help="training steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="questions in a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
