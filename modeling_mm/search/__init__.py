# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Search: indexes of texts, images, audio and mixed rows by their embeddings."""

from .building import build_index
from .columns import Condition, parse_conditions
from .embedding import Embedder
from .exact import ExactStore
from .index import Index
from .items import Item, ItemSource, open_items
from .manifest import Manifest, read_manifest
from .milvus import MilvusStore
from .page import results_cards, results_page
from .processes import Processes
from .segments import Row, to_table
from .share import BuildReport, Skipped
from .stores import Hit, Store, default_store

__all__ = [
    "BuildReport",
    "Condition",
    "Embedder",
    "ExactStore",
    "Hit",
    "Index",
    "Item",
    "ItemSource",
    "Manifest",
    "MilvusStore",
    "Processes",
    "Row",
    "Skipped",
    "Store",
    "build_index",
    "default_store",
    "open_items",
    "parse_conditions",
    "read_manifest",
    "results_cards",
    "results_page",
    "to_table",
]
