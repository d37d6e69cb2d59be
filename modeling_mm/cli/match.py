# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm ask --match`: similarity of a row of one's own to others, and where it comes from."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from ..data.chat_row import Message
from ..explain import Band, explain_match, make_match
from ..modalities import MODALITIES
from ..search.items import TEXT, kind_of


def compare(options: Namespace, model: Any, processor: Any, turn: Message) -> list[Band]:
    """
    Print the similarity of the question, with its files, to each text or file of `--match`, the greatest first.

    Returns:
        what to draw: both sides of each match, the most similar first; nothing without a file to draw into.
    """
    found = []
    for value in options.match:
        other = side_of(value)
        if options.attention:
            match = explain_match(model, processor, turn["content"], other, options.explain)
            found.append((match.similarity, value, match.bands))
        else:
            found.append((similarity(model, processor, turn["content"], other), value, []))
    found.sort(key=lambda each: -each[0])
    print("\n".join(f"{each:6.3f}  {' '.join(value.split())}" for each, value, _ in found))
    return [band for _, _, bands in found for band in bands]


@torch.no_grad()
def similarity(model: Any, processor: Any, one: Any, other: Any) -> float:
    """Return the cosine of the embeddings of two rows."""
    side, _ = make_match(model, processor, one, other)
    return side.scores_in_chunks(side.media).item()


def side_of(value: str) -> list[dict[str, Any]]:
    """
    Return a text, or the path of a file, as the parts of a row.

    Raises:
        FileNotFoundError: for the name of an image or audio that does not exist.
        ValueError: for a file of another type.
    """
    path, kind = Path(value), kind_of(Path(value))
    if not is_file(path):
        if kind in MODALITIES and not value.count(" "):
            raise FileNotFoundError(f"--match: there is no file {value}.")
        return [{"type": TEXT, "text": value}]
    if kind is None:
        raise ValueError(f"--match {value}: expected a text, or a file of type {', '.join(MODALITIES)} or .txt.")
    if kind == TEXT:
        return [{"type": TEXT, "text": path.read_text(encoding="utf-8")}]
    return [{"type": kind, "path": value}]


def is_file(path: Path) -> bool:
    """Return True for a file; a long text cannot be the name of one."""
    try:
        return path.is_file()
    except OSError:
        return False
