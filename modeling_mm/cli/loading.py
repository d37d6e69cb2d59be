# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Models and recipes as the command line names them."""

import torch
from transformers import AutoConfig
from transformers.utils import logging

from .. import MMConfig, MMForConditionalGeneration, MMForSequenceClassification, MMProcessor
from .checks import check_model

MODEL_CLASSES = {each.__name__: each for each in (MMForConditionalGeneration, MMForSequenceClassification)}


def load_config(name: str) -> MMConfig:
    """
    Load the configuration of a joint model.

    Raises:
        FileNotFoundError: if the name is a path and there is no such folder.
        ValueError: if it is another kind of model.
    """
    check_model(name)
    config = AutoConfig.from_pretrained(name)
    if not isinstance(config, MMConfig):
        raise ValueError(f"{name} is a model of type {config.model_type!r}. Expected a joint model, of type 'mm'.")
    return config


def load_model(
    name: str, device: str | None = None, dtype: str | None = None, attention: str | None = None
) -> tuple[MMForConditionalGeneration | MMForSequenceClassification, MMProcessor]:
    """
    Load a joint model of the class that its config names, in evaluation mode, and its processor.

    Args:
        name: folder or Hub id
        device: by default a GPU if there is one
        dtype: by default that of the checkpoint on a GPU, and float32 on a CPU, where it is faster
        attention: implementation of attention, such as `eager`

    Raises:
        ValueError: if the device does not exist here, or if the model has no head.
    """
    logging.disable_progress_bar()
    try:
        place = torch.empty(0, device=device or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
    model_class = class_of(name, load_config(name))
    dtype = dtype or ("auto" if place.type == "cuda" else "float32")
    model = model_class.from_pretrained(name, dtype=dtype, attn_implementation=attention)
    return model.to(place).eval(), MMProcessor.from_pretrained(name)


def class_of(name: str, config: MMConfig) -> type[MMForConditionalGeneration | MMForSequenceClassification]:
    """
    Return the class of a model's checkpoint; by default one that writes.

    Raises:
        ValueError: for a class without a head, and for one of another package.
    """
    for architecture in config.architectures or ():
        if architecture not in MODEL_CLASSES:
            raise ValueError(
                f"{name} is a {architecture}, which neither writes nor classifies. Expected "
                f"{' or '.join(MODEL_CLASSES)}."
            )
        return MODEL_CLASSES[architecture]
    return MMForConditionalGeneration


def check_writes(name: str, config: MMConfig) -> None:
    """Raise a ValueError if a model does not write answers."""
    if class_of(name, config) is not MMForConditionalGeneration:
        raise ValueError(f"{name} is a classifier, which writes no answers. Use `modeling-mm ask` or `evaluate`.")
