# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Entry point of `python -m modeling_mm.cli`, for launchers that take a module."""

import sys

from .main import main

sys.exit(main())
