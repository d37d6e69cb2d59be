# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm index`: build an index of a folder or dataset, search it, recommend from it, delete rows."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..modalities import MODALITIES
from ..search import Embedder, Hit, Index, Item, Processes, build_index, read_manifest, results_page
from ..utils.files import write_text
from ..utils.tables import format_table
from .checks import check_model
from .loading import EMBEDDING, load_model

MOST_REASONS = 5  # lines on items that were skipped


def run(options: Namespace) -> None:
    """Run an action."""
    ACTIONS[options.action](options)


def build(options: Namespace) -> None:
    """Build an index, and print what has changed, what was skipped, and what was left out."""
    processes = Processes()
    report = build_index(
        options.source,
        options.out,
        Embedder(*load_model(options.model, options.device or processes.device, heads=EMBEDDING)),
        store=options.store,
        index_type=options.index_type,
        split=options.split,
        name=options.name,
        limit=options.limit,
        batch_size=options.batch_size,
    )
    if not processes.is_main:
        return
    print(f"{options.out}: {report}")
    for each in report.skipped[:MOST_REASONS]:
        print(f"skipped: {each.reason}")
    if len(report.skipped) > MOST_REASONS:
        print(f"skipped: {len(report.skipped) - MOST_REASONS} more, in {Path(options.out, 'skipped.jsonl')}")
    for what, count in report.left_out.items():
        print(f"left out: {what} ({count})")


def search(options: Namespace) -> None:
    """Print the rows that are most alike to a query."""
    media = {name: [getattr(options, name)] for name in MODALITIES if getattr(options, name)}
    name = options.model or read_manifest(Path(options.index)).model
    if not options.model:
        check_model(name)
    query = Item(options.text or "", media, where="The query")
    with Index(options.index, Embedder(*load_model(name, options.device, heads=EMBEDDING))) as index:
        note_pending(index)
        show(index.search(query, options.top, options.where), options, options.text or "", media)


def recommend(options: Namespace) -> None:
    """Print rows that are alike to some rows and unlike others."""
    with Index(options.index) as index:
        note_pending(index)
        title = f"like {', '.join(options.like)}" + (f", unlike {', '.join(options.unlike)}" if options.unlike else "")
        show(index.recommend(options.like, options.unlike, options.top, options.where), options, title)


def delete(options: Namespace) -> None:
    """Delete rows, and print the number of those that were there."""
    with Index(options.index) as index:
        deleted = index.delete(options.ids)
        print(f"{options.index}: {deleted} of {len(options.ids)} rows deleted, {len(index)} left.")


def note_pending(index: Index) -> None:
    if index.pending:
        print("An update of the index was interrupted; these are its rows of before.", file=sys.stderr)


def show(
    hits: Sequence[Hit], options: Namespace, title: str, media: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Print hits as a table or as JSON lines, and write them to a page, with the text and the media of the query."""
    if options.page:
        write_text(Path(options.page), results_page(title, media or {}, hits))
        print(f"Page: {options.page}", file=sys.stderr)
    if options.json:
        for hit in hits:
            print(json.dumps(as_json(hit), ensure_ascii=False))
        return
    if not hits:
        print("No row meets the conditions.")
        return
    header = ("score", "id", "kind", "text", "metadata")
    rows = [(f"{hit.score:.3f}", hit.row.id, hit.row.kind, one_line(hit.row.text), noted(hit)) for hit in hits]
    print(format_table(header, rows, right=(0,)))


def as_json(hit: Hit) -> dict[str, Any]:
    row = hit.row
    values = {"id": row.id, "kind": row.kind, "text": row.text, "media": dict(row.media), "source": row.source}
    return {"score": hit.score, **values, "metadata": dict(row.metadata)}


def one_line(text: str) -> str:
    return " ".join(text.split())


def noted(hit: Hit) -> str:
    """Return the metadata of a row in one line."""
    return ", ".join(f"{name}={value}" for name, value in hit.row.metadata.items() if value is not None)


ACTIONS: dict[str, Callable[[Namespace], None]] = {
    "build": build,
    "search": search,
    "recommend": recommend,
    "delete": delete,
}
