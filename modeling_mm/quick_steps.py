# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Decoding steps of one token a row on a CPU, in a third of the operations.

A step of a small decoder is half Python and dispatch. These steps call the same products, norms and attention on the
same weights, so that their states are equal; what is constant in a generation is looked up once: modules, gates, keys
of media with their sinks and masks. Keys and values of the text are written into buffers with room to spare, of which
the cache shows views, so that any other step finds its cache as usual.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import Attention, attend_once
from .compat import only_records_outputs
from .cross_attention import CrossAttention, GatedCrossAttentionBlock, SinkingCrossAttention
from .decoder import MMDecoder
from .int8 import Int8Linear
from .layers import MLP, Projection, ResidualProjection
from .onednn import LEAST_WEIGHT, is_plain_inference

# Shape legend: B rows, K keys, S media tokens, H heads, d their width, D = H d. States of one token a row are (B, D).

Layer = Callable[[torch.Tensor], torch.Tensor]
ROOM = 128  # tokens that a buffer has room for beyond those it must hold
NAME = "quick_steps"
# Parts of a cross-attention block that a `Reading` computes; a block with any other takes the plain step.
READ = {"norm_attn", "cross_attn", "gate_attn", "gate_query", "gate_token", "norm_mlp", "mlp", "gate_mlp"}
# What `generate` passes in a step; `return_dict` changes nothing within.
KNOWN = frozenset({"input_ids", "position_ids", "attention_mask", "past_key_values", "use_cache", "return_dict"})


def is_untouched(module: nn.Module) -> bool:
    """Return whether calling a module runs its class's `forward` and nothing else."""
    if module._forward_pre_hooks or "forward" in module.__dict__:
        return False
    return not module._forward_hooks or all(map(only_records_outputs, module._forward_hooks.values()))


def has_global_hooks() -> bool:
    """Return whether something watches every module."""
    return bool(hooks._global_forward_hooks or hooks._global_forward_pre_hooks)


def layer_of(module: nn.Module) -> Layer:
    """Return the shortest call that computes what a module does."""
    if not is_untouched(module):
        return module
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if type(module) is nn.LayerNorm and weight is not None:
        shape, eps = module.normalized_shape, module.eps
        return lambda states: torch.layer_norm(states, shape, weight, bias, eps)
    if type(module) in (Projection, ResidualProjection) and type(weight.data) is torch.Tensor:  # type: ignore[union-attr]
        if weight.dtype == torch.float32 and weight.numel() < LEAST_WEIGHT:  # type: ignore[union-attr, operator]
            return lambda states: torch.addmm(bias, states, weight)  # type: ignore[arg-type]
        return module.forward  # which has a choice of kernels
    return module.forward if type(module) is Int8Linear else module


