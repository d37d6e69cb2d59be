# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Small building blocks shared by decoder and connectors, and how every weight of ours starts."""

import math
from functools import cache
from typing import Any

import torch
import transformers.initialization as init
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.pytorch_utils import Conv1D

from .onednn import LEAST_WEIGHT, is_plain_inference, multiplies, product

COLUMNS = 2048  # of a weight, that are converted to float32 at once


class QuickOnCpu:
    """A linear layer that is quick on any CPU: in half precision by [`multiply`], in float32 by [`product`]."""

    weight: torch.Tensor
    bias: Any  # a tensor, or None
    is_turned = False  # the weight is (out, in), as `Linear` has it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return states (..., out) of states (..., in)."""
        if self.weight.dtype != torch.float32 and lacks_kernel(self.weight):
            return multiply(x, self.weight.t() if self.is_turned else self.weight, self.bias)
        # The gradient of a turned weight would be laid out as the weight is not, and be copied.
        is_apt = self.weight.numel() >= LEAST_WEIGHT and not (self.is_turned and torch.is_grad_enabled())
        if is_apt and multiplies(x, self.weight):
            return product(x, self.weight.t() if self.is_turned else self.weight, self.bias)
        return super().forward(x)  # type: ignore[misc]


class Projection(QuickOnCpu, Conv1D):
    """GPT-2's linear layer, with a weight (in, out)."""


class Head(QuickOnCpu, nn.Linear):
    """The linear layer of a language modeling head, with a weight (out, in)."""

    is_turned = True


def range_logits(head: nn.Module, states: torch.Tensor, token_range: tuple[int, int]) -> torch.Tensor:
    """
    Return logits (..., V) of states (..., D), of which only those of a range of tokens are computed; others are -inf.

    A head that is quantized, adapted, offloaded or sharded computes all.
    """
    first, stop = token_range
    if type(head) is not Head or type(head.weight.data) is not torch.Tensor or hasattr(head, "_hf_hook"):
        return head(states)
    weight = head.weight
    rows = weight[first:stop]
    is_half = weight.dtype != torch.float32 and lacks_kernel(weight)
    if is_half:
        part = multiply(states, rows.t())
    else:
        is_quick = not torch.is_grad_enabled() and multiplies(states, rows)
        part = product(states, rows.t()) if is_quick else nn.functional.linear(states, rows)
    logits = part.new_full((*part.shape[:-1], weight.shape[0]), -torch.inf)
    logits[..., first:stop] = part
    return logits


class ResidualProjection(Projection):
    """
    The last projection of a residual branch, a separate class because it starts differently (see `init_weights`).

    Args:
        nf, nx: width out, width in, in GPT-2's order.
        zero: whether it starts at zero, so that the branch adds nothing until it is trained.
    """

    def __init__(self, nf: int, nx: int, zero: bool = False):
        super().__init__(nf, nx)
        self.zero = zero


class TanhGate(nn.Module):
    """`x * tanh(weight)` with one learned scalar that starts at zero: a new branch opens as it learns to be useful."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight.tanh()


class StandIn(nn.Module):
    """
    A learned vector (D,) in place of what cross-attention inside a decoder block would add to a token.

    It is for tokens that see media of a modality that was added later, and none of those that the decoder was trained
    with. Such a decoder is lost without what it has always been given: with neither speech nor a stand-in, Whisper's
    says almost the same behind every text.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, lacking: torch.Tensor | None) -> torch.Tensor:
        """Return the vector for tokens that lack the media, (B, L, 1) bool or `None` if all do; zero for others."""
        return self.weight if lacking is None else self.weight * lacking


class AttentionSink(nn.Module):
    """
    A learned key (D,) beside the media, whose value is zero: a token attends to it that has no use for media.

    A softmax shares out all of a token's attention, so that without a sink it cannot read nothing, nor can it tell by
    how much it reads if media fit it. The key starts at zero, which is one more in the softmax's denominator.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(
        self, keys: torch.Tensor, values: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return keys and values (B, H, S + 1, d) of (B, H, S, d), and the mask (B, 1, L, S + 1), if there is one."""
        rows, heads, _, width = keys.shape
        key = self.weight.view(1, heads, 1, width).expand(rows, -1, -1, -1).to(keys)
        keys = torch.cat([keys, key], dim=2)
        values = torch.cat([values, values.new_zeros(rows, heads, 1, width)], dim=2)
        if attention_mask is not None:
            seen = torch.ones if attention_mask.dtype == torch.bool else torch.zeros  # as it is added to the scores
            column = seen(1, dtype=attention_mask.dtype, device=attention_mask.device)
            attention_mask = torch.cat([attention_mask, column.expand(*attention_mask.shape[:-1], 1)], dim=-1)
        return keys, values, attention_mask


class MLP(nn.Module):
    """GPT-2's feed-forward: `c_fc`, activation, `c_proj`, dropout, with GPT-2's parameter names."""

    def __init__(self, config: GPT2Config, zero_init: bool = False, inner: int | None = None):
        super().__init__()
        inner = inner or config.n_inner or 4 * config.n_embd
        self.c_fc = Projection(inner, config.n_embd)
        self.c_proj = ResidualProjection(config.n_embd, inner, zero=zero_init)
        self.act = activation(config.activation_function)
        self.dropout = config.resid_pdrop

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.c_proj(self.act(self.c_fc(hidden_states)))
        return nn.functional.dropout(hidden_states, self.dropout) if self.training else hidden_states


