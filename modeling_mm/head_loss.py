# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Loss of the next token from the states before the head, without the logits of all tokens.

The logits are the largest tensor of a training step, and their gradient is as large again. Here both exist for a few
tokens at a time: a chunk's gradient is computed right behind its loss and multiplied into those of the states and of
the table, so the products are the same three as without chunks.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.utils import is_torchdynamo_compiling

from .encoders import is_sharded
from .layers import Head, has_half_kernels
from .losses import at_least_one
from .onednn import multiplies, product

# Shape legend: N learned tokens, n tokens of a chunk, D the decoder's width, V the vocabulary.

CHUNK_BYTES = 2**25  # of a chunk's logits in float32


def takes_states(head: nn.Module, states: torch.Tensor) -> bool:
    """
    Return if the loss can be computed from the states (..., D) before a head.

    Not if the head is wrapped (as PEFT does to train it), watched by hooks, quantized, elsewhere or spread over
    processes, nor in a compiled graph.
    """
    if type(head) is not Head or head.bias is not None or is_torchdynamo_compiling():
        return False
    is_watched = bool(head._forward_hooks or head._forward_pre_hooks or hasattr(head, "_hf_hook"))
    is_here = type(head.weight.data) is torch.Tensor and head.weight.device == states.device
    return is_here and not is_watched and not is_sharded(head)


def head_loss(
    states: torch.Tensor,
    head: nn.Linear,
    targets: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = -100,
    chunk_bytes: int = CHUNK_BYTES,
) -> torch.Tensor:
    """
    Next-token cross-entropy in float32, as [`losses.causal_lm_loss`] of the head's logits.

    The gradient is computed with the loss, so that its backward pass runs once.

    Args:
        states: (..., D) before the head
        head: without a bias; see [`takes_states`]
        targets: (...) of the same tokens, `ignore_index` where nothing is to be learned
        num_items_in_batch: number of targets in the whole batch under gradient accumulation; the mean is over this
            batch's targets when it is not given
        chunk_bytes: of a chunk's logits in float32

    Returns:
        a scalar, float32. Without any target it is zero.

    Raises:
        ValueError: if states and targets are not of the same tokens.
    """
    if targets.shape != states.shape[:-1]:
        raise ValueError(
            f"The targets are of shape {tuple(targets.shape)}, but the states before the head are of "
            f"{tuple(states.shape[:-1])}. Pass a target for each token that logits_to_keep leaves."
        )
    targets = targets.reshape(-1).to(states.device)
    learned = (targets != ignore_index).nonzero()[:, 0]  # (N,)
    states = states.reshape(-1, states.shape[-1])[learned]  # (N, D)
    chunk_tokens = max(1, chunk_bytes // (4 * head.weight.shape[0]))
    total: torch.Tensor = SummedHeadLoss.apply(
        states, head.weight, targets[learned], chunk_tokens, torch.is_grad_enabled()
    )
    count = learned.shape[0] if num_items_in_batch is None else num_items_in_batch
    return total / at_least_one(count, total.device)


class SummedHeadLoss(torch.autograd.Function):
    """Sum of the cross-entropy of tokens, with its gradients for the states and for the table of the head."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        chunk_tokens: int,
        needs_grad: bool,
    ) -> torch.Tensor:
        """Return the sum; states (N, D), weight (V, D), targets (N,)."""
        dtype = product_dtype(states)
        of_states = torch.empty_like(states) if needs_grad and ctx.needs_input_grad[0] else None
        of_weight = None
        if needs_grad and ctx.needs_input_grad[1]:
            of_weight = torch.zeros_like(weight, dtype=torch.float32)  # summed over chunks
        total = torch.zeros((), device=states.device)
        table = weight.to(dtype)
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, states.shape[0], chunk_tokens):
                chunk = slice(start, start + chunk_tokens)
                inputs = states[chunk].to(dtype)  # (n, D)
                scores = matmul(inputs, table.T).float()  # (n, V)
                total += loss_and_gradient(scores, targets[chunk])
                gradient = scores.to(dtype)  # (n, V)
                if of_states is not None:
                    of_states[chunk] = matmul(gradient, table)
                if of_weight is not None and dtype == torch.float32 and not multiplies(gradient.T, inputs):
                    of_weight.addmm_(gradient.T, inputs)
                elif of_weight is not None:
                    of_weight += matmul(gradient.T, inputs)
        ctx.gradients = of_states, None if of_weight is None else of_weight.to(weight.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients, which are handed on without a copy."""
        if ctx.gradients is None:
            raise RuntimeError(
                "The backward pass of a loss with skip_logits=True ran twice, but it keeps its gradients only once. "
                "Call the model again, or with skip_logits=False."
            )
        found = [None if gradient is None else gradient.mul_(scale.to(gradient)) for gradient in ctx.gradients]
        ctx.gradients = None
        return (*found, None, None, None)


def loss_and_gradient(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Return the summed cross-entropy of scores (n, V), float32, and leave its gradient in their place.

    Args:
        targets: (n,)
    """
    place = targets[:, None]
    scores -= scores.amax(-1, keepdim=True)
    of_targets = scores.gather(1, place)  # (n, 1)
    sums = scores.exp_().sum(-1, keepdim=True)  # (n, 1)
    scores /= sums
    scores.scatter_add_(1, place, scores.new_full((1, 1), -1.0).expand_as(place))
    return (sums.log() - of_targets).sum()


def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the product of matrices (N, in) and (in, out) without a gradient, by the quickest kernel."""
    return product(left, right) if multiplies(left, right) else left @ right


def product_dtype(states: torch.Tensor) -> torch.dtype:
    """Return the type in which matrices are multiplied: that of autocast or of the states, if it has kernels."""
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    lacks = device == "cpu" and dtype in (torch.bfloat16, torch.float16) and not has_half_kernels(dtype)
    return torch.float32 if lacks else dtype
