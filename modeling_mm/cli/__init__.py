# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The command `modeling-mm`: ask, train, evaluate, index, serve, app, push, benchmark and info."""

from .arguments import COMMANDS
from .main import main, parse

__all__ = ["COMMANDS", "main", "parse"]
