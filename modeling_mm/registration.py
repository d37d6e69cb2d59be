# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Makes the Auto classes of transformers know ours, without importing anything before it is needed.

`import modeling_mm` must stay cheap, but to register a class means to import it, and torch with it. transformers
itself keeps tables of names, and imports `transformers.models.<model type>` when a name is asked for. So do we: our
names go into those tables, and our package, whose names are lazy too, answers for `transformers.models.mm`. A table
that is not imported yet is filled right after its module has run, by an import finder. Where the tables have been read
already, the classes are registered the usual way.
"""

import importlib
import importlib.abc
import sys

MODEL_TYPE = "mm"
AUTO_PACKAGE = "transformers.models.auto."

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
    },
}


def fill_tables(module) -> None:
    """Puts our names into the tables of a module of `transformers.models.auto`."""
    for table, name in TABLES[module.__name__.removeprefix(AUTO_PACKAGE)].items():
        getattr(module, table)[MODEL_TYPE] = name


class FillTablesAfterImport(importlib.abc.MetaPathFinder):
    """Finds the modules in `TABLES` as the other finders do, and fills their tables once they have run."""

    def find_spec(self, fullname, path, target=None):
        if not fullname.startswith(AUTO_PACKAGE) or fullname.removeprefix(AUTO_PACKAGE) not in TABLES:
            return None
        for finder in sys.meta_path:
            if not is_ours(finder) and (spec := finder.find_spec(fullname, path, target)) is not None:
                execute = spec.loader.exec_module

                def execute_and_fill(module, execute=execute):
                    execute(module)
                    fill_tables(module)

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


def register() -> None:
    """Called once, when the package is imported."""
    if f"{AUTO_PACKAGE}configuration_auto" in sys.modules:
        register_classes()
        return
    sys.modules.setdefault(f"transformers.models.{MODEL_TYPE}", sys.modules[__package__])
    if not any(map(is_ours, sys.meta_path)):
        sys.meta_path.insert(0, FillTablesAfterImport())
