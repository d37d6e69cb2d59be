# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""modeling_mm: a GPT-2-style decoder that reads, sees and hears, at home in transformers."""

from importlib import import_module
from typing import TYPE_CHECKING

from .registration import register_names

__version__ = "0.1.0"

# Public names and the modules that define them, which are imported on first access: they need torch.
_PUBLIC = {
    "MODALITIES": "modalities",
    "Modality": "modalities",
    "MMCodec": "modeling_codec",
    "MMCodecConfig": "configuration_codec",
    "MMConfig": "configuration_mm",
    "MMForConditionalGeneration": "modeling_mm",
    "MMForPreTraining": "pretraining",
    "MMForRetrieval": "retrieval",
    "MMForSequenceClassification": "modeling_mm",
    "MMModel": "modeling_mm",
    "MMPreTrainedModel": "modeling_mm",
    "MMMediaOutput": "outputs",
    "MMProcessor": "processing_mm",
    "register_modality": "modalities",
}

if TYPE_CHECKING:
    from .configuration_codec import MMCodecConfig as MMCodecConfig
    from .configuration_mm import MMConfig as MMConfig
    from .modalities import MODALITIES as MODALITIES
    from .modalities import Modality as Modality
    from .modalities import register_modality as register_modality
    from .modeling_codec import MMCodec as MMCodec
    from .modeling_mm import MMForConditionalGeneration as MMForConditionalGeneration
    from .modeling_mm import MMForSequenceClassification as MMForSequenceClassification
    from .modeling_mm import MMModel as MMModel
    from .modeling_mm import MMPreTrainedModel as MMPreTrainedModel
    from .outputs import MMMediaOutput as MMMediaOutput
    from .pretraining import MMForPreTraining as MMForPreTraining
    from .processing_mm import MMProcessor as MMProcessor
    from .retrieval import MMForRetrieval as MMForRetrieval


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})


register_names()

__all__ = ["__version__", *_PUBLIC]
