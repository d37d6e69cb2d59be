#!/usr/bin/env python
"""Measure a trained model on the test sets of a recipe, beside the majority's answer and answers without media.

    python scripts/evaluate.py configuration/recipes/mm-whisper-tiny.yaml model_cards/mm-whisper-tiny
    python scripts/evaluate.py RECIPE MODEL --limit 200 --no-text-only --out outputs/evaluation

Prints the figures, and writes into the output folder:

- `figures.json`, `figures.md`: the figures
- `answers.jsonl`: every answer beside its truth
- `examples.html`: good and bad answers with their images and audio, in one file that needs no network
- `card.md`: a section for a model card
"""

import sys

from modeling_mm.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
