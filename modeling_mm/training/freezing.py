# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Parts of a joint model, which are frozen, thawed and given learning rates apart."""

import re
from collections.abc import Iterable

import torch
from torch import nn

from ..cross_attention import CROSS_ATTENTION
from ..modalities import BUILT_IN, MODALITIES

NamedParameters = list[tuple[str, nn.Parameter]]

# What tells a part by a parameter's name, tried in this order. It holds inside any wrapper (PEFT, DDP). Every other
# parameter, the head included, belongs to the text.
ENCODER = re.compile(r"(\w+)_tower\.")
MARKS = {"connectors": re.compile(r"\w+_connector\."), "cross_attention": CROSS_ATTENTION}
CODEC = re.compile(r"(^|\.)\w+_codec\.")
ENCODERS = tuple(MODALITIES[name].tower for name in BUILT_IN)
PARTS = ("text", "cross_attention", "connectors", *ENCODERS)


def part_names() -> tuple[str, ...]:
    """Return `PARTS` and the encoders of modalities that a user has registered."""
    return tuple(dict.fromkeys((*PARTS, *(modality.tower for modality in MODALITIES.values()))))


def part_of(name: str) -> str:
    """Return the part of a parameter, by its name in the model."""
    if encoder := ENCODER.search(name):
        return encoder[1]
    return next((part for part, mark in MARKS.items() if mark.search(name)), "text")


def parts_of(model: nn.Module) -> dict[str, NamedParameters]:
    """
    Return the named parameters of a model by part.

    The parts are `text` (decoder and head), `cross_attention`, `connectors` and the encoders by their tower: `vision`,
    `audio` and those of registered modalities. Codecs, which never learn, are in none.

    Returns:
        Every part of `part_names`, in this order. A part that the model lacks is empty. A tied parameter occurs once.
    """
    parts: dict[str, NamedParameters] = {part: [] for part in part_names()}
    for name, parameter in model.named_parameters():
        if CODEC.search(name):
            continue
        parts[part_of(name)].append((name, parameter))
    return parts


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """
    Replace each gradient by its mean over all processes.

    For parameters that DDP does not average because they were frozen when it wrapped the model. Every process must
    call it with the same parameters.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= torch.distributed.get_world_size()


def frozen_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if not parameter.requires_grad]
