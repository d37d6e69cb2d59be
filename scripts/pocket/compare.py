#!/usr/bin/env python
"""Does cross-attention earn its place? Trains ours and the alternatives alike, and compares them.

    python -m scripts.pocket.compare                               # six systems, three seeds
    python -m scripts.pocket.compare --systems prefix mlp --seeds 1 --steps 100

Every system starts from the same small GPT-2, which is pretrained on text once, sees the same frozen outputs of the
same vision encoder, learns the same English captions in the same order, and is tested on pictures of the same things
drawn by a hand that it has never seen. Needs `build_corpus` and `build_parts` to have run.

Runs are appended to OUTPUT/runs.jsonl as they end, and the same command goes on where it was interrupted. At the end
there are a table (also OUTPUT/table.md) and a plot (OUTPUT/plot.png).
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
from modeling_mm.utils.files import write_text
from modeling_mm.utils.tables import format_table, markdown_table

from .comparison import (
    Settings,
    compare,
    dictionary_texts,
    fill_cache,
    pretrained_decoder,
    read_captions,
)
from .comparison_report import HEADER, plot, rows_of
from .comparison_systems import SYSTEMS, Parts

# The vision encoder's outputs of this augmentation's first view are those of the files as they are; naming it lets the
# comparison share a cache that training with these views has filled.
AUGMENTATION = ImageAugmentation(crop=0.3, color=0.4)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings = Settings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)})
    systems = {name: build for name, build in SYSTEMS.items() if matches(name, options.systems)}
    if not systems:
        print(f"compare.py: no system matches {options.systems}; there are: {', '.join(SYSTEMS)}", file=sys.stderr)
        return 2

    processor = MMProcessor.from_pretrained(options.parts / "processor")
    vision = AutoModel.from_pretrained(options.parts / "vision").eval()
    pictures = options.corpora / "pictures"
    # Matrices that are smaller than those of GPT-2 start wider, so that a layer passes on as much as there.
    spread = 0.02 * (GPT2Config().n_embd / options.width) ** 0.5
    size = {"n_embd": options.width, "n_layer": options.layers, "n_head": options.heads, "initializer_range": spread}
    decoder = pretrained_decoder(
        options.output / f"decoder-{options.layers}x{options.width}",
        lambda: dictionary_texts(options.packages, pictures, options.column),
        processor,
        size,
        options.pretraining_steps,
        options.pretraining_rate,
    )
    parts = Parts(decoder, vision, processor)
    train, left_out = read_captions(pictures, "train", options.column, parts, options.longest)
    test, test_left_out = read_captions(pictures, options.test_split, options.column, parts, options.longest)
    print(
        f"{len(train)} captions to learn ({left_out} longer than {options.longest} tokens are left out), "
        f"{len(test)} to be tested with ({test_left_out} left out)"
    )
    joined = MMForConditionalGeneration.from_text_vision_audio_pretrained(
        decoder, vision, tokenizer=processor, freeze_vision=True
    )
    cache = EncoderCache(options.cache, joined, processor, Augmentation(AUGMENTATION), dtype=torch.bfloat16)
    fill_cache(cache, [*train, *test])

    runs = compare(systems, range(options.seeds), parts, cache, train, test, settings, options.output / "runs.jsonl")
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
    """Whether a system is meant: by its whole name, or by a part of it."""
    return not wanted or name in wanted or any(part in name for part in wanted)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, default=Path("outputs/corpora"))
    parser.add_argument("--parts", type=Path, default=Path("outputs/parts"))
    parser.add_argument("--packages", type=Path, default=Path("outputs/packages"))
    parser.add_argument("--cache", type=Path, default=Path("outputs/encoder-cache"), help="filled where it is empty")
    parser.add_argument("--output", type=Path, default=Path("outputs/comparison"))
    parser.add_argument("--systems", nargs="*", default=[], help="names, or parts of them; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--column", default="name_en", help="the captions")
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
