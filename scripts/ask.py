# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Ask a joint model the questions of a file, and see its answers beside the truth and what each word looked at.

    python scripts/ask.py outputs/mm-pocket                         # the questions of processing/corpora/unseen
    python scripts/ask.py MODEL --questions chats.jsonl --limit 20

The questions that are shipped, in five languages, were drawn at random from what `make corpora` holds out:
pictures drawn by a hand that was kept out of training, spoken names in a voice that was, and telephone prompts whose
words were.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

import modeling_mm  # noqa: F401  (its classes are known to Auto* from here on)
from modeling_mm.data import ChatRow, load_chats, media_parts, media_source, turn_text
from modeling_mm.evaluation import generate_answers
from modeling_mm.explain import answer_attention, draw, read_band, save
from modeling_mm.recipes.build import rows_of
from modeling_mm.utils.tables import format_table

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    start = time.perf_counter()
    logging.disable_progress_bar()
    processor = AutoProcessor.from_pretrained(options.model)
    # On a CPU float32 is faster than weights in half precision; eager attention gives its weights.
    model = AutoModelForImageTextToText.from_pretrained(
        options.model, dtype=torch.float32, attn_implementation="eager"
    )
    rows = list(rows_of(load_chats(options.questions, limit=options.limit)))
    print(f"{options.model}: {model.num_parameters() / 1e6:.1f}M parameters. {len(rows)} questions:\n")
    answers = generate_answers(model, processor, rows, batch_size=8)
    print(answers_table(rows, answers))
    right = sum(answer == row.answer for answer, row in zip(answers, rows, strict=True))
    print(f"\n{right} of {len(rows)} are exactly right.")
    print(f"What each word looked at: {draw_attention(model, processor, rows, options.output / 'attention.png')}")
    print(f"{time.perf_counter() - start:.0f} s in all.")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a joint model")
    parser.add_argument("--questions", default=str(ROOT / "processing/corpora/unseen/questions.jsonl"))
    parser.add_argument("--limit", type=int, help="questions at most")
    parser.add_argument("--output", type=Path, default=Path("outputs/ask"), help="folder for the picture")
    return parser.parse_args(arguments)


def question_of(row: ChatRow) -> str:
    return turn_text(row.prompt[-1])


def files_of(row: ChatRow, kind: str) -> list[Path]:
    return [Path(media_source(part)) for part in media_parts(row.prompt) if part["type"] == kind]


def answers_table(rows: Sequence[ChatRow], answers: Sequence[str]) -> str:
    lines = []
    for row, answer in zip(rows, answers, strict=True):
        about = " + ".join(path.name for kind in ("image", "audio") for path in files_of(row, kind))
        lines.append((about, question_of(row), answer, row.answer, "✓" if answer == row.answer else "✗"))
    return format_table(("about", "question", "answer", "truth", ""), lines)


def draw_attention(model, processor, rows: Sequence[ChatRow], path: Path) -> Path:
    """The first question about a picture, the first about a sound, and the first about both."""
    kinds = {(bool(files_of(row, "image")), bool(files_of(row, "audio"))): row for row in reversed(rows)}
    bands = []
    for row in (row for media, row in sorted(kinds.items(), reverse=True) if any(media)):
        image, sound = (next(iter(files_of(row, kind)), None) for kind in ("image", "audio"))
        bands.append(
            read_band(question_of(row), row.answer, answer_attention(model, processor, row.prompt), image, sound)
        )
    return save(
        draw(bands, "What each word of the answer looked at", "Cross-attention, mean over heads and blocks."), path
    )


if __name__ == "__main__":
    sys.exit(main())
