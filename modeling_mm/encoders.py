# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Encoders of transformers: how to build one, call it, and read its output as tokens with a mask."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import is_torchdynamo_compiling

from .compat import nearest_attention, rename_published_weights
from .encoder_padding import (
    check_frames,
    encode_by_length,
    encoder_arguments,
    find_padding_rule,
    padding_rule,
    token_mask,
)
from .encoder_shapes import check_arguments, encoder_class_of, item_dimensions, minimum_samples, parameters_of
from .feature_layers import merge_layers
from .modalities import MODALITIES, Modality

# Shape legend: N items (images or windows), T frames or samples, L encoder tokens, W the encoder's width.

# What no token depends on: it never gets a gradient, which would break distributed training. Norms of the pooled
# output, masks of pretraining, the Conformer's unused convolution of positions, and what CLAP fuses crops of longer
# audio with.
# `turn_off_unused` does the same by config fields where there are any.
UNUSED = {
    "clip_vision_model": ("post_layernorm",),
    "convnext": ("layernorm",),
    "convnextv2": ("layernorm",),
    "dinov2_with_registers": ("embeddings.mask_token",),
    "dinov3_vit": ("embeddings.mask_token",),
    "wav2vec2-conformer": ("encoder.pos_conv_embed",),
    "clap_audio_model": ("audio_encoder.patch_embed.fusion_model", "audio_encoder.patch_embed.mel_conv2d"),
}
# The same as a config field, `vision_use_head`.
POOLING_HEADS = ("siglip_vision_model", "siglip2_vision_model")
# Raw-wave encoders are published with random masking, which fails on audio shorter than a mask, and random layer drop.
# Parameters used at random break distributed training, and augmentation belongs to the data.
RANDOM_IN_TRAINING = {"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def build_encoder(
    modality: Modality, config: PreTrainedConfig | None, layers: Sequence[int] | None = None
) -> PreTrainedModel | None:
    """
    Build an encoder with random weights, without modules that only pooling uses and without random masking.

    Args:
        config: of the encoder, which shares it; `None` for no encoder
        layers: hidden states that tokens are made of, see [`merge_layers`]; by default the last state alone

    Raises:
        ValueError: if transformers has no model for the config, or one with another kind of input.
    """
    if config is None:
        return None
    encoder_class = encoder_class_of(config)
    if encoder_class.main_input_name not in modality.inputs:
        raise ValueError(
            f"{modality.config_field} is a {type(config).__name__}, whose {encoder_class.__name__} reads "
            f"{encoder_class.main_input_name}; expected an encoder of {' or '.join(modality.inputs)}."
        )
    check_arguments(encoder_class, modality.config_field)
    turn_off_unused(config)
    config._attn_implementation = nearest_attention(encoder_class, config._attn_implementation)
    takes_pooling = "add_pooling_layer" in inspect.signature(encoder_class.__init__).parameters
    encoder = encoder_class(config, **({"add_pooling_layer": False} if takes_pooling else {}))
    for path in UNUSED.get(config.model_type, ()):
        drop_unused(encoder, path)
    hold_constants(encoder)
    encoder.padding_rule = find_padding_rule(encoder)
    encoder.feature_layers = layers
    encoder.register_load_state_dict_pre_hook(take_published_names)
    return encoder


def hold_constants(encoder: PreTrainedModel) -> None:
    """
    Make buffers of the parameters that an encoder's class has frozen, such as Whisper's table of positions.

    `from_pretrained` replaces parameters by new, trainable ones, so that training would move them.
    """
    constants = [(path, parameter) for path, parameter in encoder.named_parameters() if not parameter.requires_grad]
    for path, parameter in constants:
        parent_path, _, name = path.rpartition(".")
        parent = encoder.get_submodule(parent_path)
        delattr(parent, name)
        parent.register_buffer(name, parameter.detach())
    if constants:
        encoder._init_weights(encoder)  # buffers must be right as soon as they are there, as no checkpoint may follow


