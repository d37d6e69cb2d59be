# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Makes the Auto classes of transformers know ours, without importing anything before it is needed.

`import modeling_mm` must stay cheap, but to register a class means to import it, and torch with it. transformers
itself keeps tables of names, and imports `transformers.models.<model type>` when a name is asked for. So do we: our
names go into those tables, and our package, whose names are lazy too, answers for `transformers.models.mm`. A table
that is not imported yet is filled right after its module has run, by an import finder. Where the tables have been read
already, the classes are registered the usual way. The table of pipelines is filled in the same manner: with tasks that
transformers 5 no longer has, and with pipelines of ours that hand on every model that is not.
"""

import importlib
import importlib.abc
import sys

MODEL_TYPE = "mm"
AUTO_PACKAGE = "transformers.models.auto."
PIPELINES_PACKAGE = "transformers.pipelines"

# Module of transformers -> its tables of names -> our name.
TABLES = {
    "configuration_auto": {"CONFIG_MAPPING_NAMES": "MMConfig"},
    "processing_auto": {"PROCESSOR_MAPPING_NAMES": "MMProcessor"},
    "modeling_auto": {
        "MODEL_MAPPING_NAMES": "MMModel",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "MMForConditionalGeneration",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "MMForConditionalGeneration",
        "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES": "MMForConditionalGeneration",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "MMForSequenceClassification",
        "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES": "MMForConditionalGeneration",
    },
}
TASK_ALIASES = {"vqa": "visual-question-answering"}


def fill_tables(module) -> None:
    """Puts our names into the tables of a module of `transformers.models.auto`."""
    for table, name in TABLES[module.__name__.removeprefix(AUTO_PACKAGE)].items():
        getattr(module, table)[MODEL_TYPE] = name


def fill_tasks(module) -> None:
    """Puts our pipelines into the registry of `transformers.pipelines`, by their names where it takes names."""
    from .configuration_mm import PIPELINES

    tasks = module.PIPELINE_REGISTRY.supported_tasks
    for task, (impl, auto_name) in PIPELINES.items():
        if task not in tasks:
            auto_class = getattr(importlib.import_module("transformers"), auto_name)
            tasks[task] = {"pt": (auto_class,), "default": {}, "type": "multimodal"}
        name = f"{__package__}.{impl}"
        tasks[task]["impl"] = name if hasattr(module, "_resolve_impl") else load(name)
    module.PIPELINE_REGISTRY.task_aliases.update(TASK_ALIASES)
    for task in (*PIPELINES, *TASK_ALIASES):
        getattr(module, "REMOVED_TASKS", {}).pop(task, None)  # newer versions refuse these before they look them up


def load(name: str):
    """The object of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def find_filler(fullname: str):
    """The function that fills the tables of a module, None where it has none of ours."""
    if fullname == PIPELINES_PACKAGE:
        return fill_tasks
    is_auto = fullname.startswith(AUTO_PACKAGE) and fullname.removeprefix(AUTO_PACKAGE) in TABLES
    return fill_tables if is_auto else None


class FillTablesAfterImport(importlib.abc.MetaPathFinder):
    """Finds the modules that have tables for us as the other finders do, and fills the tables once they have run."""

    def find_spec(self, fullname, path, target=None):
        if (fill := find_filler(fullname)) is None:
            return None
        for finder in sys.meta_path:
            if not is_ours(finder) and (spec := finder.find_spec(fullname, path, target)) is not None:
                execute = spec.loader.exec_module

                def execute_and_fill(module, execute=execute):
                    execute(module)
                    fill(module)

                spec.loader.exec_module = execute_and_fill  # type: ignore[method-assign]
                return spec
        return None


def is_ours(finder) -> bool:
    """By name, because a reload of this module makes the class anew."""
    return type(finder).__name__ == FillTablesAfterImport.__name__


def register_classes() -> None:
    """The usual registration, for a process in which transformers has read its tables already."""
    import transformers

    from .configuration_mm import AUTO_MAP, MMConfig
    from .processing_mm import MMProcessor

    transformers.AutoConfig.register(MODEL_TYPE, MMConfig, exist_ok=True)
    transformers.AutoProcessor.register(MMConfig, MMProcessor, exist_ok=True)
    models = importlib.import_module(".modeling_mm", __package__)
    for auto_name, path in AUTO_MAP.items():
        if auto_name.startswith("AutoModel"):
            model_class = getattr(models, path.split(".")[1])
            getattr(transformers, auto_name).register(MMConfig, model_class, exist_ok=True)
    fill_tables(sys.modules[f"{AUTO_PACKAGE}modeling_auto"])  # pipelines look a model up by its name


def register() -> None:
    """Called once, when the package is imported."""
    if f"{AUTO_PACKAGE}configuration_auto" in sys.modules:
        register_classes()
    else:
        sys.modules.setdefault(f"transformers.models.{MODEL_TYPE}", sys.modules[__package__])
    if PIPELINES_PACKAGE in sys.modules:
        fill_tasks(sys.modules[PIPELINES_PACKAGE])
    if not any(map(is_ours, sys.meta_path)):
        sys.meta_path.insert(0, FillTablesAfterImport())
