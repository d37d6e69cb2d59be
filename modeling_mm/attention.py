# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""One attention class, for text attending to text and for text (or latents) attending to media."""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2.configuration_gpt2 import GPT2Config

from .layers import Projection, ResidualProjection

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
        is_cross_attention: whether queries come from the text, and keys and values from media.
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
        self.upcast = config.reorder_and_upcast_attn
        self.scaling = self.head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scaling /= layer_idx + 1
        if is_cross_attention:
            self.q_attn = Projection(config.n_embd, config.n_embd)
            self.c_attn = Projection(2 * config.n_embd, config.n_embd)
        else:
            self.c_attn = Projection(3 * config.n_embd, config.n_embd)
        self.c_proj = ResidualProjection(config.n_embd, config.n_embd, zero=zero_init)
        self.attn_dropout = config.attn_pdrop
        self.resid_dropout = config.resid_pdrop

    def split_heads(self, states: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """Split (B, L, parts * D) into (B, H, L, d) for each part."""
        split = states.view(*states.shape[:-1], parts, -1, self.head_dim)  # (B, L, parts, H, d)
        return split.permute(2, 0, 3, 1, 4).unbind()

    def keys_and_values(self, media_states: torch.Tensor) -> KeysAndValues:
        """Project media (B, S, D) to keys and values, (B, H, S, d) each. Cross-attention only."""
        keys, values = self.split_heads(self.c_attn(media_states), 2)
        return keys, values

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        media: KeysAndValues | None = None,
        implementation: str | None = None,
        first_visible: int = 0,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Attend to the text, or to media.

        Args:
            hidden_states: (B, L, D)
            attention_mask: what the attention implementation takes; for sdpa and eager (B, 1, L, K).
            past_key_values: the text's cache; self-attention only.
            media: keys and values from `keys_and_values`, of B rows or of one row for all; cross-attention only.
            implementation: overrides the config's attention implementation.
            first_visible: number of cached tokens, the first of each row, that are left out; self-attention only.

        Returns:
            the output (B, L, D), and the weights (B, H, L, K) if the implementation returns them.
        """
        if media is None:
            query, keys, values = self.split_heads(self.c_attn(hidden_states), 3)
            if past_key_values is not None:
                keys, values = past_key_values.update(keys, values, self.layer_idx)
            if first_visible:
                keys, values = keys[:, :, first_visible:], values[:, :, first_visible:]
        else:
            (query,) = self.split_heads(self.q_attn(hidden_states), 1)  # (B, H, L, d)
            keys, values = media
            # `shape[0]`, as `len` would fix the number of rows of an exported graph.
            if keys.shape[0] != query.shape[0]:
                keys, values = keys.expand(query.shape[0], -1, -1, -1), values.expand(query.shape[0], -1, -1, -1)
        implementation = implementation or self.config._attn_implementation
        arguments = {"dropout": self.attn_dropout if self.training else 0.0, "scaling": self.scaling, **kwargs}
        is_one = query.shape[2] == 1 and query.device.type == "cpu" and query.dtype != torch.float32
        is_plain = attention_mask is None and not arguments["dropout"] and not self.upcast
        if implementation == "sdpa" and is_one and is_plain:
            output, weights = attend_once(query, keys, values, self.scaling), None
        else:
            attention_function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
            output, weights = attention_function(self, query, keys, values, attention_mask, **arguments)
        output = self.c_proj(output.flatten(-2).contiguous())  # (B, L, H, d) -> (B, L, D)
        if self.training:
            output = nn.functional.dropout(output, self.resid_dropout)
        return output, weights


def attend_once(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
    """
    Attend with one query and without a mask, on a CPU in half precision, where it takes half the time.

    The fused kernel is made for many queries, and `query @ keys.T` reads the keys across their rows; here each row of
    keys is multiplied as it lies (torch 2.13, bfloat16, 6 heads, 1,500 keys: 0.7 ms, for 1.6 and 1.3 ms).

    Args:
        query: (B, H, 1, d)
        keys, values: (B, H, K, d)

    Returns:
        (B, 1, H, d)
    """
    rows, heads = query.shape[:2]
    scores = torch.bmm(keys.flatten(0, 1), query.flatten(0, 1).transpose(1, 2))  # (B * H, K, 1)
    weights = nn.functional.softmax(scores * scaling, dim=1, dtype=torch.float32).to(values.dtype)
    output = torch.bmm(weights.transpose(1, 2), values.flatten(0, 1))  # (B * H, 1, d)
    return output.view(rows, heads, 1, -1).transpose(1, 2)


def eager_attention(
    module: Attention,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Compute attention in single operations and return its weights; the reference for the fused kernels.

    With `reorder_and_upcast_attn` scores and softmax are computed in float32 whatever the model's precision, as
    Mistral's GPT-2 checkpoints were trained.
    """
    if module.upcast:
        with torch.autocast(query.device.type, enabled=False):
            scores = (query.float() @ keys.float().transpose(-1, -2)) * scaling
    else:
        scores = (query @ keys.transpose(-1, -2)) * scaling  # (B, H, L, K)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1).to(values.dtype)
    if dropout:
        weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ values).transpose(1, 2), weights  # (B, L, H, d)
