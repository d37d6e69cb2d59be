#!/usr/bin/env python
"""Measure speed side by side with transformers' own models of the same size, with random weights.

    python scripts/benchmark.py                     # every figure of the guide
    python scripts/benchmark.py text --tokens 32    # a row; `--help` lists them
    python scripts/benchmark.py --json scripts/results/cpu.json

Prints the median of the ratios of neighboring runs, which holds when the machine's speed drifts, with its quartiles,
and how near each side comes to the measured limits of the machine.
"""

import sys

from modeling_mm.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
