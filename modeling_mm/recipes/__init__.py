# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Recipes: YAML files that say what is trained on what and how; reading, following and searching them."""

from .build import RecipeData, load_data, load_source, make_collator, make_model, make_processor, mixture, rows_of
from .card_content import card_content
from .run import RECIPE_FILE, RESULT_FILE, report, run
from .schema import Alignment, Card, DataSource, Range, Recipe, Search, read_recipe, to_yaml
from .search import search

__all__ = [
    "RECIPE_FILE",
    "RESULT_FILE",
    "Alignment",
    "Card",
    "DataSource",
    "Range",
    "Recipe",
    "RecipeData",
    "Search",
    "card_content",
    "load_data",
    "load_source",
    "make_collator",
    "make_model",
    "make_processor",
    "mixture",
    "read_recipe",
    "report",
    "rows_of",
    "run",
    "search",
    "to_yaml",
]
