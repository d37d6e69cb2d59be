#!/usr/bin/env python
"""Train a model by a recipe: one YAML file that says what is trained on what, and how.

    python scripts/train.py configuration/recipes/tiny-sample.yaml
    python scripts/train.py configuration/recipes/tiny-sample.yaml training.learning_rate=1e-3 data.train.0.limit=100
    accelerate launch --config_file configuration/accelerate/ddp.yaml scripts/train.py RECIPE
    python scripts/train.py RECIPE --search 20          # 20 trials of the recipe's `search` section

The same command again goes on with a run that was interrupted. A finished one is left alone; `overwrite=true` starts
anew. Keys and their meaning: `help(modeling_mm.recipes.schema)`, and configuration/recipes for examples.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers of the data loader are forked

from transformers.utils import logging

from modeling_mm.recipes.run import report, run
from modeling_mm.recipes.schema import read_recipe
from modeling_mm.recipes.search import search


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    logging.disable_progress_bar()  # of loading and saving; training keeps its own
    try:
        recipe = read_recipe(options.recipe, options.overrides)
        if options.search is None:
            report(run(recipe), recipe)
        else:
            search(recipe, options.search)
    except (ValueError, FileNotFoundError) as error:
        if options.traceback:
            raise
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a YAML file, as in configuration/recipes")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="put on top of the recipe; values in YAML")
    parser.add_argument("--search", type=int, metavar="N", help="search hyperparameters instead, with N trials in all")
    parser.add_argument("--traceback", action="store_true", help="show where in the code a refusal comes from")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