def attend(
    attention: Attention, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return what one query (B, H, 1, d) attends to, of H d values a row, by the kernel that `attention` takes."""
    if mask is None and query.dtype != torch.float32 and not attention.upcast:
        return attend_once(query, keys, values, attention.scaling)
    return nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=attention.scaling)


@dataclass
class Reading:
    """Cross-attention of a step: its layers, and the keys and values of media (B, H, S, d) with their mask."""

    norm: Layer
    query: Layer
    output: Layer
    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor | None
    attention: Attention
    lacks_media: torch.Tensor | None  # (B, 1) bool
    query_gate: Layer | None = None
    token_gate: Layer | None = None
    gate: torch.Tensor | None = None
    feed_norm: Layer | None = None
    feed: Layer | None = None
    feed_gate: torch.Tensor | None = None

    def add_to(self, states: torch.Tensor) -> torch.Tensor:
        """Return states (B, D) with what they read from the media, and with its feed-forward branch."""
        rows, heads, _, width = self.keys.shape
        normed = self.norm(states)
        query = self.query(normed).view(rows, heads, 1, width)
        attended = attend(self.attention, query, self.keys, self.values, self.mask)
        branch = self.output(attended.reshape(rows, -1))
        if self.query_gate is not None:
            branch = branch * self.query_gate(normed).sigmoid()
        openness = None if self.token_gate is None else self.token_gate(normed).sigmoid()  # (B, 1)
        states = states + self.gated(branch, self.gate, openness)
        if self.feed is not None and self.feed_norm is not None:
            states = states + self.gated(self.feed(self.feed_norm(states)), self.feed_gate, openness)
        return states

    def gated(self, branch: torch.Tensor, gate: torch.Tensor | None, openness: torch.Tensor | None) -> torch.Tensor:
        """Return a branch (B, D) times its gate and that of the token (B, 1), zero for rows that lack media."""
        branch = branch if gate is None else branch * gate
        branch = branch if openness is None else openness * branch
        return branch if self.lacks_media is None else branch.masked_fill(self.lacks_media, 0.0)


@dataclass
class Block:
    """A decoder block of a step, with the cross-attention before and inside it."""

    before: list[Reading]
    norm: Layer
    projection: Layer
    output: Layer
    attention: Attention
    inside: list[Reading]
    stand_ins: list[torch.Tensor]
    feed_norm: Layer
    feed: Layer


class Buffer:
    """Keys and values of a layer's text, (2, B, H, tokens and room, d), of which the cache shows a view."""

    def __init__(self, layer: DynamicLayer):
        self.layer = layer
        self.shown: torch.Tensor | None = None
        self.data = torch.empty(0)

    def append(self, new: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values (2, B, H, d), and return those from `first` on, (B, H, K, d) each."""
        keys = self.layer.keys
        length = keys.shape[2]
        if keys is not self.shown or length == self.data.shape[3]:
            rows, heads, _, width = keys.shape
            self.data = keys.new_empty(2, rows, heads, length + ROOM, width)
            torch.stack([keys, self.layer.values], out=self.data[:, :, :, :length])
        self.data.select(3, length).copy_(new)
        shown = self.data.narrow(3, 0, length + 1)
        self.layer.keys, self.layer.values = shown.unbind()
        self.shown = self.layer.keys
        if first:
            keys, values = shown.narrow(3, first, length + 1 - first).unbind()
            return keys, values
        return self.layer.keys, self.layer.values


class QuickSteps:
    """
    Steps of a generation whose prompt, with its media, is in a cache.

    Args:
        decoder: in evaluation
        rows: B
        length: tokens in the cache
    """

    def __init__(self, decoder: MMDecoder, cache: DynamicCache, rows: int, length: int):
        self.rows, self.length = rows, length
        self.final_norm = layer_of(decoder.ln_f)
        self.heads = decoder.config.n_head
        self.buffers = [Buffer(layer) for layer in cache.layers]
        readings, lacking = media_readings(decoder, cache, rows, length)
        self.blocks = []
        block: Any
        for i, block in enumerate(decoder.h):
            attention = block.attn
            stand_ins = [getattr(block, f"{prefix}stand_in", None) for prefix in lacking]
            self.blocks.append(
                Block(
                    before=[each for place, index, each in readings if (place, index) == ("before", i)],
                    norm=layer_of(block.ln_1),
                    projection=layer_of(attention.c_attn),
                    output=layer_of(attention.c_proj),
                    attention=attention,
                    inside=[each for place, index, each in readings if (place, index) == ("inside", i)],
                    stand_ins=[
                        stand_in(tokens).reshape(-1, attention.config.n_embd)
                        for stand_in, tokens in zip(stand_ins, lacking.values(), strict=True)
                        if stand_in is not None
                    ],
                    feed_norm=layer_of(block.ln_2),
                    feed=feed_forward(block.mlp),
                )
            )

    def __reduce__(self) -> Any:
        """Leave copies of a cache without its steps, which belong to the modules of a model."""
        return (type(None), ())

    @staticmethod
    def of(decoder: MMDecoder, cache: Cache, ids: torch.Tensor) -> "QuickSteps | None":
        """Return the steps that continue a cache by ids (B, 1), or `None` where only the plain step is right."""
        length = cache.get_seq_length()
        steps = getattr(cache, NAME, None)
        if isinstance(steps, QuickSteps) and steps.length == length and steps.rows == ids.shape[0]:
            return steps
        steps = None
        if length and is_quick(decoder, cache) and not has_global_hooks():
            steps = QuickSteps(decoder, cache, ids.shape[0], length)  # type: ignore[arg-type]
        setattr(cache, NAME, steps)
        return steps

    def run(self, states: torch.Tensor, first: int, mask: torch.Tensor | None) -> torch.Tensor:
        """
        Return the decoder's last states (B, 1, D) of one new token a row.

        Args:
            states: its embedding (B, 1, D)
            first: cached tokens, the first of each row, that are left out
            mask: which of the others are seen, (B, 1, 1, K) bool, `None` if all are
        """
        rows, _, size = states.shape
        states = states.reshape(rows, size)
        for block, buffer in zip(self.blocks, self.buffers, strict=True):
            for reading in block.before:
                states = reading.add_to(states)
            projected = block.projection(block.norm(states)).view(rows, 3, self.heads, -1).transpose(0, 1)
            keys, values = buffer.append(projected[1:], first)
            attended = attend(block.attention, projected[0][:, :, None], keys, values, mask)
            states = states + block.output(attended.reshape(rows, size))
            for reading in block.inside:
                states = reading.add_to(states)
            for stand_in in block.stand_ins:
                states = states + stand_in
            states = states + block.feed(block.feed_norm(states))
        self.length += 1
        return self.final_norm(states)[:, None]


def is_quick(decoder: MMDecoder, cache: Cache) -> bool:
    """Return whether all modules and the cache are those that the quick steps know, without hooks between them."""
    if decoder.config._attn_implementation != "sdpa" or ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward:
        return False
    if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return False
    if getattr(cache, "offloading", False) or len(cache.layers) != len(decoder.h):
        return False
    kinds = (Attention, CrossAttention, SinkingCrossAttention, MLP, GatedCrossAttentionBlock)
    gated = [module for module in decoder.modules() if isinstance(module, GatedCrossAttentionBlock)]
    if any(name not in READ for block in gated for name, _ in block.named_children()):
        return False
    passed = [decoder, *decoder.h, *(module for module in decoder.modules() if isinstance(module, kinds))]
    known = {type(decoder), type(decoder.h[0]), *kinds}
    weight = decoder.ln_f.weight
    return (
        weight.device.type == "cpu"
        and not decoder.training
        and all(type(module) in known and is_untouched(module) for module in passed)
    )


def feed_forward(mlp: MLP) -> Layer:
    """Return the call of a feed-forward branch in evaluation."""
    up, act, down = layer_of(mlp.c_fc), mlp.act, layer_of(mlp.c_proj)
    return lambda states: down(act(up(states)))


def media_readings(
    decoder: MMDecoder, cache: Cache, rows: int, length: int
) -> tuple[list[tuple[str, int, Reading]], dict[str, torch.Tensor | None]]:
    """Return each cross-attention with its place and block, and the tokens that need stand-ins, as of any step."""
    token = torch.empty(rows, 1, decoder.config.n_embd)
    groups = []
    for group in decoder.groups:
        inputs = decoder.cross_attention_inputs(
            group.prefix, token, None, None, cache, length, will_decode=True, examples=None
        )
        if inputs:
            groups.append((group, None, inputs))
    lacking = decoder.lacking(groups) if decoder.stood_in else {}
    found = []
    for group, _, inputs in groups:
        for i in group.layers:
            if group.placement == "before":
                block = getattr(decoder, f"{group.prefix}cross_blocks")[str(i)]
                reading = gated_reading(block, inputs, rows)
            else:
                norm = getattr(decoder.h[i], f"{group.prefix}ln_cross_attn")
                attention = getattr(decoder.h[i], f"{group.prefix}crossattention")
                reading = Reading(layer_of(norm), **attention_of(attention, inputs, rows))
            found.append((group.placement, i, reading))
    return found, lacking


def gated_reading(block: GatedCrossAttentionBlock, inputs: dict[str, Any], rows: int) -> Reading:
    """Return the reading of a cross-attention block, whose gates are constant."""
    reading = Reading(layer_of(block.norm_attn), **attention_of(block.cross_attn, inputs, rows))
    reading.query_gate = None if block.gate_query is None else layer_of(block.gate_query)
    reading.token_gate = None if block.gate_token is None else layer_of(block.gate_token)
    reading.gate = None if isinstance(block.gate_attn, nn.Identity) else block.gate_attn.weight.tanh()
    if block.feed_forward:
        reading.feed_norm, reading.feed = layer_of(block.norm_mlp), feed_forward(block.mlp)
        reading.feed_gate = None if isinstance(block.gate_mlp, nn.Identity) else block.gate_mlp.weight.tanh()
    return reading


def attention_of(attention: CrossAttention, inputs: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return the fields of a reading that come from its attention and its media."""
    keys, values = inputs["media_cache"].layers[attention.layer_idx]
    mask, has_media = inputs["attention_mask"], inputs["has_media"]
    if isinstance(attention, SinkingCrossAttention):
        keys, values, mask = attention.sink(keys, values, mask)
    return {
        "query": layer_of(attention.q_attn),
        "output": layer_of(attention.c_proj),
        "keys": keys.expand(rows, -1, -1, -1),
        "values": values.expand(rows, -1, -1, -1),
        "mask": mask,
        "attention": attention,
        "lacks_media": None if has_media is None else ~has_media[:, 0],
    }


def quick_states(base: Any, inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """
    Return the last states (B, 1, D) of a decoding step, or `None` if the inputs are of another kind of step.

    Args:
        base: an [`MMModel`]
        inputs: of its `forward`, with a cache
    """
    ids, cache, decoder = inputs.get("input_ids"), inputs["past_key_values"], base.language_model
    if ids is None or ids.shape[1] != 1 or inputs.get("use_cache") is not True or not KNOWN.issuperset(inputs):
        return None
    weight, config = decoder.ln_f.weight, decoder.config
    if decoder.training or config.output_attentions or config.output_hidden_states or not is_untouched(base):
        return None
    if not (weight.is_floating_point() and is_plain_inference(weight)):
        return None
    if (steps := QuickSteps.of(decoder, cache, ids)) is None:
        return None
    length, mask = steps.length, inputs.get("attention_mask")
    if mask is not None and (mask.ndim != 2 or mask.shape[1] != length + 1):
        return None
    first = decoder.first_of_step(mask, cache, length)
    if first is not None:
        mask = None  # all tokens from the first one on are seen
    embeds, first = decoder.wte(ids), first or 0
    states = embeds + decoder.embed_positions(inputs.get("position_ids"), mask, embeds, length, first)
    return steps.run(states, first, None if mask is None else mask[:, None, None].bool())
