# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Files, tables, spelling and shipped resources."""

from .files import remove_half_files, write_bytes, write_lines, write_text
from .resources import find_resource, list_resources
from .spelling import nearest, suggestion
from .tables import format_table, markdown_table

__all__ = [
    "find_resource",
    "format_table",
    "list_resources",
    "markdown_table",
    "nearest",
    "remove_half_files",
    "suggestion",
    "write_bytes",
    "write_lines",
    "write_text",
]
