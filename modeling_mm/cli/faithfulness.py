# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm faithfulness`: how faithful each method of explaining is for a model."""

from argparse import Namespace
from pathlib import Path

from ..data import ChatDataset, load_chats, media_parts
from ..evaluation import is_classifier
from ..explain import compare_methods, methods_markdown
from ..utils import write_text
from .arguments import EXPLAIN
from .loading import load_model


def run(options: Namespace) -> None:
    """Print a table with a row for each method and one for random weights; write it if a file is given."""
    model, processor = load_model(options.model, options.device, "float32", "eager")
    if not is_classifier(model):
        model.generation_config.max_length = None  # the limit of new tokens takes its place, without a warning
    chats = load_chats(options.questions, limit=options.limit)
    assert isinstance(chats, ChatDataset)  # no stream
    rows = [row for row in chats if media_parts(row.prompt)]
    figures = compare_methods(
        model, processor, rows, options.methods or EXPLAIN, options.points, progress="explaining answers"
    )
    table = methods_markdown(figures)
    print(f"{options.model}: {len(rows)} questions of {options.questions}\n\n{table}")
    if options.out:
        write_text(Path(options.out), table + "\n")
