# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm app`: a web page to chat with a model, and to search an index."""

import os
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

import gradio as gr

from .. import MMForRetrieval
from ..search import Embedder, Index, read_manifest
from ..serving import build_page, build_search_page, join_pages
from ..serving.introduction import introduce
from .checks import check_model
from .loading import ANSWERING, EMBEDDING, check_writes, class_of, load_config, load_model


def run(options: Namespace) -> None:
    """Show the page until interrupted."""
    pages = dict(make_pages(options))
    page = next(iter(pages.values())) if len(pages) == 1 else join_pages(pages, title_of(options, options.model))
    # Fonts of this machine: the page requests no other.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page.launch(server_name=options.host, server_port=options.port, theme=theme, footer_links=[], quiet=False)


def make_pages(options: Namespace) -> Iterator[tuple[str, gr.Blocks]]:
    """
    Yield a page to chat on and one to search an index on; of a model that embeds the latter alone.

    Raises:
        ValueError: for a classifier, and for a model that embeds without an index.
    """
    config = load_config(options.model)
    embeds = class_of(options.model, config, (*ANSWERING, *EMBEDDING)) is MMForRetrieval
    if embeds and options.index is None:
        raise ValueError(
            f"{options.model} embeds and writes no answers. Add --index INDEX to search an index that it has made."
        )
    if not embeds:
        check_writes(options.model, config)
        yield "Chat", chat_page(options)
    if options.index is not None:
        yield "Search", build_search_page(open_index(options, embeds), title_of(options, options.index))


def chat_page(options: Namespace) -> gr.Blocks:
    model, processor = load_model(options.model, options.device, attention="eager")  # eager keeps the weights to show
    processor.use_codecs(model)
    questions = Path(options.examples) if options.examples else None
    shown = introduce(options.model, model, processor, questions)
    return build_page(model, processor, options.title or shown.name, options.max_new_tokens, shown)


def open_index(options: Namespace, embeds: bool) -> Index:
    """Open the index with the page's model if that embeds, else with the one that the index names."""
    name = options.model if embeds else read_manifest(Path(options.index)).model
    check_model(name)
    return Index(options.index, Embedder(*load_model(name, options.device, heads=EMBEDDING)))


def title_of(options: Namespace, folder: str) -> str:
    return options.title or Path(folder).resolve().name
