# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Rows that a search has found as HTML with images and players inside it: a part of a page, or a whole one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..evaluation.inline_media import InlineMedia, inline_media
from .stores import Hit

PAGE, CARDS = "results.html.jinja", "cards.html.jinja"


@dataclass(frozen=True)
class Card:
    """A row on the page."""

    name: str
    score: str
    text: str
    media: Sequence[InlineMedia]
    metadata: str


def results_page(title: str, media: Mapping[str, Sequence[str]], hits: Sequence[Hit]) -> str:
    """
    Return a page with a query and the rows that were found, images and audio inside it.

    Texts are escaped, the page has no script, and its policy forbids every request.

    Args:
        title: text of the query
        media: paths of the query's media by modality
        hits: of [`Index.search`]

    Example:
        >>> Path("found.html").write_text(results_page("a dog", {}, index.search(Item("a dog"))), encoding="utf-8")
    """
    return render(PAGE, title=title, query=shown_media(media), cards=cards_of(hits))


def results_cards(hits: Sequence[Hit]) -> str:
    """Return the rows of a page as a part of another one; texts are escaped, and there is no script."""
    return render(CARDS, cards=cards_of(hits))


def render(template: str, **values: object) -> str:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(autoescape=True, undefined=StrictUndefined, loader=loader).get_template(template).render(values)


def cards_of(hits: Sequence[Hit]) -> list[Card]:
    return [
        Card(
            hit.row.id,
            f"{hit.score:.3f}",
            hit.row.text,
            shown_media(hit.row.media),
            ", ".join(f"{name}: {value}" for name, value in hit.row.metadata.items() if value is not None),
        )
        for hit in hits
    ]


def shown_media(media: Mapping[str, Sequence[str]]) -> list[InlineMedia]:
    """Return media as they stand on a page; those that cannot be read as a note."""
    parts = [{"type": name, "path": path} for name, paths in media.items() for path in paths if path]
    return [each for part in parts for each in inline_media(part)]
