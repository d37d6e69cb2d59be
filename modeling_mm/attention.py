# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""One attention class, for text attending to text and for text (or latents) attending to media."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.pytorch_utils import Conv1D

from .layers import ResidualProjection

# Shape legend: B rows, L text tokens, K keys, S media tokens, D width, H heads, d = D / H.

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class Attention(nn.Module):
    """
    Multi-head attention with GPT-2's parameter names, so that GPT-2 checkpoints load into it unchanged.

    Self-attention projects queries, keys and values at once (`c_attn`, 3D). Cross-attention projects queries from the
    text (`q_attn`) and keys and values from the media (`c_attn`, 2D), as `GPT2Attention` does.

    Args:
        config: the decoder's config; widths, heads, dropout, scaling and the attention implementation come from it.
        layer_idx: index of the decoder block; it selects the cache slot and scales the scores where GPT-2 does so.
        is_cross_attention: which of the two this is.
        zero_init: whether the output projection starts at zero.
    """

    def __init__(
        self, config: GPT2Config, layer_idx: int = 0, is_cross_attention: bool = False, zero_init: bool = False
    ):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(
                f"n_embd must be a multiple of n_head, got n_embd={config.n_embd}, n_head={config.n_head}."
            )
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.n_embd // config.n_head
        self.is_causal = not is_cross_attention
        self.scaling = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scaling /= layer_idx + 1
        if is_cross_attention:
            self.q_attn = Conv1D(config.n_embd, config.n_embd)
            self.c_attn = Conv1D(2 * config.n_embd, config.n_embd)
        else:
            self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = ResidualProjection(config.n_embd, config.n_embd, zero=zero_init)
        self.attn_dropout = config.attn_pdrop
        self.resid_dropout = config.resid_pdrop

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, H, L, d)"""
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def keys_and_values(self, media_states: torch.Tensor) -> KeysAndValues:
        """Projects media (B, S, D) to keys and values, (B, H, S, d) each. Cross-attention only."""
        keys, values = self.c_attn(media_states).chunk(2, dim=-1)  # (B, S, D) each
        return self.split_heads(keys), self.split_heads(values)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values=None,
        media: KeysAndValues | None = None,
        implementation: str | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: (B, L, D)
            attention_mask: what the attention implementation takes; for sdpa and eager (B, 1, L, K).
            past_key_values: the text's cache; self-attention only.
            media: keys and values from `keys_and_values`; cross-attention only.
            implementation: overrides the config's attention implementation.

        Returns:
            the output (B, L, D), and the weights (B, H, L, K) where the implementation gives them.
        """
        if media is None:
            query, keys, values = map(self.split_heads, self.c_attn(hidden_states).chunk(3, dim=-1))
            if past_key_values is not None:
                keys, values = past_key_values.update(keys, values, self.layer_idx)
        else:
            query = self.split_heads(self.q_attn(hidden_states))  # (B, H, L, d)
            keys, values = media
        implementation = implementation or self.config._attn_implementation
        if implementation == "sdpa" and attention_mask is None and is_one_query_on_cpu(query):
            attention_function: Callable = weightless_eager_attention
        else:
            attention_function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        output, weights = attention_function(
            self,
            query,
            keys,
            values,
            attention_mask,
            dropout=self.attn_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )  # (B, L, H, d)
        output = output.reshape(*output.shape[:-2], -1).contiguous()  # (B, L, D)
        output = self.c_proj(output)
        if self.training:
            output = nn.functional.dropout(output, self.resid_dropout)
        return output, weights


def is_one_query_on_cpu(query: torch.Tensor) -> bool:
    """
    Decoding asks one query (B, H, 1, d) at a time. The fused CPU kernel is made for many: for one it is two to four
    times slower than two plain products in bfloat16, and no faster in float32 (torch 2.13; 12 heads, 197 keys).
    """
    return query.shape[2] == 1 and query.device.type == "cpu"


def weightless_eager_attention(*args, **kwargs) -> tuple[torch.Tensor, None]:
    """`eager_attention` in place of a fused kernel: it gives no weights either."""
    return eager_attention(*args, **kwargs)[0], None


def eager_attention(
    module: Attention,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Plain attention that returns its weights; the reference for the fused kernels.

    With `reorder_and_upcast_attn` scores and softmax are computed in float32 whatever the model's precision, as
    Mistral's GPT-2 checkpoints were trained.
    """
    if module.config.reorder_and_upcast_attn:
        with torch.autocast(query.device.type, enabled=False):
            scores = (query.float() @ keys.float().transpose(-1, -2)) * scaling
    else:
        scores = (query @ keys.transpose(-1, -2)) * scaling  # (B, H, L, K)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1).to(values.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ values).transpose(1, 2), weights  # (B, L, H, d)