def activation(name: str) -> nn.Module:
    """
    Return an activation of transformers by its name.

    GPT-2's `gelu_new` spells the tanh approximation of GELU out in eight operations; torch has it as one, equal to
    rounding.
    """
    return ACT2FN["gelu_pytorch_tanh" if name == "gelu_new" else name]


@cache
def has_half_kernels(dtype: torch.dtype) -> bool:
    """Return whether torch multiplies matrices of a half precision by kernels made for this CPU (AVX-512, AMX)."""
    if not torch.backends.mkldnn.is_available():
        return False
    kernels = torch.ops.mkldnn
    return bool(
        kernels._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else kernels._is_mkldnn_fp16_supported()
    )


def lacks_kernel(weight: torch.Tensor) -> bool:
    """Return whether a weight is better multiplied by [`multiply`]: half precision, on a CPU, without a gradient."""
    is_half = weight.dtype in (torch.bfloat16, torch.float16) and weight.device.type == "cpu"
    return is_half and not has_half_kernels(weight.dtype) and is_plain_inference(weight)


def turn_weights(module: nn.Module) -> None:
    """
    Lay the weights of `Conv1D` out in memory as those of `Linear`, column by column, for half precision on a CPU.

    There torch multiplies a single row by them in half the time in float16, and in three quarters of it in bfloat16
    with kernels made for this CPU; without them bfloat16 needs no such layout. Shape, values and names stay, so
    nothing else notices; files hold the usual layout. It is done once.
    """
    for layer in module.modules():
        weight = getattr(layer, "weight", None) if isinstance(layer, Conv1D) else None
        if weight is None or type(weight.data) is not torch.Tensor or weight.device.type != "cpu":
            continue  # quantized, offloaded or elsewhere
        gains = weight.dtype == torch.float16 or (weight.dtype == torch.bfloat16 and has_half_kernels(torch.bfloat16))
        if gains and weight.stride(0) != 1:
            weight.data = weight.data.t().contiguous().t()


def multiply(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """
    Return states (..., in) times a weight (in, out) of half precision, on a CPU without kernels for it.

    There torch's products of matrices are plain loops. A single row is a product of matrix and vector, which has a
    good one; several are multiplied in float32, block by block, so that a converted block stays in the cache of the
    CPU. Sums are then more exact, too.
    """
    rows = states.reshape(-1, weight.shape[0])  # (N, in)
    if rows.shape[0] == 1:
        product = torch.mv(weight.t(), rows[0]) if bias is None else torch.addmv(bias, weight.t(), rows[0])  # (out,)
    else:
        single = rows.float()
        product = torch.cat([single @ block.float() for block in weight.split(COLUMNS, dim=1)], dim=1)  # (N, out)
        product = (product if bias is None else product + bias).to(weight.dtype)
    return product.view(*states.shape[:-1], weight.shape[1])


def sinusoidal_positions(positions: torch.Tensor, width: int) -> torch.Tensor:
    """
    Sine and cosine position encoding of [Attention Is All You Need](https://arxiv.org/abs/1706.03762), float32.

    It is computed where it is used instead of kept in a buffer, which could go stale in a reload and would set a
    greatest length.

    Args:
        positions: any shape (...), integers.
        width: size of the encoding; the first half holds sines, the second half cosines.

    Returns:
        (..., width)
    """
    half = (width + 1) // 2
    frequencies = torch.exp(torch.arange(half, device=positions.device) * (-math.log(10000.0) / half))
    angles = positions[..., None].float() * frequencies  # (..., half)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :width]


def init_weights(module: nn.Module, config: GPT2Config) -> None:
    """
    Initialize a module of this package; encoders are initialized by their own classes.

    | module                        | weight                                    | bias |
    |-------------------------------|-------------------------------------------|------|
    | `Conv1D`, `Linear`, `Conv1d`  | N(0, initializer_range)                   | 0    |
    | `ResidualProjection`          | N(0, initializer_range / sqrt(2 n_layer)) | 0    |
    | `ResidualProjection`, `zero`  | 0                                         | 0    |
    | `Embedding`                   | N(0, initializer_range)                   | -    |
    | `LayerNorm`                   | 1                                         | 0    |
    | `GRU`                         | uniform (Glorot)                          | 0    |
    | `TanhGate`, `StandIn`, `AttentionSink` | 0                                | -    |

    The scaled residual projections are GPT-2's (section 2.3 of its report): the residual stream must not grow with
    depth. Everything goes through `transformers.initialization`, which leaves loaded tensors alone.
    """
    std = config.initializer_range
    if isinstance(module, ResidualProjection):
        residual_std = 0.0 if module.zero else std / math.sqrt(2 * config.n_layer)
        init.normal_(module.weight, mean=0.0, std=residual_std)
        init.zeros_(module.bias)
    elif isinstance(module, (Conv1D, nn.Linear, nn.Conv1d)):
        init.normal_(module.weight, mean=0.0, std=std)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight, mean=0.0, std=std)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, nn.GRU):
        for name, parameter in module.named_parameters():
            if "weight" in name:
                init.xavier_uniform_(parameter)
            else:
                init.zeros_(parameter)
    elif isinstance(module, (TanhGate, StandIn, AttentionSink)):
        init.zeros_(module.weight)
