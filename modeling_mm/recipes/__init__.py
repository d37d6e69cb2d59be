# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Recipes: schema, building, running, searching."""
