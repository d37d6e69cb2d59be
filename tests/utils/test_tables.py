"""Tables of plain text."""

import pytest

from modeling_mm.utils import format_table


def test_tables_line_up_and_cut_long_cells() -> None:
    table = format_table(("name", "count"), [("cat", 7), ("a very long name", 12)], right=(1,), widest=8)
    assert table.splitlines() == [
        "╭──────────┬───────╮",
        "│ name     │ count │",
        "├──────────┼───────┤",
        "│ cat      │     7 │",
        "│ a very … │    12 │",
        "╰──────────┴───────╯",
    ]
    with pytest.raises(ValueError, match="Row 1 of the table has 1 cells, the header 2"):
        format_table(("a", "b"), [("c",)])
