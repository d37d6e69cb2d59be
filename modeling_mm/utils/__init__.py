# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Decoding, files, tables, names, checked values and shipped resources."""

from .decoding import IncrementalDecoder
from .files import (
    HALF_FILE,
    folder_beside,
    remove_half_files,
    replace_folder,
    write_bytes,
    write_lines,
    write_text,
)
from .progress import show_progress
from .quiet import quiet_libraries
from .resources import find_resource, list_resources, resource_or_path
from .spelling import nearest, suggestion
from .tables import format_table, markdown_table
from .validation import build, mapping_of
from .yaml_values import apply_override, parse_yaml, read_values, replace_value

__all__ = [
    "HALF_FILE",
    "IncrementalDecoder",
    "apply_override",
    "build",
    "find_resource",
    "folder_beside",
    "format_table",
    "list_resources",
    "mapping_of",
    "markdown_table",
    "nearest",
    "parse_yaml",
    "quiet_libraries",
    "read_values",
    "remove_half_files",
    "replace_folder",
    "replace_value",
    "resource_or_path",
    "show_progress",
    "suggestion",
    "write_bytes",
    "write_lines",
    "write_text",
]
