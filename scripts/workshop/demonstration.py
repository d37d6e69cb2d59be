# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `demo_train`: train a tiny model, save it, load it, ask it, and draw where its answers looked."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import logging

from modeling_mm import MMProcessor
from modeling_mm.data import ChatRow, media_parts, turn_text
from modeling_mm.evaluation import generate_answers
from modeling_mm.explain import answer_attention, draw, read_band, save
from modeling_mm.training import LossProgressCallback, encode_conversation
from modeling_mm.utils import format_table

from .from_scratch import small_model, small_processor
from .sample import read_sample

REQUIRED_SHARE = 0.9
TRAINED = "All training questions"
NEW_PAIRS = "Pairs that are not in training"


def demonstrate(options: argparse.Namespace) -> int:
    """Train, save, load and ask; return the exit code, 1 if too few answers are right."""
    start = time.perf_counter()
    logging.disable_progress_bar()  # of loading and saving; training and answering keep theirs
    print("A tiny model is trained from scratch and memorizes its sample: a test of the package, not of the model.\n")
    training, new_pairs = read_sample("train"), read_sample("new_pairs")
    processor = small_processor(turn_text(turn) for row in training for turn in row.messages)
    model = small_model(processor, options.seed)
    print(describe(model), f"{len(training)} training questions.\n")
    train(model, processor, training, options)
    folder = options.output / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    print(f"Saved to {folder} and loaded back.\n")
    asked = [*training, *new_pairs]
    answers = generate_answers(model, processor, [row.prompt for row in asked], progress="answering")
    kinds = [question(row) for row in training] + [NEW_PAIRS] * len(new_pairs)
    print(examples_table(asked, answers, kinds))
    reached = report(asked, answers, kinds)
    drawing = draw_attention(model, processor, training, new_pairs, options.output / "attention.png")
    print(f"Attention of each word: {drawing}\n{time.perf_counter() - start:.0f} s in total.")
    if reached < REQUIRED_SHARE:
        print(f"Only {reached:.1%} were answered exactly, less than {REQUIRED_SHARE:.0%}.", file=sys.stderr)
    return int(reached < REQUIRED_SHARE)


def describe(model: PreTrainedModel) -> str:
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.model.named_children()}
    listed = ", ".join(f"{name.replace('_', ' ')} {count / 1e3:.0f}k" for name, count in sizes.items())
    return f"{model.num_parameters() / 1e6:.2f}M parameters ({listed});"


def question(row: ChatRow) -> str:
    return turn_text(row.prompt[-1])


def train(
    model: PreTrainedModel, processor: MMProcessor, rows: Sequence[ChatRow], options: argparse.Namespace
) -> None:
    """Train a model. Media are processed once and encoded in every step."""
    data = [encode_conversation(processor, row.messages) for row in tqdm(rows, desc="processing")]
    arguments = TrainingArguments(
        output_dir=str(options.output / "training"),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(40, options.steps // 10),
        adam_beta2=0.98,
        logging_steps=10,
        save_strategy="no",
        seed=options.seed,
        use_cpu=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=processor.pad)
    LossProgressCallback.take_over(trainer)
    trainer.train()


def examples_table(rows: Sequence[ChatRow], answers: Sequence[str], kinds: Sequence[str], each: int = 3) -> str:
    """Return a table of questions, answers and truths: `each` of a kind at equal distances, right or wrong."""
    cells = []
    for kind in dict.fromkeys(kinds):
        indices = [i for i, other in enumerate(kinds) if other == kind]
        for i in indices[:: -(-len(indices) // each)]:
            files = " + ".join(Path(part["path"]).name for part in media_parts(rows[i].prompt))
            cells.append((files, kind, answers[i], rows[i].answer, "✓" if answers[i] == rows[i].answer else "✗"))
    return format_table(("media", "question", "answer", "truth", ""), cells)


def report(rows: Sequence[ChatRow], answers: Sequence[str], kinds: Sequence[str]) -> float:
    """Print the share of exact answers for each kind of question; return that of all training questions."""
    asked = Counter(kinds)
    exact = Counter(kind for kind, answer, row in zip(kinds, answers, rows, strict=True) if answer == row.answer)
    trained = [kind for kind in asked if kind != NEW_PAIRS]
    for counts in (asked, exact):
        counts[TRAINED] = sum(counts[kind] for kind in trained)
    cells = [(k, f"{exact[k]} of {asked[k]}", f"{exact[k] / asked[k]:.1%}") for k in (*trained, TRAINED, NEW_PAIRS)]
    print(format_table(("question", "exactly right", "share"), cells, right=(1, 2)))
    return exact[TRAINED] / asked[TRAINED]


def draw_attention(
    model: PreTrainedModel,
    processor: MMProcessor,
    training: Sequence[ChatRow],
    new_pairs: Sequence[ChatRow],
    path: Path,
) -> Path:
    """Draw the attention of the longest answer to an image, of the longest to audio, and of a new pair."""
    alone = [[row for row in training if row.task == task] for task in ("image/name", "audio/words")]
    longest = [max(rows, key=lambda row: len(row.answer.split())) for rows in alone]
    bands = [
        read_band(row.prompt, answer_attention(model, processor, row.prompt), row.answer)
        for row in (*longest, new_pairs[0])
    ]
    note = "A tiny model, trained from scratch on a small sample. Cross-attention, mean over heads and blocks."
    return save(draw(bands, "Attention of each word of the answer", note), path)
