# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""A web page that searches an index by words, an image or audio, alone or as a tab."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..search import Index, Item, results_cards
from ..search.columns import FILTERED
from .conversation import modality_of
from .introduction import modalities_of

ROWS, MOST_ROWS = 12, 100  # shown


def build_search_page(index: Index, title: str) -> gr.Blocks:
    """
    Return a page that searches an index: a query, conditions, and the rows that are found.

    A query that cannot be searched by stays in its box, and the page says the reason.

    Args:
        index: opened with its model, of which the page offers the modalities
    """
    assert index.embedder is not None, "queries are embedded"
    kinds = modalities_of(index.embedder.processor)
    columns = {**FILTERED, **index.manifest.columns}

    def search(query: dict[str, Any] | None, conditions: str | None, rows: int) -> str:
        """Return the rows as HTML; Gradio gives None for a part of the page that nobody has touched."""
        try:
            where = [line for line in (conditions or "").splitlines() if line.strip()]
            return results_cards(index.search(item_of(query or {}), int(rows), where))
        except (ValueError, OSError) as error:
            # The page takes a message for HTML.
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error

    with gr.Blocks(title=title) as page:
        gr.Markdown(f"# {title}\n{summary_of(index)}")
        query = gr.MultimodalTextbox(
            label="Search by",
            placeholder=" or ".join(["words", *kinds]),
            sources=[*(["upload"] if kinds else []), *(["microphone"] if "audio" in kinds else [])],
            file_types=kinds,
            file_count="multiple",
            max_plain_text_length=1_000_000,  # longer texts would become files
            elem_id="query",
        )
        with gr.Accordion("Conditions", open=False):
            conditions = gr.Textbox(
                label="Conditions that a row must meet, one a line",
                info=f"columns: {', '.join(f'{name} ({kind})' for name, kind in columns.items())}",
                placeholder="kind = image",
                lines=2,
                elem_id="conditions",
            )
            rows = gr.Slider(1, MOST_ROWS, ROWS, step=1, label="Rows", elem_id="rows")
        found = gr.HTML(elem_id="found")
        query.submit(search, [query, conditions, rows], found, api_name="search", concurrency_limit=1)
    return page


def join_pages(pages: Mapping[str, gr.Blocks], title: str) -> gr.Blocks:
    """Return pages as the tabs of one, by their names."""
    with gr.Blocks(title=title) as joined:
        for name, page in pages.items():
            with gr.Tab(name):
                page.render()
    return joined


def item_of(query: dict[str, Any]) -> Item:
    """Return a message of the query's box as an item; the box takes files of `file_types` alone."""
    media: dict[str, list[Any]] = {}
    for file in map(Path, query.get("files", ())):
        # With its bytes, so that messages have its name and not its place on the server.
        media.setdefault(modality_of(str(file)), []).append({"bytes": file.read_bytes(), "path": file.name})
    return Item(query.get("text", ""), media, where="The query")


def summary_of(index: Index) -> str:
    """Return a sentence on an index, and a note if an update of it was interrupted."""
    note = " An update of the index was interrupted; these are its rows of before." if index.pending else ""
    return f"{len(index)} rows, embedded by {Path(index.manifest.model).name}.{note}"
