# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Suggestions for misspelled names."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that is spelled most like `name`, or None if none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for an error message, or an empty text if no known name is close."""
    near = nearest(name, known)
    return f" Did you mean {near!r}?" if near else ""
