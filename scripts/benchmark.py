#!/usr/bin/env python
"""Measure speed side by side with transformers' own models of the same size, with random weights.

    python scripts/benchmark.py                     # every figure of the guide
    python scripts/benchmark.py text --tokens 32    # one of: text, image, speech, pretraining, import, load

Prints the median of the ratios of neighboring runs, which holds when the machine's speed drifts.
"""

import sys

from modeling_mm.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
