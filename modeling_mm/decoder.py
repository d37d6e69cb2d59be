# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""GPT-2's blocks, and the gated cross-attention blocks between them through which the decoder sees and hears."""

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
from .layers import MLP, TanhGate, init_weights, sinusoidal_positions
from .masks import check_positions, text_positions
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
        **kwargs,
    ) -> torch.Tensor:
        """(B, L, D) -> (B, L, D)"""
        attended, _ = self.attn(self.ln_1(hidden_states), attention_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class GatedCrossAttentionBlock(GradientCheckpointingLayer):
    """
    `x + tanh(gate)·CrossAttention(norm(x), media)`, then `x + tanh(gate)·FFN(norm(x))`, as in
    [Flamingo](https://arxiv.org/abs/2204.14198).

    Both branches are silent for a token that sees no media, so that its value does not move at all. The block starts
    by adding nothing: its gates are zero, or, without gates, its output projections are.
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
        sees: torch.Tensor | None,
        past_key_values: CrossAttentionCache | None = None,
        implementation: str | None = None,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: (B, L, D)
            media_states: (B, S, D), the media that are new in this step; `None` where `past_key_values` has all
            attention_mask: (B, 1, L, S), or `None` where every token sees all
            sees: (B, L, 1) bool, which tokens see any media, or `None` where all do
            past_key_values: remembers keys and values between steps; `None` in training
            implementation: the attention implementation to use

        Returns:
            (B, L, D)
        """
        if media_states is None:
            media = past_key_values.layers[self.layer_idx]
        else:
            media = self.cross_attn.keys_and_values(media_states)
            if past_key_values is not None:
                media = past_key_values.update(self.layer_idx, media)
        attended, _ = self.cross_attn(
            self.norm_attn(hidden_states), attention_mask, media=media, implementation=implementation
        )
        hidden_states = hidden_states + silence(self.gate_attn(attended), sees)
        if self.feed_forward:
            fed = self.mlp(self.norm_mlp(hidden_states))
            hidden_states = hidden_states + silence(self.gate_mlp(fed), sees)
        return hidden_states


def silence(branch: torch.Tensor, sees: torch.Tensor | None) -> torch.Tensor:
    """Exactly zero, (B, L, D), where a token sees nothing."""
    return branch if sees is None else torch.where(sees, branch, 0.0)


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
        # Keyed by the index of the decoder block that each one stands before.
        layers = config.cross_attention_layers if has_media(config) else []
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
        **kwargs,
    ) -> MMModelOutput:
        """
        Args:
            input_ids: (B, L); or `inputs_embeds`, (B, L, D)
            attention_mask: (B, past + L), or a prepared 4-D mask
            position_ids: (B, L); by default they count the real tokens of the mask
            past_key_values: the text before this step, and the media shown with it
            media_states: (B, S, D), media that are new in this step
            media_mask: (B, S) bool, which of them are real
            media_index: (B, S), index in this step's tokens of each one's placeholder
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.wte(input_ids)
        length, device = inputs_embeds.shape[1], inputs_embeds.device
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        # A static cache counts in a tensor that the layers below advance in place: take its value now.
        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        if isinstance(past_length, torch.Tensor):
            past_length = past_length.clone()

        if position_ids is None:
            position_ids = text_positions(attention_mask, length, past_length, device)
        elif not is_torchdynamo_compiling() and isinstance(past_length, int) and past_length == 0:
            check_given_positions(position_ids, attention_mask, media_states is not None, self.wpe)
        hidden_states = self.drop(inputs_embeds + self.embed_positions(position_ids, past_length).to(inputs_embeds))
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if media_states is not None:
            media_states = media_states.to(inputs_embeds.dtype)  # media may have been encoded in another precision
        memory, cross_kwargs = self.prepare_media(
            media_states, media_mask, media_index, past_key_values, past_length, hidden_states
        )
        for i, block in enumerate(self.h):
            if memory is not None and str(i) in self.cross_blocks:
                hidden_states = self.cross_blocks[str(i)](
                    hidden_states,
                    media_states,  # a positional argument, so that re-entrant checkpointing carries its gradient
                    past_key_values=memory if past_key_values is not None else None,
                    **cross_kwargs,
                )
            hidden_states = block(hidden_states, causal_mask, past_key_values=past_key_values, **kwargs)
        return MMModelOutput(
            last_hidden_state=self.ln_f(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def embed_positions(self, position_ids: torch.Tensor, past_length) -> torch.Tensor:
        """(B, L) -> (B, L, D)"""
        if self.wpe is None:
            return sinusoidal_positions(position_ids, self.config.n_embd)
        # Padding only makes positions smaller, so the device is asked for them only when the row might be too long.
        if not is_torchdynamo_compiling() and past_length + position_ids.shape[1] > self.config.n_positions:
            check_positions(position_ids, self.config.n_positions)
        return self.wpe(position_ids)

    def prepare_media(
        self,
        media_states: torch.Tensor | None,
        media_mask: torch.Tensor | None,
        media_index: torch.Tensor | None,
        past_key_values: Cache | None,
        past_length: int | torch.Tensor,
        hidden_states: torch.Tensor,
    ) -> tuple[CrossAttentionCache | None, dict]:
        """The media in sight, old and new, and what every cross-attention block is told about them."""
        memory = CrossAttentionCache.of(past_key_values, past_length)
        if media_states is not None:
            device = hidden_states.device
            media_mask, index = media_mask.to(device), media_index.to(device) + past_length
            memory = memory.extend(media_mask, index) if memory is not None else CrossAttentionCache(media_mask, index)
            if past_key_values is not None and not is_torchdynamo_compiling():
                memory.mark_all_visible(past_length + hidden_states.shape[1])
        if past_key_values is not None and memory is not None:
            memory.attach_to(past_key_values)
        if memory is None or not self.cross_blocks:
            return None, {}
        implementation = cross_attention_implementation(self.config._attn_implementation)
        attention_mask, sees = memory.attention_mask(
            query_index=torch.arange(hidden_states.shape[1], device=hidden_states.device) + past_length,
            dtype=hidden_states.dtype,
            boolean=implementation == "sdpa",
            decoding=media_states is None,
        )
        return memory, {"attention_mask": attention_mask, "sees": sees, "implementation": implementation}


def check_given_positions(
    position_ids: torch.Tensor, attention_mask: torch.Tensor | None, with_media: bool, table: nn.Embedding | None
) -> None:
    """
    Checks position ids that the caller chose, (B, L).

    Raises:
        ValueError: for ids beyond the table of positions; and for rows of several packed samples together with media,
            which every later sample of the row would see.
    """
    if table is not None:
        check_positions(position_ids, table.num_embeddings)
    if with_media and attention_mask is None:
        restarts = (position_ids.diff(dim=-1) != 1).any(-1).nonzero().flatten().tolist()
        if restarts:
            raise ValueError(
                f"Row {restarts[0]}: position_ids start again within the row, as packed samples do, but media are not "
                "bounded by samples. Give each sample with media a row of its own; where they skip padding, "
                "pass the attention_mask."
            )


def has_media(config: MMConfig) -> bool:
    return config.vision_config is not None or config.audio_config is not None


def cross_attention_implementation(implementation: str | None) -> str | None:
    """
    Flash kernels take no mask of their own choosing, so under them cross-attention, which needs one and is short, runs
    on sdpa. The other implementations serve both kinds of attention.
    """
    return "sdpa" if implementation is not None and "flash" in implementation else implementation
