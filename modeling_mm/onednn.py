# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Products of float32 matrices by oneDNN, on CPUs for which torch's first choice has no good kernels.

On a CPU torch multiplies float32 matrices by MKL, which has kernels with AVX-512 for processors of Intel alone. On
AMD's, oneDNN, which torch carries too, takes half the time, for one row as for thousands (on two cores of an EPYC
19 ms in place of 41 for 1,500 rows times 768x3072, 0.35 ms in place of 0.54 for one). It is only called where no
graph is captured, nothing is transformed (`torch.func`) and neither side is a subclass of tensors; in training by the
decoder's projections and the loss, whose gradients it multiplies, too. `torch.backends.mkldnn.enabled = False`
switches it off.
"""

import platform
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from transformers.utils import is_torchdynamo_compiling

# Values of a weight, and of it times the rows; with less, a call of oneDNN takes longer than the product.
LEAST_WEIGHT, LEAST_PRODUCT = 2**16, 2**18
CPU_FACTS = Path("/proc/cpuinfo")  # on Linux


@cache
def is_quicker() -> bool:
    """Return whether this CPU is one of AMD with AVX-512, and torch has both libraries."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    facts = CPU_FACTS.read_text(encoding="utf-8") if CPU_FACTS.is_file() else platform.processor()
    return has_both and torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in facts


def is_plain(weight: torch.Tensor) -> bool:
    """Return whether a weight, which is not quantized, is multiplied as it is, and not for a graph."""
    is_traced = torch.jit.is_tracing() or is_torchdynamo_compiling() or torch.is_autocast_enabled("cpu")
    return not is_traced and type(weight.data) is torch.Tensor


def is_plain_inference(weight: torch.Tensor) -> bool:
    """Return whether a weight is multiplied so without a gradient."""
    return not torch.is_grad_enabled() and is_plain(weight)


def multiplies(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether [`product`] is the quicker way to multiply states (..., in) by a weight."""
    return (
        weight.dtype == states.dtype == torch.float32
        and weight.numel() >= LEAST_WEIGHT
        and states.numel() // max(1, states.shape[-1]) * weight.numel() >= LEAST_PRODUCT
        and is_quicker()
        and type(states) is torch.Tensor
        and weight.device.type == states.device.type == "cpu"
        and bool(torch.backends.mkldnn.enabled)
        and is_plain(weight)
        and not is_transformed()
    )


def is_transformed() -> bool:
    """Return whether gradients are those of `torch.func`, or of forward mode."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


class Product(torch.autograd.Function):
    """Product of matrices (N, in) and (in, out), plus a bias (out,) or `None`, whose gradients are products too."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        of_states, of_weight = ctx.needs_input_grad[:2]
        # A frozen weight needs no states, which would stay in memory.
        ctx.save_for_backward(states if of_weight else None, weight if of_states else None)
        return onednn_linear(states, weight.t(), bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        of_states, of_weight, of_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if of_states else None,
            product(states.t(), gradient) if of_weight else None,  # (in, out)
            gradient.sum(0) if of_bias else None,
        )


def product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return states (..., in) times a weight (in, out), which need not be contiguous, plus a bias, with gradients."""
    if not torch.is_grad_enabled():
        return onednn_linear(states, weight.t(), bias)
    rows = states.reshape(-1, weight.shape[0])  # (N, in)
    return Product.apply(rows, weight, bias).view(*states.shape[:-1], weight.shape[1])


def onednn_linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return states (..., in) times a weight (out, in), which need not be contiguous, plus the bias."""
    return torch.ops.mkldnn._linear_pointwise.default(states, weight, bias, "none", [], "")


class QuickLinear(TorchFunctionMode):
    """A context in which linear layers of any module, such as an encoder, go through oneDNN if that is quicker."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear and not kwargs and not torch.is_grad_enabled() and multiplies(*args[:2]):
            return onednn_linear(*args)
        return func(*args, **(kwargs or {}))


def quick_linear() -> AbstractContextManager[Any]:
    """Return the context for modules of others without a gradient, or one that does nothing where it gains nothing."""
    is_idle = is_torchdynamo_compiling() or torch.jit.is_tracing() or not is_quicker()
    return nullcontext() if is_idle else QuickLinear()
