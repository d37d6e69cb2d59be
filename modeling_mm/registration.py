# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Registration of our classes with the Auto classes and pipelines of transformers.

Registering a class imports it and torch, so `import modeling_mm` only adds names to two tables that need no torch.
transformers imports a class of that name from `transformers.models.mm` when it is first needed: from this package,
which imports its public names lazily. The first config then registers all classes: no model and no pipeline of ours
exists without one.

The tables exist once transformers is imported, which takes a second and which `modeling-mm --help` does without. Until
then a finder waits for their module.
"""

import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

MODEL_TYPE = "mm"
CODEC_TYPE = "mm_codec"
CONFIGS = {MODEL_TYPE: "MMConfig", CODEC_TYPE: "MMCodecConfig"}
TASK_ALIASES = {"vqa": "visual-question-answering"}
TABLES = "transformers.models.auto.auto_mappings"


def register_names() -> None:
    """Add our names to the tables that `AutoConfig` and `AutoProcessor` read, or see to it that they are added."""
    for model_type in CONFIGS:
        sys.modules.setdefault(f"transformers.models.{model_type}", sys.modules[__package__])
    if tables := sys.modules.get(TABLES):
        add_names(tables)
        if copied_to := sys.modules.get("transformers.models.auto.configuration_auto"):
            copied_to.CONFIG_MAPPING_NAMES.update(CONFIGS)  # it copies the table when imported
    elif TablesFinder not in sys.meta_path:
        sys.meta_path.insert(0, TablesFinder)


def add_names(tables: ModuleType) -> None:
    """Add our names to transformers' tables."""
    tables.PROCESSOR_MAPPING_NAMES[MODEL_TYPE] = "MMProcessor"
    tables.CONFIG_MAPPING_NAMES.update(CONFIGS)


class TablesFinder(PathFinder):
    """Finder of the one module that holds the tables; our names are in them before anybody reads them."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != TABLES:
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = TablesLoader(fullname, spec.origin)
        return spec


class TablesLoader(SourceFileLoader):
    """Loader that adds our names right after the module has made its tables."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        add_names(module)


@cache
def register_classes() -> None:
    """Register config, processor, models and pipelines; called by the first config."""
    import transformers

    from .compat import enter_names, restore_task
    from .configuration_codec import MMCodecConfig
    from .configuration_mm import AUTO_MAP, MODEL_CLASSES, PIPELINES, MMConfig

    transformers.AutoConfig.register(MODEL_TYPE, MMConfig, exist_ok=True)
    transformers.AutoConfig.register(CODEC_TYPE, MMCodecConfig, exist_ok=True)
    transformers.AutoModel.register(MMCodecConfig, load("modeling_codec.MMCodec"), exist_ok=True)
    for auto_name, path in AUTO_MAP.items():
        auto_class, our_class = getattr(transformers, auto_name), load(path)
        if auto_name != "AutoConfig":
            auto_class.register(MMConfig, our_class, exist_ok=True)
    enter_names(MODEL_TYPE, MODEL_CLASSES)
    registry = transformers.pipelines.PIPELINE_REGISTRY
    for task, (path, auto_name) in PIPELINES.items():
        new = {"pt": (getattr(transformers, auto_name),), "default": {}, "type": "multimodal"}
        registry.supported_tasks.setdefault(task, new)["impl"] = load(path)
    registry.task_aliases.update(TASK_ALIASES)
    for task in (*PIPELINES, *TASK_ALIASES):
        restore_task(task)


def load(path: str) -> Any:
    """Import `module.name` of this package."""
    module, _, name = path.partition(".")
    return getattr(import_module(f".{module}", __package__), name)
