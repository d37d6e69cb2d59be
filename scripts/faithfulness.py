#!/usr/bin/env python
# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Measure how faithful each method of explaining is for a model: deletion and insertion curves.

    python scripts/faithfulness.py model_cards/mm-pocket processing/corpora/unseen/questions.jsonl

The places with the greatest weight are deleted first, or inserted first into blank media. If an answer depends on
them, its probability falls fast (a low area under deletion) and rises fast (a high area under insertion). Weights
drawn at random are the last row: a method must beat them. Rows without media are left out.
"""

import argparse
import sys

METHODS = ("attention", "gradient-attention", "integrated-gradients", "occlusion")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a joint model")
    parser.add_argument("questions", metavar="JSONL", help="chats whose answers are explained")
    parser.add_argument("--limit", type=int, help="number of questions (default: all)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="(default: all)")
    parser.add_argument("--points", type=int, default=10, help="steps of a curve (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="write the table here too")
    return parser.parse_args()


def main() -> int:
    options = parse()
    from transformers import AutoConfig, AutoProcessor

    import modeling_mm
    from modeling_mm.data import load_chats, media_parts
    from modeling_mm.explain import compare_methods, methods_markdown
    from modeling_mm.utils import write_text

    config = AutoConfig.from_pretrained(options.model)
    model_class = getattr(modeling_mm, config.architectures[0])
    # Attention that keeps its weights, in float32, which is faster on a CPU.
    model = model_class.from_pretrained(options.model, attn_implementation="eager", dtype="float32").eval()
    chats = load_chats(options.questions, limit=options.limit)
    rows = [row for row in chats if media_parts(row.prompt)]
    figures = compare_methods(
        model,
        AutoProcessor.from_pretrained(options.model),
        rows,
        options.methods,
        options.points,
        progress="explaining",
    )
    table = methods_markdown(figures)
    print(f"{options.model}: {len(rows)} questions of {options.questions}\n\n{table}")
    if options.out:
        write_text(options.out, table + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
