# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm app`: a web page to chat with a model."""

import os
from argparse import Namespace
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

import gradio as gr

from ..serving.introduction import introduce
from ..serving.page import build_page
from .loading import check_writes, load_config, load_model


def run(options: Namespace) -> None:
    """Show the page until interrupted."""
    check_writes(options.model, load_config(options.model))
    model, processor = load_model(options.model, options.device, attention="eager")  # eager keeps the weights to show
    questions = Path(options.examples) if options.examples else None
    shown = introduce(options.model, model, processor, questions)
    page = build_page(model, processor, options.title or shown.name, options.max_new_tokens, shown)
    # Fonts of this machine: the page requests no other.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page.launch(server_name=options.host, server_port=options.port, theme=theme, footer_links=[], quiet=False)