def drop_unused(encoder: PreTrainedModel, path: str) -> None:
    """Replace a module by none, and a parameter, which a forward may name, by a buffer of the same values."""
    parent_path, _, name = path.rpartition(".")
    parent = encoder.get_submodule(parent_path)
    unused = getattr(parent, name, None)
    if isinstance(unused, nn.Module):
        setattr(parent, name, nn.Identity())
    elif unused is not None:
        delattr(parent, name)
        parent.register_buffer(name, unused.detach())


def turn_off_unused(config: PreTrainedConfig) -> None:
    """Write into an encoder's config what ours does without, so that a reload builds the same encoder."""
    if config.model_type in POOLING_HEADS:
        config.vision_use_head = False
    if getattr(config, "use_mask_token", False):
        config.use_mask_token = False
    if hasattr(config, "layerdrop"):
        for field, value in RANDOM_IN_TRAINING.items():
            if hasattr(config, field):
                setattr(config, field, value)


def take_published_names(encoder: PreTrainedModel, state_dict: dict, prefix: str, *args: object) -> None:
    """
    Rename weights in a state dict from the names of published checkpoints to the encoder's, before it is loaded.

    `save_pretrained` writes some encoders, such as ViT, under published names, and `from_pretrained` translates them.
    A `Trainer` that resumes or loads its best checkpoint calls `load_state_dict`, which would skip those weights.
    """
    own = {name for name, _ in encoder.named_parameters(remove_duplicate=False)}
    own |= {name for name, _ in encoder.named_buffers(remove_duplicate=False)}
    names = sorted(key.removeprefix(prefix) for key in state_dict if key.startswith(prefix))
    foreign = {name: state_dict.pop(prefix + name) for name in names if name not in own}
    if foreign:
        renamed = rename_published_weights(encoder, foreign)
        state_dict.update({prefix + name: weight for name, weight in renamed.items()})


def is_sharded(module: nn.Module) -> bool:
    """Return whether weights are spread over processes (FSDP, FSDP2, ZeRO-3), which must then use them together."""
    if any(hasattr(p, "device_mesh") or hasattr(p, "ds_id") for p in parameters_of(module)):
        return True
    return any(type(part).__name__ == "FullyShardedDataParallel" for part in module.modules())


def encode(
    encoder: PreTrainedModel, items: torch.Tensor, frame_mask: torch.Tensor | None = None, **kwargs: bool
) -> tuple[BaseModelOutput, torch.Tensor, torch.Tensor]:
    """
    Call an encoder on real items and read its output as tokens.

    Args:
        items: (N, 3, H, W), (N, n_mels, T), (N, T, n_mels) or (N, T), in any floating dtype
        frame_mask: (N, T) bool, which frames or samples are real, padded on the right
        **kwargs: `output_hidden_states`, `output_attentions`

    Returns:
        the encoder's output, with the tokens as `last_hidden_state`; the tokens (N, L, W); and which of them belong to
        real frames, (N, L) bool.
    """
    call, arguments, needs_grad = prepare_call(encoder, items, frame_mask)
    with torch.set_grad_enabled(needs_grad):
        output = call(**{**kwargs, **arguments})
    output.last_hidden_state, mask = read_tokens(encoder, output, frame_mask)
    return output, output.last_hidden_state, mask


def prepare_call(
    encoder: PreTrainedModel, items: torch.Tensor, frame_mask: torch.Tensor | None = None
) -> tuple[Callable[..., BaseModelOutput], dict[str, Any], bool]:
    """
    Return what to call for the items of [`encode`], its arguments, and whether to record gradients.

    It is the encoder, so that the caller calls it directly, or `encode_by_length` for audio encoders whose states
    would change with the padding in spite of a mask: group norms, for one, normalize over the whole padded length.

    Raises:
        ValueError: for windows of another shape than the encoder reads, and for batch norms in training in a compiled
            graph.
    """
    check_frames(encoder, items)
    if is_torchdynamo_compiling() and any(isinstance(m, BATCH_NORMS) and m.training for m in encoder.modules()):
        refuse_statistics(type(encoder).__name__)
    dtype, learns = None, False
    for parameter in parameters_of(encoder):
        dtype = parameter.dtype if dtype is None and parameter.is_floating_point() else dtype
        learns = learns or parameter.requires_grad
        if learns and dtype is not None:
            break
    needs_grad = learns and torch.is_grad_enabled()
    rule, items = padding_rule(encoder), items.to(dtype)
    if rule != "window" and item_dimensions(encoder) == 1:
        items, frame_mask = lengthen(items, frame_mask, minimum_samples(encoder))
    arguments = {**encoder_arguments(encoder, items), "return_dict": True}
    if getattr(encoder, "feature_layers", None) is not None:
        arguments["output_hidden_states"] = True
    if rule == "window" or frame_mask is None:
        return encoder, arguments, needs_grad
    if rule == "mask":
        return encoder, {**arguments, "attention_mask": frame_mask.long()}, needs_grad
    lengths = frame_mask.sum(-1).tolist()
    if min(lengths) == frame_mask.shape[1]:
        return encoder, arguments, needs_grad
    return partial(encode_by_length, encoder, lengths), arguments, needs_grad


