# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Measure what pre-training adds to a classifier of images that learns from 8 labels a class.

    python -m scripts.workshop.few_labels

Follow two recipes with each seed: `few-labels-pretrain`, then `few-labels` from its folder and from the model that it
began with. Finished runs are kept and an interrupted one resumes. `make whisper-tiny` builds the data and that model.
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=Path, default=Path("configuration/recipes"), help="folder of both recipes")
    parser.add_argument("--out", type=Path, default=Path("outputs/few-labels"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    from .few_labels_runs import compare  # after the arguments, as it imports torch

    print(compare(arguments.recipes, arguments.out, arguments.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
