# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Models and recipes as the command line names them."""

import torch
from transformers import AutoConfig
from transformers.utils import logging

from .. import MMConfig, MMForConditionalGeneration, MMProcessor
from .checks import check_model


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
) -> tuple[MMForConditionalGeneration, MMProcessor]:
    """
    Load a joint model that writes, in evaluation mode, and its processor.

    Args:
        name: folder or Hub id
        device: by default a GPU if there is one
        dtype: by default that of the checkpoint on a GPU, and float32 on a CPU, where it is faster
        attention: implementation of attention, such as `eager`

    Raises:
        ValueError: if the device does not exist here, or if the model classifies.
    """
    logging.disable_progress_bar()
    try:
        place = torch.empty(0, device=device or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
    architectures = load_config(name).architectures or []
    if any("Classification" in architecture for architecture in architectures):
        raise ValueError(f"{name} is a {architectures[0]}, which writes no answers.")
    dtype = dtype or ("auto" if place.type == "cuda" else "float32")
    model = MMForConditionalGeneration.from_pretrained(name, dtype=dtype, attn_implementation=attention)
    return model.to(place).eval(), MMProcessor.from_pretrained(name)