def lengthen(waves: torch.Tensor, mask: torch.Tensor | None, samples: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Pad waves (N, T) with silence to the samples that one token needs.

    In a longer batch a shorter wave takes as much of the padding behind it: its mask (N, T) is widened.
    """
    if (missing := samples - waves.shape[1]) > 0:
        waves = nn.functional.pad(waves, (0, missing))
        mask = None if mask is None else nn.functional.pad(mask, (0, missing))
    if mask is None:
        return waves, None
    index = torch.arange(mask.shape[1], device=mask.device)
    return waves, mask | (mask.any(-1, keepdim=True) & (index < samples))


@torch.compiler.disable(reason="batch norm in training: freeze the encoder, or compile the decoder alone")
def refuse_statistics(name: str) -> None:
    """
    Raise a `ValueError` for batch norms in training; outside the graph, which would hide it.

    A compiled graph encodes the padding among the items too and masks it later: its shapes cannot depend on values.
    """
    freeze = " or ".join(f"config.{modality.freeze_field}" for modality in MODALITIES.values())
    raise ValueError(
        f"{name} has batch norms that are in training. Compiled, it would take its statistics over the padding among "
        f"images or windows too. Freeze it ({freeze}, `frozen: {{vision: always}}` in a recipe), or compile the "
        "decoder alone: model.model.language_model.compile()."
    )


def read_tokens(
    encoder: PreTrainedModel, output: BaseModelOutput, frame_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return an encoder's output as tokens (N, L, W), and which of them belong to real frames, (N, L) bool.

    Feature maps (N, W, h, w) are read row by row. Of an encoder with `feature_layers` these make the tokens.

    Raises:
        ValueError: if there is no `last_hidden_state`, or one of another shape; of windows, for `feature_layers` with
            another number of tokens, which no mask of frames would fit.
    """
    name, layers = type(encoder).__name__, getattr(encoder, "feature_layers", None)
    states = getattr(output, "last_hidden_state", None)
    if layers is not None:
        last, states = states, merge_layers(getattr(output, "hidden_states", None), layers, name)
        if frame_mask is not None and last is not None:
            # Of maps (N, W, h, w) or tokens (N, L, W).
            count = last[0, 0].numel() if last.ndim == 4 else last.shape[1]
            if count != states.shape[1]:
                raise ValueError(
                    f"feature_layers names hidden states {list(layers)} of {name}, which have {states.shape[1]} "
                    f"tokens a window, where its last state has {count}. Name layers with as many."
                )
    if states is None:
        raise ValueError(
            f"{name} returned no last_hidden_state (it returned {', '.join(output)}). An encoder must return token "
            "states (N, L, W) or feature maps (N, W, h, w) under that name; use the encoder's base model."
        )
    if states.ndim == 4:
        states = states.flatten(2).transpose(1, 2)  # (N, W, h, w) -> (N, h * w, W)
    if states.ndim != 3:
        raise ValueError(
            f"{name} returned a last_hidden_state of shape {tuple(states.shape)}; expected (N, L, W) or (N, W, h, w)."
        )
    return states, token_mask(encoder, frame_mask, states, getattr(output, "attention_mask", None))
