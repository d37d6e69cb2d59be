# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""GPT-2's decoder, with cross-attention before or inside its blocks that reads media."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.utils import is_torchdynamo_compiling
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import Attention
from .configuration_mm import MMConfig
from .cross_attention import (
    CrossAttention,
    CrossAttentionGroup,
    GatedCrossAttentionBlock,
    cross_attention_groups,
    lacking_tokens,
    split_media,
)
from .device_reads import read_once
from .layers import MLP, StandIn, init_weights, sinusoidal_positions
from .masks import (
    check_continuous,
    check_positions,
    cross_attention_mask,
    first_visible,
    same_example,
    text_positions,
)
from .media_cache import CrossAttentionCache
from .outputs import MMModelOutput

# Shape legend: B rows, L text tokens, S media tokens, D width.


class DecoderBlock(GradientCheckpointingLayer):
    """
    A GPT-2 block: attention and feed-forward, each after its layer norm and added to the residual stream.

    Cross-attention inside it stands between the two, as in GPT-2 with `add_cross_attention` and in Whisper, under
    GPT-2's names: `ln_cross_attn` and `crossattention`, which begin with the tower of a modality that has its own.

    Args:
        prefixes: of the groups that have cross-attention inside this block
        stand_ins: prefixes of the groups with a stand-in for it
    """

    def __init__(
        self, config: GPT2Config, layer_idx: int, prefixes: Sequence[str] = (), stand_ins: Sequence[str] = ()
    ):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer_idx)
        for prefix in prefixes:
            norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
            setattr(self, f"{prefix}ln_cross_attn", norm)
            setattr(self, f"{prefix}crossattention", CrossAttention(config, layer_idx))
        for prefix in stand_ins:
            setattr(self, f"{prefix}stand_in", StandIn(config.n_embd))
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *media_states: torch.Tensor | None,
        past_key_values: Cache | None = None,
        cross_inputs: Sequence[tuple[str, dict[str, Any]]] = (),
        lacking: Mapping[str, torch.Tensor | None] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """
        Apply the block, (B, L, D) to (B, L, D).

        Args:
            hidden_states: (B, L, D)
            attention_mask: of the self-attention
            *media_states: (B, S, D) for each group with cross-attention inside, `None` where its cache holds all
            past_key_values: the text's cache
            cross_inputs: for each of these groups its prefix and the further arguments of a cross-attention block
            lacking: tokens to which stand-ins are added, (B, L, 1) or `None` for all, by the prefix of their group
        """
        attended, _ = self.attn(self.ln_1(hidden_states), attention_mask, past_key_values, **kwargs)
        hidden_states = hidden_states + attended
        for states, (prefix, inputs) in zip(media_states, cross_inputs, strict=True):
            normed = getattr(self, f"{prefix}ln_cross_attn")(hidden_states)
            hidden_states = hidden_states + getattr(self, f"{prefix}crossattention").read(normed, states, **inputs)
        for prefix, tokens in (lacking or {}).items():
            if (stand_in := getattr(self, f"{prefix}stand_in", None)) is not None:
                hidden_states = hidden_states + stand_in(tokens)
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class MMDecoder(PreTrainedModel):
    """
    A GPT-2 decoder with cross-attention before or inside the blocks named by `config.cross_attention_layers`.

    Its GPT-2 parameters have GPT-2's names (`wte`, `wpe`, `h.0.attn.c_attn`, ..., `ln_f`). Blocks before decoder
    blocks are in `cross_blocks`, and in `vision_cross_blocks` (and so on) for a modality with separate layers.
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
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }

    def __init__(self, config: MMConfig):
        super().__init__(config.text_config)
        text = config.text_config
        self.wte = nn.Embedding(text.vocab_size, text.n_embd)
        self.wpe = nn.Embedding(text.n_positions, text.n_embd) if config.text_position_encoding == "learned" else None
        self.drop = nn.Dropout(text.embd_pdrop)
        self.groups = cross_attention_groups(config)
        inside = [group for group in self.groups if group.placement == "inside"]
        prefixes = [[group.prefix for group in inside if i in group.layers] for i in range(text.n_layer)]
        stood_in = [g.prefix for g in self.groups if g.placement == "before"] * config.cross_attention_stand_in
        self.h = nn.ModuleList(
            DecoderBlock(text, i, prefixes[i], stood_in if prefixes[i] else ()) for i in range(text.n_layer)
        )
        self.stood_in = set(stood_in)
        # By the index of the decoder block that each one precedes.
        self.cross_blocks = nn.ModuleDict()
        for group in self.groups:
            if group.placement == "before":
                blocks = {str(i): GatedCrossAttentionBlock(config, i) for i in group.layers}
                setattr(self, f"{group.prefix}cross_blocks", nn.ModuleDict(blocks))
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
        media_sizes: Sequence[int] | None = None,
        use_cache: bool | None = None,
        is_causal: bool = True,
        examples: torch.Tensor | None = None,
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
            media_sizes: how many of the S are of which modality, in their order; needed if one has separate layers
            is_causal: if False, each token reads all of its row and all of its media, in the bidirectional mode
            examples: (B, L), of which packed example of the row each token is; it reads this one and its media

        Raises:
            ValueError: for text in two forms or none, for media without their sizes where these are needed, for rows
                that are too long, for positions that jump, and for a cache in the bidirectional mode or of packed
                examples.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.wte(input_ids)
        if not is_causal and (use_cache or past_key_values is not None):
            raise ValueError(
                "The bidirectional mode (is_causal=False) reads a row at once, so it has no cache. Leave out "
                "past_key_values and pass use_cache=False."
            )
        if examples is not None:
            self.check_packing(use_cache, past_key_values, is_causal)
        will_decode = past_key_values is not None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        # A static cache counts in a tensor that the layers below advance in place: take its value now.
        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        if isinstance(past_length, torch.Tensor):
            past_length = past_length.clone()

        first = None
        if past_key_values is not None and inputs_embeds.shape[1] == 1:
            first = self.first_of_step(attention_mask, past_key_values, past_length)
        if first is not None:
            attention_mask = None
        positions = self.embed_positions(position_ids, attention_mask, inputs_embeds, past_length, first or 0)
        hidden_states = self.drop(inputs_embeds + positions)
        text_mask = None
        if first is None:
            text_mask = self.text_mask(
                position_ids, attention_mask, inputs_embeds, past_key_values, is_causal, examples
            )
        if media_states is not None:
            media_states = media_states.to(inputs_embeds.dtype)  # media may have been encoded in another precision
            if position_ids is not None and attention_mask is None and not is_torchdynamo_compiling():
                check_continuous(position_ids)
        shown: dict[str, tuple[torch.Tensor, ...]] = {}
        if media_states is not None and media_mask is not None and media_index is not None:
            shown = split_media(self.groups, (media_states, media_mask, media_index), media_sizes)
        reading: list[tuple[CrossAttentionGroup, torch.Tensor | None, dict[str, Any]]] = []
        for group in self.groups:
            states, mask, index = shown.get(group.name, (None, None, None))
            if index is not None and not is_causal:
                index = torch.zeros_like(index)  # as if all placeholders were in front
            inputs = self.cross_attention_inputs(
                group.prefix, hidden_states, mask, index, past_key_values, past_length, will_decode, examples
            )
            if inputs:
                reading.append((group, states, inputs))
        kwargs = {**kwargs, "implementation": self.config._attn_implementation, "past_key_values": past_key_values}
        if not is_causal:
            kwargs["is_causal"] = False
        if first:
            kwargs["first_visible"] = first
        if self.stood_in:
            kwargs["lacking"] = self.lacking(reading)
        for i, block in enumerate(self.h):
            # Media are positional, so that re-entrant checkpointing carries their gradient.
            inside, inside_states = [], []
            for group, states, inputs in reading:
                if i not in group.layers:
                    continue
                if group.placement == "before":
                    hidden_states = getattr(self, f"{group.prefix}cross_blocks")[str(i)](
                        hidden_states, states, **inputs
                    )
                else:
                    inside.append((group.prefix, inputs))
                    inside_states.append(states)
            hidden_states = block(hidden_states, text_mask, *inside_states, cross_inputs=inside, **kwargs)
        return MMModelOutput(
            last_hidden_state=self.ln_f(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def lacking(
        self, reading: Sequence[tuple[CrossAttentionGroup, torch.Tensor | None, dict[str, Any]]]
    ) -> dict[str, torch.Tensor | None]:
        """Return which tokens need the stand-ins of a group, `None` for all, by its prefix; see [`StandIn`]."""
        seen = [inputs["has_media"] for group, _, inputs in reading if group.placement == "inside"]
        found: dict[str, torch.Tensor | None] = {}
        for group, _, inputs in reading:
            if group.prefix in self.stood_in:
                some, tokens = lacking_tokens(seen, inputs["has_media"])
                found |= {group.prefix: tokens} if some else {}
        return found

    def check_packing(self, use_cache: bool | None, past_key_values: Cache | None, is_causal: bool) -> None:
        """Raise a `ValueError` for a mode that would not keep packed examples apart."""
        if use_cache or past_key_values is not None or not is_causal:
            raise ValueError(
                "A row holds several packed examples (position_ids start again at 0), which have no cache and no "
                "bidirectional mode. Pass use_cache=False and no past_key_values, or one example a row."
            )
        if "flash" in (self.config._attn_implementation or ""):
            raise ValueError(
                "Packed examples are kept apart by a mask, which flash attention does not take. Load the model with "
                "attn_implementation='sdpa' or 'flex_attention'."
            )

    def first_of_step(
        self,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache,
        past_length: int | torch.Tensor,
    ) -> int | None:
        """
        Return the index of the first token that a decoding step sees, if it sees all behind it and needs no mask.

        That holds for one new token a row, as here, and a cache that grows; see [`masks.first_visible`]. A mask is
        read on a CPU alone: elsewhere each step would wait for the device, which makes a mask as fast.
        """
        is_static = not isinstance(past_length, int) or getattr(past_key_values, "is_compileable", False)
        if is_static or is_torchdynamo_compiling() or self.config._attn_implementation not in ("sdpa", "eager"):
            return None
        if attention_mask is None:
            return 0
        is_whole = attention_mask.ndim == 2 and attention_mask.shape[1] == past_length + 1
        return first_visible(attention_mask) if is_whole and attention_mask.device.type == "cpu" else None

    def embed_positions(
        self,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        past_length: int | torch.Tensor,
        num_hidden: int = 0,
    ) -> torch.Tensor:
        """
        Return the encoding of given positions, or of those that count the real tokens, (B, L, D) or (1, L, D).

        Args:
            num_hidden: tokens in the cache that have no position, beside those that the mask hides
        """
        length, is_given = inputs_embeds.shape[1], position_ids is not None
        if position_ids is None:
            position_ids = text_positions(attention_mask, length, past_length - num_hidden, inputs_embeds.device)
        if self.wpe is None:
            return sinusoidal_positions(position_ids, inputs_embeds.shape[2]).to(inputs_embeds)
        if not is_torchdynamo_compiling():
            starts = isinstance(past_length, int) and past_length == 0
            # Padding only makes positions smaller: those that we counted are read only if a row might be too long.
            if (is_given and starts) or past_length + length > self.wpe.num_embeddings:
                check_positions(position_ids, self.wpe.num_embeddings)
        return self.wpe(position_ids).to(inputs_embeds)

    def text_mask(
        self,
        position_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        past_key_values: Cache | None,
        is_causal: bool,
        examples: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Return the mask of self-attention; position ids that restart separate examples packed into one row."""
        is_padded = False
        if attention_mask is not None and attention_mask.ndim == 2 and not is_torchdynamo_compiling():
            is_padded = not read_once("full", attention_mask.all(), attention_mask)
            if not is_padded:
                attention_mask = position_ids = None
        if not is_causal:
            return create_bidirectional_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                allow_is_bidirectional_skip=not is_padded,
            )
        return create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids if examples is None else None,
            and_mask_function=None if examples is None else same_example(examples),
            allow_is_causal_skip=not is_padded,  # known to be padded: transformers need not read the mask again
        )

    def cross_attention_inputs(
        self,
        prefix: str,
        hidden_states: torch.Tensor,
        media_mask: torch.Tensor | None,
        media_index: torch.Tensor | None,
        past_key_values: Cache | None,
        past_length: int | torch.Tensor,
        will_decode: bool,
        examples: torch.Tensor | None,
    ) -> dict[str, Any]:
        """Return what the blocks of a group need beside its media, new and cached; nothing without any."""
        media_cache = CrossAttentionCache.of(past_key_values, past_length, prefix)
        length, device = hidden_states.shape[1], hidden_states.device
        is_new = media_mask is not None and media_index is not None
        if is_new:
            mask, index = media_mask.to(device), media_index.to(device) + past_length
            media_cache = CrossAttentionCache(mask, index) if media_cache is None else media_cache.extend(mask, index)
        if media_cache is None:
            return {}
        if past_key_values is not None:
            media_cache.put_on(past_key_values, prefix)
        implementation = self.config._attn_implementation
        if implementation is not None and "flash" in implementation:
            implementation = "sdpa"  # flash kernels take no mask as cross-attention needs; it is short anyway
        how = {"dtype": hidden_states.dtype, "boolean": implementation == "sdpa"}
        masks: tuple[torch.Tensor | None, torch.Tensor | None]
        if is_new:
            query_index = torch.arange(length, device=device) + past_length
            visible = media_cache.mask[:, None] & (media_cache.index[:, None] <= query_index[:, None])  # (B, L, S)
            if examples is not None:
                place = media_cache.index.clamp(max=length - 1)  # that of padding is behind the row
                visible &= examples.gather(1, place.expand(len(examples), -1))[:, None] == examples[..., None]
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
