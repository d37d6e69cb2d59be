# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The command `modeling-mm`: ask, train, evaluate, serve, app, push, benchmark and info."""

from .main import main

__all__ = ["main"]
