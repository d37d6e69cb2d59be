# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Model cards, checks and pushes of folders that go to the Hub."""

from .card import CardComponent, CardContent, CardSource, render_card, write_card
from .check import check_card, check_folder, pushed_files
from .emissions import Emissions, estimate
from .push import PushError, push
from .weights import measured_digests, measured_on, weights_digest

__all__ = [
    "CardComponent",
    "CardContent",
    "CardSource",
    "Emissions",
    "PushError",
    "check_card",
    "check_folder",
    "estimate",
    "measured_digests",
    "measured_on",
    "push",
    "pushed_files",
    "render_card",
    "weights_digest",
    "write_card",
]
