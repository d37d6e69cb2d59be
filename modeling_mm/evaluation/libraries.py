# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Libraries that only some metrics need, imported when one of these is computed."""

import importlib
from types import ModuleType


def library(module: str, metric: str, extra: str = "train") -> ModuleType:
    """
    Import the library of a metric.

    Raises:
        ImportError: if it is not installed, with the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The metric {metric!r} needs {module.split('.')[0]}, which is not installed: "
            f"pip install modeling_mm[{extra}]"
        ) from error
