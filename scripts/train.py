#!/usr/bin/env python
"""Train a model by a recipe: one YAML file that names the model, the data and the settings.

    python scripts/train.py configuration/recipes/tiny-sample.yaml
    python scripts/train.py configuration/recipes/tiny-sample.yaml training.learning_rate=1e-3 data.train.0.limit=100
    accelerate launch --config_file configuration/accelerate/ddp.yaml scripts/train.py RECIPE
    python scripts/train.py RECIPE --search 20          # 20 trials of the recipe's `search` section

The same command resumes an interrupted run and refuses a finished one; `overwrite=true` starts over. Keys and their
meaning: `help(modeling_mm.recipes)`, and configuration/recipes for examples.
"""

import sys

from modeling_mm.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
