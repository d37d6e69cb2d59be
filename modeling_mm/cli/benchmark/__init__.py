# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
`modeling-mm benchmark`: speed and memory side by side with a named peer, with random weights.

Both run in one process and in turn (A B A B ...), so that the median of the pairwise ratios holds when the speed of
the machine drifts. A row is a function of a [`Bench`] that yields [`Result`]s; `ROWS` lists them by name.
"""

from .bench import Bench
from .results import Result
from .rows import ROWS, run
from .work import Work

__all__ = ["ROWS", "Bench", "Result", "Work", "run"]
