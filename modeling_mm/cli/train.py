# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm train`: follow a recipe to its end, or search its hyperparameters."""

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError
from transformers.utils import logging

from ..recipes import report, search
from ..recipes import run as run_recipe
from .recipe import load_recipe


def run(options: Namespace) -> None:
    """Train or search, and print the figures."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers of the data loader are forked
    logging.disable_progress_bar()  # of loading and saving; training keeps its own
    recipe = load_recipe(options.recipe, options.overrides)
    with failures_of_the_system():
        if options.search is None:
            report(run_recipe(recipe), recipe)
        else:
            search(recipe, options.search)


# Texts in errors of torch's data loader, when a worker died, and of its writer, when a disk is full.
SYSTEM = ("DataLoader worker", "DataLoader timed out", "PytorchStreamWriter", "inline_container", "No space left")


@contextmanager
def failures_of_the_system() -> Iterator[None]:
    """Raise errors of libraries about disks and processes as an OSError, so that they end in one line."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"Weights could not be written or read: {error}") from error
    except RuntimeError as error:
        if not any(text in str(error) for text in SYSTEM):
            raise
        cause = error.__cause__ or error.__context__
        why = f" ({cause})" if isinstance(cause, OSError) else ""
        hint = " Is the disk full?" if "Writer" in str(error) or "inline_container" in str(error) else ""
        raise OSError(f"{str(error).strip().splitlines()[0]}{why}{hint}") from error
