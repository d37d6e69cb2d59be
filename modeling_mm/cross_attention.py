# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Cross-attention from text to media: which one reads which media, and where it stands."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.gpt2.configuration_gpt2 import GPT2Config

from .attention import Attention, KeysAndValues
from .configuration_mm import MMConfig
from .layers import MLP, AttentionSink, TanhGate
from .masks import mask_tokens_without_media
from .media_cache import CrossAttentionCache
from .modalities import MODALITIES

# Shape legend: B rows, L text tokens, S media tokens, D width.

SHARED = "shared"
# Parameters of cross-attention by their names in a model, also inside a wrapper (PEFT, DDP); the first group is the
# tower of a modality that they belong to alone, with an underscore, or empty.
CROSS_ATTENTION = re.compile(r"\.(\w*?)(?:cross_blocks|ln_cross_attn|crossattention|stand_in)\.")


@dataclass(frozen=True)
class CrossAttentionGroup:
    """
    Cross-attention layers that read the same media.

    Modalities share one group; those with separate layers (`config.vision_cross_attention_layers`) have one each,
    so that what one modality learns leaves the others as they are. Which media tokens a group reads follows from their
    number by modality, not from values: graphs of it can be compiled and exported.

    Args:
        name: `"shared"`, or the tower of the modality, such as `"vision"`
        modalities: which it reads, by their number in `MODALITIES`
        layers: indices of decoder blocks
        placement: `"before"` these blocks, or `"inside"` them, between self-attention and feed-forward
        prefix: with which the names of its modules and of its cache begin
    """

    name: str
    modalities: tuple[int, ...]
    layers: tuple[int, ...]
    placement: str
    prefix: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", "" if self.name == SHARED else f"{self.name}_")

    def select(self, tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        """Return its columns of a tensor (B, S, ...); `sizes` are the media tokens a row of each modality."""
        ends = [sum(sizes[: number + 1]) for number in self.modalities]
        parts = [tensor[:, end - sizes[number] : end] for end, number in zip(ends, self.modalities, strict=True)]
        return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts, dim=1)


def cross_attention_groups(config: MMConfig) -> tuple[CrossAttentionGroup, ...]:
    """Return the groups of a model, without those that would have nothing to read."""
    own, shared = [], []
    for number, modality in enumerate(MODALITIES.values()):
        layers = getattr(config, modality.layers_field)
        if getattr(config, modality.config_field) is None:  # not compared: remote code may import its class twice
            continue
        if layers is None:
            shared.append(number)
        else:
            placement = getattr(config, modality.placement_field) or config.cross_attention_placement
            own.append(CrossAttentionGroup(modality.tower, (number,), tuple(layers), placement))
    if not shared:
        return tuple(own)
    layers = tuple(config.cross_attention_layers or ())
    return (CrossAttentionGroup(SHARED, tuple(shared), layers, config.cross_attention_placement), *own)


def split_media(
    groups: Sequence[CrossAttentionGroup], media: tuple[torch.Tensor, ...], sizes: Sequence[int] | None
) -> dict[str, tuple[torch.Tensor, ...]]:
    """
    Return the media (states, mask, index) of each group that has some in this step, by its name.

    Raises:
        ValueError: for media without their sizes, if more than one group reads them.
    """
    if len(groups) == 1 and groups[0].name == SHARED:
        return {SHARED: media}
    if sizes is None:
        raise ValueError(
            "These media do not say how many of their tokens are of which modality (MMMediaOutput.sizes), but a "
            "modality of this model has separate cross-attention layers. Take them from encode_media."
        )
    some = [group for group in groups if any(sizes[number] for number in group.modalities)]
    return {group.name: tuple(group.select(tensor, sizes) for tensor in media) for group in some}


def recording_order(groups: Sequence[CrossAttentionGroup], num_layers: int) -> list[CrossAttentionGroup]:
    """Return the group of each of the `cross_attentions` that a forward records, if all groups have media."""
    by_place = [group for place in ("before", "inside") for group in groups if group.placement == place]
    return [group for layer in range(num_layers) for group in by_place if layer in group.layers]


def lacking_tokens(seen: Sequence[torch.Tensor | None], own: torch.Tensor | None) -> tuple[bool, torch.Tensor | None]:
    """
    Return whether any token may need a stand-in, and which do, (B, L, 1) or `None` if all do.

    Args:
        seen: for each group inside the blocks that has media in this step, which tokens see any, `None` if all do
        own: which tokens see media of the modality that was added, `None` if all do
    """
    lacking = own
    for mask in seen:
        if mask is None:
            return False, None
        lacking = ~mask if lacking is None else lacking & ~mask
    return True, lacking


