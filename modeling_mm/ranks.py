# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Processes that compute together: how many there are, and which of them this one is."""

from torch import distributed


def num_processes() -> int:
    """Return the number of processes that compute together, 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them."""
    return distributed.get_rank() if num_processes() > 1 else 0
