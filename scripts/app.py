#!/usr/bin/env python
"""A web page for a model: chat about images and audio, see the answer grow, and what each word looked at.

    python scripts/app.py model_cards/mm-pocket
    python scripts/app.py MODEL --port 9000 --host 0.0.0.0     # for other machines, too

It needs the extra: pip install "modeling_mm[app]". Nothing is sent anywhere but to this machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import modeling_mm  # noqa: F401  (its classes are known to Auto* from here on)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        import gradio as gr

        from modeling_mm.serving import build_page
    except ImportError as error:
        print(f'{error}; the page needs the extra: pip install "modeling_mm[app]".', file=sys.stderr)
        return 1
    try:
        processor = AutoProcessor.from_pretrained(options.model)
        # On a CPU float32 is faster than weights in half precision; eager attention gives its weights.
        dtype = "auto" if options.device.startswith("cuda") else torch.float32
        model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=dtype, attn_implementation="eager")
    except (OSError, ValueError) as error:
        print(f"{options.model} cannot be shown: {error}", file=sys.stderr)
        return 1
    page = build_page(model.to(options.device), processor, options.title, options.max_new_tokens)
    # Fonts of this machine: the page asks no other for any.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page.launch(server_name=options.host, server_port=options.port, theme=theme, footer_links=[], quiet=False)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a joint model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument("--device", default=device, help="(default: %(default)s)")
    parser.add_argument("--title", default="modeling_mm", help="of the page (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=48, help="of an answer (default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