class CrossAttention(Attention):
    """Attention from text to media, which may be in a cache; a separate class so that its weights are recorded."""

    def __init__(self, config: GPT2Config, layer_idx: int, zero_init: bool = True):
        super().__init__(config, layer_idx, is_cross_attention=True, zero_init=zero_init)

    def read(
        self,
        normed: torch.Tensor,
        media_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        has_media: torch.Tensor | None,
        media_cache: CrossAttentionCache | None = None,
        implementation: str | None = None,
        gate: nn.Module | None = None,
        query_gate: nn.Module | None = None,
    ) -> torch.Tensor:
        """
        Return what text tokens read from media, (B, L, D), zero for those that see none.

        Args:
            normed: (B, L, D), text states behind their layer norm
            media_states, attention_mask, has_media, media_cache, implementation: see [`GatedCrossAttentionBlock`]
            gate: applied to what was read
            query_gate: of the text states, whose sigmoid is multiplied with what was read
        """
        if media_states is None:
            assert media_cache is not None, "media are new or cached"
            media = media_cache.layers[self.layer_idx]
        else:
            media = self.keys_and_values(media_states)
            if media_cache is not None:
                media = media_cache.update(self.layer_idx, media)
        attended, _ = self(normed, attention_mask, media=media, implementation=implementation)
        if query_gate is not None:
            attended = attended * query_gate(normed).sigmoid()
        return mask_tokens_without_media(attended if gate is None else gate(attended), has_media)


class SinkingCrossAttention(CrossAttention):
    """Cross-attention with a sink beside the media; a separate class so that others call nothing for it."""

    def __init__(self, config: GPT2Config, layer_idx: int, zero_init: bool = True):
        super().__init__(config, layer_idx, zero_init)
        self.sink = AttentionSink(config.n_embd)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        media: KeysAndValues,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend to media as [`Attention`]; the weights are those of the media, without the sink's."""
        keys, values, attention_mask = self.sink(*media, attention_mask)
        output, weights = super().forward(hidden_states, attention_mask, media=(keys, values), **kwargs)
        return output, None if weights is None else weights[..., :-1]


class GatedCrossAttentionBlock(GradientCheckpointingLayer):
    """
    Cross-attention from text to media, and a feed-forward branch.

    `x + tanh(gate)·CrossAttention(norm(x), media)`, then `x + tanh(gate)·FFN(norm(x))`, as in
    [Flamingo](https://arxiv.org/abs/2204.14198).

    With `config.cross_attention_query_gate` what is read is first multiplied by the sigmoid of a linear function of
    the text token, `sigmoid(W·norm(x))`. With `config.cross_attention_token_gate` both branches are multiplied by one
    number for each text token, `sigmoid(w·norm(x) + b)`.

    Both branches add zero to a token that sees no media. The block starts by adding nothing: its gates are zero, or,
    without gates, its output projections are.
    """

    def __init__(self, config: MMConfig, layer_idx: int):
        super().__init__()
        text, gated = config.text_config, config.cross_attention_gated
        self.norm_attn = nn.LayerNorm(text.n_embd, eps=text.layer_norm_epsilon)
        attention = SinkingCrossAttention if config.cross_attention_sink else CrossAttention
        self.cross_attn = attention(text, layer_idx, zero_init=not gated)
        self.gate_attn = TanhGate() if gated else nn.Identity()
        self.gate_query = nn.Linear(text.n_embd, text.n_embd) if config.cross_attention_query_gate else None
        self.gate_token = nn.Linear(text.n_embd, 1) if config.cross_attention_token_gate else None
        self.feed_forward = config.cross_attention_feed_forward
        if self.feed_forward:
            self.norm_mlp = nn.LayerNorm(text.n_embd, eps=text.layer_norm_epsilon)
            self.mlp = MLP(text, not gated, config.cross_attention_feed_forward_size)
            self.gate_mlp = TanhGate() if gated else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        media_states: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        has_media: torch.Tensor | None,
        media_cache: CrossAttentionCache | None = None,
        implementation: str | None = None,
    ) -> torch.Tensor:
        """
        Add what the text tokens read from the media.

        Args:
            hidden_states: (B, L, D)
            media_states: (B, S, D), media that are new in this step; `None` if `media_cache` holds all
            attention_mask: (B, 1, L, S), or `None` if every token sees all media
            has_media: (B, L, 1) bool, which tokens see any media, or `None` if all do
            media_cache: keeps keys and values between steps; `None` in training
            implementation: the attention implementation to use

        Returns:
            (B, L, D)
        """
        media = (media_states, attention_mask, has_media, media_cache, implementation)
        normed = self.norm_attn(hidden_states)
        openness = None if self.gate_token is None else self.gate_token(normed).sigmoid()  # (B, L, 1)
        read = self.cross_attn.read(normed, *media, self.gate_attn, self.gate_query)
        hidden_states = hidden_states + (read if openness is None else openness * read)
        if self.feed_forward:
            fed = self.gate_mlp(self.mlp(self.norm_mlp(hidden_states)))
            fed = fed if openness is None else openness * fed
            hidden_states = hidden_states + mask_tokens_without_media(fed, has_media)
        return hidden_states
