# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm train`: follow a recipe to its end, or search its hyperparameters."""

import os
from argparse import Namespace

from transformers.utils import logging

from ..recipes import report, search
from ..recipes import run as run_recipe
from .recipe import load_recipe


def run(options: Namespace) -> None:
    """Train or search, and print the figures."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers of the data loader are forked
    logging.disable_progress_bar()  # of loading and saving; training keeps its own
    recipe = load_recipe(options.recipe, options.overrides)
    if options.search is None:
        report(run_recipe(recipe), recipe)
    else:
        search(recipe, options.search)
