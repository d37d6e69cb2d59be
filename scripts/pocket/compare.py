# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Compare cross-attention with its alternatives: train our model and the others alike, on the same captions.

    python -m scripts.pocket.compare                               # six systems, three seeds
    python -m scripts.pocket.compare --systems prefix mlp --seeds 1 --steps 100

Every system starts from the same small pretrained GPT-2, gets the same frozen outputs of the same vision encoder,
learns the same English captions in the same order, and is tested on images of the same things by a hand that is not in
training. Run `scripts.pocket.build_corpus` and `scripts.pocket.build_components` first.

Each run is appended to OUTPUT/runs.jsonl when it ends, and an interrupted comparison resumes. It ends with a table
(also OUTPUT/table.md) and a plot (OUTPUT/plot.png).
"""

import argparse
import dataclasses
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from transformers import AutoModel, GPT2Config
from transformers.utils import logging

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.training import Augmentation, EncoderCache, ImageAugmentation
from modeling_mm.utils import format_table, markdown_table, write_text

from .comparison import Settings, compare, pretrained_decoder
from .comparison_data import dictionary_texts, fill_cache, read_captions
from .comparison_report import HEADER, plot, rows_of
from .comparison_systems import SYSTEMS, Components

# The first view of an augmentation is the unchanged file. Naming that of the recipe shares the cache of its training.
AUGMENTATION = ImageAugmentation(crop=0.3, color=0.4)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings = Settings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)})
    systems = {name: build for name, build in SYSTEMS.items() if matches(name, options.systems)}
    if not systems:
        print(f"compare: no system matches {options.systems}; known are {', '.join(SYSTEMS)}", file=sys.stderr)
        return 2

    processor = MMProcessor.from_pretrained(options.components / "processor")
    vision = AutoModel.from_pretrained(options.components / "vision").eval()
    images = options.corpora / "images"
    # Smaller matrices than GPT-2's start with larger weights, so that the variance of a layer's output is the same.
    spread = 0.02 * (GPT2Config().n_embd / options.width) ** 0.5
    size = {"n_embd": options.width, "n_layer": options.layers, "n_head": options.heads, "initializer_range": spread}
    decoder = pretrained_decoder(
        options.output / f"decoder-{options.layers}x{options.width}",
        lambda: dictionary_texts(options.packages, images, options.column),
        processor,
        size,
        options.pretraining_steps,
        options.pretraining_rate,
    )
    components = Components(decoder, vision, processor)
    train, left_out = read_captions(images, "train", options.column, components, options.longest)
    test, test_left_out = read_captions(images, options.test_split, options.column, components, options.longest)
    print(
        f"{len(train)} training captions ({left_out} longer than {options.longest} tokens are left out), "
        f"{len(test)} test captions ({test_left_out} left out)"
    )
    joined = MMForConditionalGeneration.from_text_vision_audio_pretrained(
        decoder, vision, tokenizer=processor, freeze_vision=True
    )
    cache = EncoderCache(options.cache, joined, processor, Augmentation(AUGMENTATION), dtype=torch.bfloat16)
    fill_cache(cache, [*train, *test])

    results = options.output / "runs.jsonl"
    runs = compare(systems, range(options.seeds), components, cache, train, test, settings, results)
    write_text(options.output / "table.md", markdown_table(HEADER, rows_of(runs)) + "\n")
    plot(runs, options.output / "plot.png")
    print(format_table(HEADER, rows_of(runs), right=range(1, len(HEADER))))
    print(
        f"{settings.steps} steps of {settings.batch_size}, {options.layers} blocks of {options.width}; "
        f"{options.threads} thread(s) of {platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {options.output / 'plot.png'}"
    )
    return 0


def matches(name: str, wanted: Sequence[str]) -> bool:
    """Check if a system is selected by its name or by a substring of it; no selection is all."""
    return not wanted or name in wanted or any(part in name for part in wanted)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--components", type=Path, default=Path("outputs/components"))
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"))
    parser.add_argument("--cache", type=Path, default=Path("outputs/encoder-cache"), help="filled as needed")
    parser.add_argument("--output", type=Path, default=Path("outputs/comparison"))
    parser.add_argument("--systems", nargs="*", default=[], help="names or substrings of them; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--column", default="name_en", help="column with the captions")
    parser.add_argument("--test-split", default="test_hand")
    parser.add_argument("--longest", type=int, default=16, help="longest caption, in tokens")
    parser.add_argument("--width", type=int, default=128, help="n_embd of the decoder")
    parser.add_argument("--layers", type=int, default=4, help="n_layer of the decoder")
    parser.add_argument("--heads", type=int, default=4, help="n_head of the decoder")
    parser.add_argument("--pretraining-steps", type=int, default=200)
    parser.add_argument("--pretraining-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
