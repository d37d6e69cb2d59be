# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""GPT-2's blocks, and the gated cross-attention blocks between them that read media."""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.utils import is_torchdynamo_compiling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import Attention
from .configuration_mm import MMConfig
from .device_reads import read_once
from .layers import MLP, TanhGate, init_weights, sinusoidal_positions
from .masks import check_not_packed, check_positions, cross_attention_mask, mask_tokens_without_media, text_positions
from .media_cache import CrossAttentionCache
from .outputs import MMModelOutput

# Shape legend: B rows, L text tokens, S media tokens, D width.


class DecoderBlock(GradientCheckpointingLayer):
    """A GPT-2 block: attention and feed-forward, each after its layer norm and added to the residual stream."""

    def __init__(self, config: GPT2Config, layer_idx: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Apply the block, (B, L, D) to (B, L, D)."""
        attended, _ = self.attn(self.ln_1(hidden_states), attention_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class GatedCrossAttentionBlock(GradientCheckpointingLayer):
    """
    Cross-attention from text to media, and a feed-forward branch.

    `x + tanh(gate)·CrossAttention(norm(x), media)`, then `x + tanh(gate)·FFN(norm(x))`, as in
    [Flamingo](https://arxiv.org/abs/2204.14198).

    Both branches add zero to a token that sees no media. The block starts by adding nothing: its gates are zero, or,
    without gates, its output projections are.
    """

    def __init__(self, config: MMConfig, layer_idx: int):
        super().__init__()
        text, gated = config.text_config, config.cross_attention_gated
        self.layer_idx = layer_idx
        self.norm_attn = nn.LayerNorm(text.n_embd, eps=text.layer_norm_epsilon)
        self.cross_attn = Attention(text, layer_idx, is_cross_attention=True, zero_init=not gated)
        self.gate_attn = TanhGate() if gated else nn.Identity()
        self.feed_forward = config.cross_attention_feed_forward
        if self.feed_forward:
            self.norm_mlp = nn.LayerNorm(text.n_embd, eps=text.layer_norm_epsilon)
            self.mlp = MLP(text, zero_init=not gated)
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
        if media_states is None:
            media = media_cache.layers[self.layer_idx]
        else:
            media = self.cross_attn.keys_and_values(media_states)
            if media_cache is not None:
                media = media_cache.update(self.layer_idx, media)
        normed = self.norm_attn(hidden_states)
        attended, _ = self.cross_attn(normed, attention_mask, media=media, implementation=implementation)
        hidden_states = hidden_states + mask_tokens_without_media(self.gate_attn(attended), has_media)
        if self.feed_forward:
            fed = self.mlp(self.norm_mlp(hidden_states))
            hidden_states = hidden_states + mask_tokens_without_media(self.gate_mlp(fed), has_media)
        return hidden_states


class MMDecoder(PreTrainedModel):
    """
    A GPT-2 decoder with gated cross-attention blocks before the blocks named by `config.cross_attention_layers`.

    Its GPT-2 parameters have GPT-2's names (`wte`, `wpe`, `h.0.attn.c_attn`, ..., `ln_f`).
    """

    config: GPT2Config
    config_class = GPT2Config
    base_model_prefix = "language_model"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["DecoderBlock", "GatedCrossAttentionBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _can_record_outputs = {
        "hidden_states": DecoderBlock,
        "attentions": OutputRecorder(Attention, index=1, layer_name=".attn"),
        "cross_attentions": OutputRecorder(Attention, index=1, layer_name=".cross_attn"),
    }

    def __init__(self, config: MMConfig):
        super().__init__(config.text_config)
        text = config.text_config
        self.wte = nn.Embedding(text.vocab_size, text.n_embd)
        self.wpe = nn.Embedding(text.n_positions, text.n_embd) if config.text_position_encoding == "learned" else None
        self.drop = nn.Dropout(text.embd_pdrop)
        self.h = nn.ModuleList(DecoderBlock(text, i) for i in range(text.n_layer))
        # By the index of the decoder block that each one precedes.
        layers = config.cross_attention_layers if config.modalities else []
        self.cross_blocks = nn.ModuleDict({str(i): GatedCrossAttentionBlock(config, i) for i in layers})
        self.ln_f = nn.LayerNorm(text.n_embd, eps=text.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module, self.config)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.wte = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        media_states: torch.Tensor | None = None,
        media_mask: torch.Tensor | None = None,
        media_index: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MMModelOutput:
        """
        Run the decoder over text, with media if there are any.

        Args:
            input_ids: (B, L); or `inputs_embeds`, (B, L, D)
            attention_mask: (B, past + L), or a prepared 4-D mask
            position_ids: (B, L); by default they count the real tokens of the mask
            past_key_values: the text before this step, and the media shown with it
            media_states: (B, S, D), or (1, S, D) for all rows: media that are new in this step
            media_mask: (B, S) or (1, S) bool, which of them are real
            media_index: (B, S), index in this step's tokens of each one's placeholder
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.wte(input_ids)
        will_decode = past_key_values is not None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        # A static cache counts in a tensor that the layers below advance in place: take its value now.
        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        if isinstance(past_length, torch.Tensor):
            past_length = past_length.clone()

        positions = self.embed_positions(position_ids, attention_mask, inputs_embeds, past_length)
        hidden_states = self.drop(inputs_embeds + positions)
        causal_mask = self.causal_mask(position_ids, attention_mask, inputs_embeds, past_key_values)
        if media_states is not None:
            media_states = media_states.to(inputs_embeds.dtype)  # media may have been encoded in another precision
            if position_ids is not None and attention_mask is None and not is_torchdynamo_compiling():
                check_not_packed(position_ids)
        cross_inputs = self.cross_attention_inputs(
            hidden_states, media_mask, media_index, past_key_values, past_length, will_decode
        )
        kwargs = {**kwargs, "implementation": self.config._attn_implementation, "past_key_values": past_key_values}
        for i, block in enumerate(self.h):
            if cross_inputs and str(i) in self.cross_blocks:
                # Media are positional, so that re-entrant checkpointing carries their gradient.
                hidden_states = self.cross_blocks[str(i)](hidden_states, media_states, **cross_inputs)
            hidden_states = block(hidden_states, causal_mask, **kwargs)
        return MMModelOutput(
            last_hidden_state=self.ln_f(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def embed_positions(
        self,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        past_length: int | torch.Tensor,
    ) -> torch.Tensor:
        """Return the encoding of given positions, or of those that count the real tokens, (B, L, D) or (1, L, D)."""
        length, is_given = inputs_embeds.shape[1], position_ids is not None
        if position_ids is None:
            position_ids = text_positions(attention_mask, length, past_length, inputs_embeds.device)
        if self.wpe is None:
            return sinusoidal_positions(position_ids, inputs_embeds.shape[2]).to(inputs_embeds)
        if not is_torchdynamo_compiling():
            starts = isinstance(past_length, int) and past_length == 0
            # Padding only makes positions smaller: those that we counted are read only if a row might be too long.
            if (is_given and starts) or past_length + length > self.wpe.num_embeddings:
                check_positions(position_ids, self.wpe.num_embeddings)
        return self.wpe(position_ids).to(inputs_embeds)

    def causal_mask(
        self,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        past_key_values: Cache | None,
    ) -> torch.Tensor | None:
        """Return the mask of self-attention; position ids that restart separate samples packed into one row."""
        is_padded = False
        if attention_mask is not None and attention_mask.ndim == 2 and not is_torchdynamo_compiling():
            is_padded = not read_once("full", attention_mask.all(), attention_mask)
            if not is_padded:
                attention_mask = position_ids = None
        return create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            allow_is_causal_skip=not is_padded,  # known to be padded: transformers need not read the mask again
        )

    def cross_attention_inputs(
        self,
        hidden_states: torch.Tensor,
        media_mask: torch.Tensor | None,
        media_index: torch.Tensor | None,
        past_key_values: Cache | None,
        past_length: int | torch.Tensor,
        will_decode: bool,
    ) -> dict[str, Any]:
        """Return what all cross-attention blocks need beside the media, new and cached; nothing without media."""
        media_cache = CrossAttentionCache.of(past_key_values, past_length)
        length, device = hidden_states.shape[1], hidden_states.device
        is_new = media_mask is not None and media_index is not None
        if is_new:
            mask, index = media_mask.to(device), media_index.to(device) + past_length
            media_cache = CrossAttentionCache(mask, index) if media_cache is None else media_cache.extend(mask, index)
        if media_cache is None:
            return {}
        if past_key_values is not None:
            past_key_values.cross_attention_cache = media_cache
        implementation = self.config._attn_implementation
        if implementation is not None and "flash" in implementation:
            implementation = "sdpa"  # flash kernels take no mask as cross-attention needs; it is short anyway
        how = {"dtype": hidden_states.dtype, "boolean": implementation == "sdpa"}
        masks: tuple[torch.Tensor | None, torch.Tensor | None]
        if is_new:
            query_index = torch.arange(length, device=device) + past_length
            visible = media_cache.mask[:, None] & (media_cache.index[:, None] <= query_index[:, None])  # (B, L, S)
            masks = cross_attention_mask(visible, **how)
            if will_decode and not is_torchdynamo_compiling():
                media_cache.later_masks(past_length + length, **how)  # now, so that compiled steps need not make them
        else:
            later, has_media = media_cache.later_masks(past_length, **how)
            masks = (None if later is None else later.expand(-1, -1, length, -1), has_media)
        # Checkpointing runs a block twice, and a second run must not append keys and values again. transformers drops
        # `past_key_values` from the arguments of a checkpointed layer for that reason; ours has another name.
        keeps = past_key_values is not None and not (self.gradient_checkpointing and self.training)
        return {
            "attention_mask": masks[0],
            "has_media": masks[1],
            "media_cache": media_cache if keeps else None,
            "implementation": implementation,
        }
