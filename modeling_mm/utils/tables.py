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
    columns = []
    for i, column in enumerate(zip(*cells, strict=True)):
        width = max(map(len, column))
        columns.append([cell.rjust(width) if i in right else cell.ljust(width) for cell in column])
    head, *body = [f"│ {' │ '.join(row)} │" for row in zip(*columns, strict=True)]
    lines = ["─" * (len(column[0]) + 2) for column in columns]
    top, middle, bottom = (left + cross.join(lines) + end for left, cross, end in ("╭┬╮", "├┼┤", "╰┴╯"))
    return "\n".join([top, head, middle, *body, bottom])


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, with escaped bars in cells."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
