# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Models and recipes as the command line names them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from transformers import AutoConfig
from transformers.utils import logging

from .. import (
    MMConfig,
    MMForConditionalGeneration,
    MMForPreTraining,
    MMForRetrieval,
    MMForSequenceClassification,
    MMProcessor,
)
from ..folders import check_processor_files
from .checks import check_model

# Errors of transformers for values that a file must not hold.
BROKEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, StrictDataclassError, TemplateError)
PROCESSOR_FILES = ("tokenizer.json", "tokenizer_config.json", "processor_config.json")
ANSWERING = (MMForConditionalGeneration, MMForSequenceClassification)
MEASURED = (*ANSWERING, MMForRetrieval, MMForPreTraining)
EMBEDDING = (MMForRetrieval,)
# Commands for a class that the one at hand is not for.
INSTEAD = {MMForRetrieval.__name__: " Use `ask --match`, `index` or `evaluate` for it."}


def load_config(name: str) -> MMConfig:
    """
    Load the configuration of a joint model.

    Raises:
        FileNotFoundError: if the name is a path and there is no such folder.
        ValueError: if it is another kind of model.
    """
    check_model(name)
    with naming(name, "config.json"):
        config = AutoConfig.from_pretrained(name)
        if not isinstance(config, MMConfig):
            raise ValueError(f"{name} is a model of type {config.model_type!r}. Expected a joint model, of type 'mm'.")
    return config


@contextmanager
def naming(name: str, *files: str) -> Iterator[None]:
    """Give an error the file of a local folder that it may come from, unless it names one, in one line."""
    where = ", ".join(str(Path(name, file)) for file in files) if Path(name).is_dir() else name
    try:
        yield
    except BROKEN as error:
        message = str(error).strip().splitlines()[-1] if str(error).strip() else ""
        raise ValueError(message if name in message else f"{where}: {type(error).__name__}: {message}") from error
    except ValueError as error:
        if any(file in str(error) for file in files):
            raise
        raise ValueError(f"{where}: {error}") from error


def load_model(
    name: str,
    device: str | None = None,
    dtype: str | None = None,
    attention: str | None = None,
    heads: Sequence[type] = ANSWERING,
) -> tuple[Any, MMProcessor]:
    """
    Load a joint model of the class that its config names, in evaluation mode, and its processor.

    Args:
        name: folder or Hub id
        device: by default a GPU if there is one
        dtype: by default that of the checkpoint on a GPU, and float32 on a CPU, where it is faster
        attention: implementation of attention, such as `eager`
        heads: classes that the command is for

    Raises:
        ValueError: if the device does not exist here, or if the model has no head.
    """
    logging.disable_progress_bar()
    try:
        place = torch.empty(0, device=device or ("cuda" if torch.cuda.is_available() else "cpu")).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
    config = load_config(name)
    dtype = dtype or ("auto" if place.type == "cuda" else "float32")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what its warnings say about weights is an error here
    try:
        with naming(name, "config.json"):
            model_class: Any = class_of(name, config, heads)
            model = model_class.from_pretrained(name, dtype=dtype, attn_implementation=attention)
    finally:
        logging.set_verbosity(verbosity)
    return model.to(place).eval(), load_processor(name, config)


def load_processor(name: str, config: MMConfig) -> MMProcessor:
    """
    Load the processor of a model.

    Raises:
        ValueError: if a file is missing or damaged, or a modality of the model has no part of the processor.
    """
    if Path(name).is_dir():
        if missing := [file for file in PROCESSOR_FILES if not Path(name, file).exists()]:
            raise ValueError(
                f"{Path(name, missing[0])}: missing or unreadable. Save the processor into the folder again."
            )
        check_processor_files(name)
    with naming(name, *PROCESSOR_FILES):
        processor = MMProcessor.from_pretrained(name)
        for modality in config.modalities:
            if getattr(processor, modality.processor, None) is None:
                raise ValueError(
                    f"the model has an encoder for {modality.plural}, but the processor no {modality.processor}."
                )
    with naming(name, "chat_template.jinja"):
        processor.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
    return processor


def class_of(name: str, config: MMConfig, heads: Sequence[type] = ANSWERING) -> type:
    """
    Return the class of a model's checkpoint, one of `heads`; by default one that writes.

    Raises:
        ValueError: for another class, such as one without a head or of another package.
    """
    if not isinstance(config.architectures or [], list):
        raise ValueError(f"architectures must be a list of names, got {config.architectures!r}.")
    # A pre-trained folder holds every head that a command is for.
    known = {MMForPreTraining.__name__: heads[0]} | {each.__name__: each for each in heads}
    for architecture in config.architectures or ():
        if architecture not in known:
            raise ValueError(
                f"{name} is a {architecture}. This command is for {' or '.join(each.__name__ for each in heads)}."
                + INSTEAD.get(architecture, "")
            )
        return known[architecture]
    return MMForConditionalGeneration


def check_writes(name: str, config: MMConfig) -> None:
    """Raise a ValueError if a model does not write answers."""
    if class_of(name, config) is not MMForConditionalGeneration:
        raise ValueError(f"{name} is a classifier, which writes no answers. Use `modeling-mm ask` or `evaluate`.")
