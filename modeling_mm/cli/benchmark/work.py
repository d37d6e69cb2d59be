# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The bytes and operations that a task needs, and the time that the machine's measured limits leave for them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...attention import Attention


@dataclass(frozen=True)
class Phase:
    """
    A stretch of work whose reads and operations overlap, such as one decoding step.

    Args:
        bytes: to be moved from or to memory: weights, and keys and values
        operations: multiplications and additions
        times: how often it runs
    """

    bytes: float
    operations: float
    times: int = 1


@dataclass(frozen=True)
class Work:
    """Phases that run one after the other, in a type of numbers."""

    phases: tuple[Phase, ...]
    dtype: torch.dtype = torch.float32

    @property
    def bytes(self) -> float:
        """Bytes of all phases."""
        return sum(phase.bytes * phase.times for phase in self.phases)

    @property
    def operations(self) -> float:
        """Operations of all phases."""
        return sum(phase.operations * phase.times for phase in self.phases)

    def seconds(self, bandwidth: float, rate: float) -> float:
        """Return the least time: each phase moves its bytes at `bandwidth` while it computes at `rate`, a second."""
        return sum(phase.times * max(phase.bytes / bandwidth, phase.operations / rate) for phase in self.phases)


@dataclass(frozen=True)
class Weights:
    """
    Weights of some modules: their bytes, and the operations that one token (one patch, one frame) takes.

    Args:
        bytes: of all parameters and of quantized weights, each counted once
        operations: two for each weight of a matrix
    """

    bytes: float
    operations: float

    def __add__(self, other: "Weights") -> "Weights":
        return Weights(self.bytes + other.bytes, self.operations + other.operations)


def weights_of(*modules: nn.Module, without: tuple[nn.Module, ...] = ()) -> Weights:
    """Return the weights of modules, except those of modules within them."""
    skipped = {id(tensor) for module in without for tensor in module.parameters()}
    tensors = {id(tensor): tensor for module in modules for tensor in module.parameters()}
    kept = [tensor for key, tensor in tensors.items() if key not in skipped]
    size = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    return Weights(size, sum(2.0 * tensor.numel() for tensor in kept if tensor.ndim > 1))


def decoding_work(
    model: Any, rows: int, prompt: int, tokens: int, media_tokens: int = 0, encoder_tokens: int = 0
) -> Work:
    """
    Return the work of encoding media and decoding greedily, of one of our models that write.

    Args:
        rows: B
        prompt: tokens of each row's prompt
        tokens: new tokens of each row
        media_tokens: media tokens a row that the text reads
        encoder_tokens: tokens a row in the encoder; 0 if media are encoded before
    """
    base, decoder = model.base_model, model.base_model.language_model
    attentions = [module for module in decoder.modules() if isinstance(module, Attention)]
    readers = [module for module in attentions if hasattr(module, "q_attn")]
    of_media = tuple(module.c_attn for module in readers)  # run once, over the media
    tables = tuple(table for table in (decoder.wte, decoder.wpe) if table is not None)
    text, head = weights_of(decoder, without=(*tables, *of_media)), weights_of(model.lm_head)
    dtype, width = model.dtype, decoder.wte.embedding_dim
    mean = prompt + tokens / 2
    cached = 2.0 * width * rows * ((len(attentions) - len(readers)) * mean + len(readers) * media_tokens)
    phases = []
    if media_tokens:
        towers = [each for name, each in base.named_children() if name.endswith(("_tower", "_connector"))]
        tower, reader = weights_of(*towers), weights_of(*of_media)
        if encoder_tokens:
            phases.append(Phase(tower.bytes, tower.operations * rows * encoder_tokens))
        phases.append(Phase(reader.bytes, reader.operations * rows * media_tokens))
    phases.append(Phase(text.bytes + head.bytes, rows * (text.operations * prompt + head.operations)))
    step = text + head
    phases.append(
        Phase(step.bytes + cached * dtype.itemsize, step.operations * rows + 2.0 * cached, max(0, tokens - 1))
    )
    return Work(tuple(phases), dtype)
