#!/usr/bin/env python
"""Measure a trained model on the test sets of a recipe, beside the majority's answer and answers without media.

    python scripts/evaluate.py configuration/recipes/mm-pocket.yaml model_cards/mm-pocket
    python scripts/evaluate.py RECIPE MODEL --limit 200 --no-text-only --out outputs/evaluation

Writes `figures.json`, `figures.md` and `answers.jsonl` into the output folder, and prints the figures.
"""

import sys

from modeling_mm.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
