#!/usr/bin/env python
"""Measure how faithful each method of explaining is for a model: deletion and insertion curves.

    python scripts/faithfulness.py model_cards/mm-whisper-tiny processing/corpora/unseen/questions.jsonl

The places with the greatest weight are deleted first, or inserted first into blank media. If an answer depends on
them, its probability falls fast (a low area under deletion) and rises fast (a high area under insertion). Weights
drawn at random are the last row: a method must beat them. Rows without media are left out.
"""

import sys

from modeling_mm.cli import main

if __name__ == "__main__":
    sys.exit(main(["faithfulness", *sys.argv[1:]]))
