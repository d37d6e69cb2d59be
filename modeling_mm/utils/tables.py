# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Tables in plain text."""

from collections.abc import Sequence
from typing import Any


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = (), widest: int = 44
) -> str:
    """
    A table with lines around it, as wide as its cells need.

    Args:
        header: the names of the columns.
        rows: cells; each is shown as `str` shows it, cut to `widest` characters with an ellipsis.
        right: which columns are set flush right, such as numbers.
        widest: the greatest width of a column.

    Raises:
        ValueError: for a row with more or fewer cells than the header.
    """
    cells = [[shorten(str(cell), widest) for cell in row] for row in (header, *rows)]
    for number, row in enumerate(cells):
        if len(row) != len(header):
            raise ValueError(f"Row {number} of the table has {len(row)} cells, the header {len(header)}.")
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        set_cells = (
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "│ " + " │ ".join(set_cells) + " │"

    def rule(left: str, middle: str, end: str) -> str:
        return left + middle.join("─" * (width + 2) for width in widths) + end

    body = [line(row) for row in cells[1:]]
    return "\n".join([rule("╭", "┬", "╮"), line(cells[0]), rule("├", "┼", "┤"), *body, rule("╰", "┴", "╯")])


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a page; bars within cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
