"""Teach a tiny model to see and hear, in minutes on two CPU cores, from the sample in this repository alone.

    python -m scripts.pocket.demo_train --help
    python -m scripts.pocket.demo_train                              # everything; results go to outputs/demo-train
    python -m scripts.pocket.demo_train --steps 50 --output /tmp/d   # a quick look; it will answer badly

Three small parts with random weights (a ResNet that sees, a Whisper encoder that hears, a GPT-2 that speaks) are
joined into one model, which the stock `Trainer` trains end to end on questions about the sample's pictures and sounds.
It is saved, loaded back with `Auto*` classes, and asked every question it was trained on, and besides about pairs of
picture and sound that it was not trained on. The script fails if it gets less than 90 % of the former exactly right.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

# Read when torch and transformers are imported: nothing is fetched, and waiting threads leave the cores to others.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import logging

from modeling_mm import MMProcessor
from modeling_mm.evaluation import generate_answers
from modeling_mm.explain import answer_attention, draw, read_band, save
from modeling_mm.training import LossProgressCallback, encode_conversation
from modeling_mm.utils.tables import format_table

from .from_scratch import small_model, small_processor
from .sample import ChatSample, training_and_new_pairs

REQUIRED_SHARE = 0.9
LEARNED = "All that it was trained on"
NEW_PAIRS = "... of pairs never trained on"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    start = time.perf_counter()
    logging.disable_progress_bar()  # of loading and saving; training and answering keep theirs
    print(__doc__.split("\n\n")[0], "\n")
    print("It is trained from scratch and learns its own sample by heart: this shows the machinery, not knowledge.\n")
    training, new_pairs = training_and_new_pairs()
    processor = small_processor(text for sample in training for text in (sample.question, sample.answer))
    model = small_model(processor, options.seed)
    print(describe(model), f"{len(training)} questions to learn.\n")
    train(model, processor, training, options)
    folder = options.output / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager")
    print(f"Saved to {folder} and loaded back. Asking it everything:\n")
    asked = [*training, *new_pairs]
    answers = generate_answers(model, processor, [sample.prompt() for sample in asked], progress="answering")
    kinds = [sample.question for sample in training] + [NEW_PAIRS] * len(new_pairs)
    print(examples_table(asked, answers, kinds))
    reached = report(asked, answers, kinds)
    drawing = draw_attention(model, processor, training, new_pairs, options.output / "attention.png")
    print(f"Where each word looked: {drawing}\n{time.perf_counter() - start:.0f} s in all.")
    if reached < REQUIRED_SHARE:
        print(f"Only {reached:.1%} were answered exactly, less than {REQUIRED_SHARE:.0%}.", file=sys.stderr)
    return int(reached < REQUIRED_SHARE)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/demo-train"), help="folder for model and picture")
    parser.add_argument("--steps", type=int, default=800, help="training steps (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="questions a step (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="its peak (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order (default: %(default)s)")
    return parser.parse_args(arguments)


def describe(model: PreTrainedModel) -> str:
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.model.named_children()}
    listed = ", ".join(f"{name.replace('_', ' ')} {count / 1e3:.0f}k" for name, count in parts.items())
    return f"{model.num_parameters() / 1e6:.2f}M parameters ({listed});"


def train(model: PreTrainedModel, processor: MMProcessor, samples: list[ChatSample], options) -> None:
    """Pictures and sounds go through the processor once, and through the encoders at every step."""
    rows = [encode_conversation(processor, sample.messages()) for sample in tqdm(samples, desc="processing")]
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
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=processor.pad)
    LossProgressCallback.take_over(trainer)
    trainer.train()


def examples_table(samples: list[ChatSample], answers: list[str], kinds: list[str], each: int = 3) -> str:
    """Question, answer and truth side by side: some of each kind, evenly picked, whether answered well or badly."""
    rows = []
    for kind in dict.fromkeys(kinds):
        indices = [i for i, other in enumerate(kinds) if other == kind]
        for i in indices[:: -(-len(indices) // each)]:
            mark = "✓" if answers[i] == samples[i].answer else "✗"
            rows.append((samples[i].about, kind, answers[i], samples[i].answer, mark))
    return format_table(("about", "question", "answer", "truth", ""), rows)


def report(samples: list[ChatSample], answers: list[str], kinds: list[str]) -> float:
    """Print the share of exact answers for each kind of question; return that of all that it was trained on."""
    asked = Counter(kinds)
    exact = Counter(k for k, answer, sample in zip(kinds, answers, samples, strict=True) if answer == sample.answer)
    learned = [kind for kind in asked if kind != NEW_PAIRS]
    for counts in (asked, exact):
        counts[LEARNED] = sum(counts[kind] for kind in learned)
    rows = [(k, f"{exact[k]} of {asked[k]}", f"{exact[k] / asked[k]:.1%}") for k in (*learned, LEARNED, NEW_PAIRS)]
    print(format_table(("question", "exactly right", "share"), rows, right=(1, 2)))
    return exact[LEARNED] / asked[LEARNED]


def draw_attention(model, processor, training: list[ChatSample], new_pairs: list[ChatSample], path: Path) -> Path:
    """Draws the longest picture name, the longest saying, and a new pair."""
    alone = ([s for s in training if s.audio is None], [s for s in training if s.image is None])
    longest = [max(samples, key=lambda sample: len(sample.answer.split())) for samples in alone]
    bands = [
        read_band(s.prompt(), answer_attention(model, processor, s.prompt()), s.answer)
        for s in (*longest, new_pairs[0])
    ]
    note = "A tiny model, trained from scratch on its own sample. Cross-attention, mean over heads and blocks."
    return save(draw(bands, "What each word of the answer looked at", note), path)


if __name__ == "__main__":
    sys.exit(main())
