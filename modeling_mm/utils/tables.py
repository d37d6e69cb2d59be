# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Tables in plain text."""

from collections.abc import Collection, Sequence
from typing import Any


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], right: Collection[int] = (), widest: int = 44
) -> str:
    """
    Return a table with lines around it.

    Args:
        header: names of the columns
        rows: cells, cut to `widest` characters
        right: numbers of the columns that are flush right
        widest: largest width of a column

    Raises:
        ValueError: if a row has more or fewer cells than the header.

    Example:
        >>> print(format_table(("name", "size"), [("a", 10)], right=(1,)))
        ╭──────┬──────╮
        │ name │ size │
        ├──────┼──────┤
        │ a    │   10 │
        ╰──────┴──────╯
    """
    cells = [[shorten(str(cell), widest) for cell in row] for row in (header, *rows)]
    for number, row in enumerate(cells):
        if len(row) != len(header):
            raise ValueError(f"Row {number} of the table has {len(row)} cells, the header {len(header)}.")
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    ]
    head, *body = ["│ " + " │ ".join(line) + " │" for line in lines]
    top, middle, bottom = (
        left + cross.join("─" * (width + 2) for width in widths) + end for left, cross, end in ("╭┬╮", "├┼┤", "╰┴╯")
    )
    return "\n".join([top, head, middle, *body, bottom])


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, with escaped bars in cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
