# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `compare`: build what is missing, train every system with every seed, write table and plot."""

import argparse
import dataclasses
import platform
import sys
from collections.abc import Sequence

import torch
import transformers
from transformers import AutoModel, GPT2Config
from transformers.utils import logging

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.training import Augmentation, EncoderCache, ImageAugmentation
from modeling_mm.utils import format_table, markdown_table, write_text

from .comparison import compare, pretrained_decoder
from .comparison_data import dictionary_texts, fill_cache, read_captions
from .comparison_report import HEADER, plot, rows_of
from .comparison_settings import Settings
from .comparison_systems import SYSTEMS, Components

# The first view of an augmentation is the unchanged file. Naming that of the recipe shares the cache of its training.
AUGMENTATION = ImageAugmentation(crop=0.3, color=0.4)


def run(options: argparse.Namespace) -> int:
    """Run the comparison; return the exit code, 2 if no system has the given name."""
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
