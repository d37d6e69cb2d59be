# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `hear`: transcripts of clips by the model that has not yet learned to see."""

import argparse
from collections.abc import Sequence

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.data import ChatRow
from modeling_mm.evaluation import generate_answers
from modeling_mm.training import CachedCollator, EncoderCache
from modeling_mm.utils import show_progress, write_lines

from .hear import BATCH, HEARD_FILE, MAX_NEW_TOKENS


def hear(arguments: argparse.Namespace, names: Sequence[str], known: dict[str, str]) -> None:
    """Add the transcripts of clips to those that are known, and write all of them after each batch."""
    model = MMForConditionalGeneration.from_pretrained(arguments.base)
    processor = MMProcessor.from_pretrained(arguments.base)
    cache = EncoderCache(arguments.cache, model, processor)
    collator = CachedCollator(processor, cache)
    rows = [transcription(str(arguments.corpora / name)) for name in names]
    with show_progress(total=len(names), desc="hearing") as bar:
        for start in range(0, len(names), BATCH):
            batch = rows[start : start + BATCH]
            cache.fill(batch, progress=False)
            texts = generate_answers(model, processor, batch, BATCH, MAX_NEW_TOKENS, collator.prompt_batch)
            known |= {name: text.strip() for name, text in zip(names[start : start + BATCH], texts, strict=True)}
            write_lines(
                arguments.corpora / HEARD_FILE,
                [{"file_name": name, "heard": text} for name, text in sorted(known.items())],
            )
            bar.update(len(batch))


def transcription(path: str) -> ChatRow:
    """Return the row of a transcript that is not known yet."""
    content = [{"type": "audio", "path": path}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": ""}]}
    return ChatRow([{"role": "user", "content": content}, answer])
