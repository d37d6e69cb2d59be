# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Encoders of transformers: how to build one, call it, and read its output as tokens with a mask."""

import inspect
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import is_torchdynamo_compiling

from .compat import auto_model_class, downsampled_lengths, nearest_attention, rename_published_weights
from .modalities import MODALITIES, Modality

# Shape legend: N items (images or windows), T frames or samples, L encoder tokens, W the encoder's width.

# Modules that only the pooled output uses, which we never read: without gradients they break distributed training.
POOLING_ONLY = {"clip_vision_model": "post_layernorm", "convnext": "layernorm", "convnextv2": "layernorm"}
# The same as a config field, `vision_use_head`.
POOLING_HEADS = ("siglip_vision_model", "siglip2_vision_model")
# Raw-wave encoders are published with random masking, which fails on audio shorter than a mask, and random layer drop.
# Parameters used at random break distributed training, and augmentation belongs to the data.
RANDOM_IN_TRAINING = {"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0}
WIDTH_FIELDS = ("hidden_size", "d_model", "hidden_sizes", "hidden_dim", "embed_dim", "num_features")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Encoders whose `input_values` are spectrograms, not samples.
SPECTROGRAM_ENCODERS = ("audio-spectrogram-transformer",)


def build_encoder(modality: Modality, config: PreTrainedConfig | None) -> PreTrainedModel | None:
    """
    Build an encoder with random weights, without modules that only pooling uses and without random masking.

    Args:
        config: of the encoder, which shares it; `None` for no encoder

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
    turn_off_unused(config)
    config._attn_implementation = nearest_attention(encoder_class, config._attn_implementation)
    takes_pooling = "add_pooling_layer" in inspect.signature(encoder_class.__init__).parameters
    encoder = encoder_class(config, **({"add_pooling_layer": False} if takes_pooling else {}))
    if (name := POOLING_ONLY.get(config.model_type)) is not None:
        setattr(encoder, name, nn.Identity())
    encoder.register_load_state_dict_pre_hook(take_published_names)
    return encoder


def turn_off_unused(config: PreTrainedConfig) -> None:
    """Write into an encoder's config what ours does without, so that a reload builds the same encoder."""
    if config.model_type in POOLING_HEADS:
        config.vision_use_head = False
    if getattr(config, "use_mask_token", False):
        config.use_mask_token = False
    if hasattr(config, "conv_kernel"):
        for field, value in RANDOM_IN_TRAINING.items():
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


def encoder_class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the model class of a config; of an encoder-decoder, the class of its encoder."""
    model_class = auto_model_class(config)
    if model_class is None:
        raise ValueError(f"transformers has no AutoModel class for an encoder config of type {type(config).__name__}.")
    return encoder_half(model_class, type(config)) if config.is_encoder_decoder else model_class  # type: ignore[arg-type]


@cache
def encoder_half(model_class: type[PreTrainedModel], config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """Return the class of an encoder-decoder's encoder, from a model of default size without weights."""
    with torch.device("meta"):
        return type(model_class(config_class()).get_encoder())


def encoder_width(config: PreTrainedConfig) -> int:
    """Return the size of an encoder's token, W; raise a `ValueError` if the config has none of the usual fields."""
    for field in WIDTH_FIELDS:
        width = getattr(config, field, None)
        if isinstance(width, (list, tuple)) and width:
            width = width[-1]
        if isinstance(width, int):
            return width
    raise ValueError(
        f"The width of encoder {config.model_type!r} is unknown: its config has none of {', '.join(WIDTH_FIELDS)}. "
        "Set hidden_size on it to the last dimension of its last_hidden_state."
    )


def item_dimensions(encoder: PreTrainedModel) -> int:
    """Return the dimensions of one item without its batch: 3 for an image, 2 for a spectrogram, 1 for a raw wave."""
    if encoder.config.model_type in SPECTROGRAM_ENCODERS:
        return 2
    for modality in MODALITIES.values():
        if encoder.main_input_name in modality.inputs:
            return modality.dimensions[modality.inputs.index(encoder.main_input_name)]
    raise ValueError(f"No modality has an input named {encoder.main_input_name}, as {type(encoder).__name__} reads.")


def dummy_item(encoder: PreTrainedModel, device: torch.device) -> torch.Tensor:
    """Return an item of zeros, (1, ...), for a process that must run the encoder without media."""
    config, dimensions = encoder.config, item_dimensions(encoder)
    shape: tuple[int, ...]
    if encoder.main_input_name in encoder.dummy_inputs:
        shape = encoder.dummy_inputs[encoder.main_input_name].shape[1:]
    elif dimensions == 3:
        size = getattr(config, "image_size", 224)
        shape = (getattr(config, "num_channels", 3), *((size, size) if isinstance(size, int) else size))
    elif dimensions == 1:
        shape = (minimum_samples(config),)
    elif config.model_type in SPECTROGRAM_ENCODERS:
        shape = (config.max_length, config.num_mel_bins)
    else:
        shape = (config.num_mel_bins, 2 * getattr(config, "max_source_positions", 1500))
    return torch.zeros(1, *shape, dtype=dtype_of(encoder), device=device)


def minimum_samples(config: PreTrainedConfig) -> int:
    """Return the receptive field of one token of a raw-wave encoder, in samples: shorter waves give no token."""
    samples = 1
    strides = zip(getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ()), strict=True)
    for kernel, stride in reversed(list(strides)):
        samples = (samples - 1) * stride + kernel
    return samples


def parameters_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield a module's parameters, also those of a `DataParallel` replica, which `parameters()` does not list."""
    yield from module.parameters()
    for child in module.modules() if getattr(module, "_is_replica", False) else ():
        yield from getattr(child, "_former_parameters", {}).values()


def dtype_of(*modules: nn.Module) -> torch.dtype:
    """Return the floating type of the first of these modules that has any: a `direct` connector may have none."""
    return next(p.dtype for module in modules for p in parameters_of(module) if p.is_floating_point())


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
        output = call(**arguments, **kwargs)
    output.last_hidden_state, mask = read_tokens(encoder, output, frame_mask)
    return output, output.last_hidden_state, mask


def prepare_call(
    encoder: PreTrainedModel, items: torch.Tensor, frame_mask: torch.Tensor | None = None
) -> tuple[Callable[..., BaseModelOutput], dict[str, Any], bool]:
    """
    Return what to call for the items of [`encode`], its arguments, and whether to record gradients.

    It is the encoder, so that the caller calls it directly, or `encode_by_length` for raw-wave encoders whose outputs
    would change with the padding. Those with layer norm take a mask. Those with group norm normalize over the whole
    padded length, before a mask has any effect: waves of equal length go together there, without padding.

    Raises:
        ValueError: for windows unlike the fixed one of Whisper, and for batch norms in training in a compiled graph.
    """
    name, config = encoder.main_input_name, encoder.config
    positions = getattr(config, "max_source_positions", None)
    if name == "input_features" and positions is not None and hasattr(encoder, "conv2"):
        expected = positions * encoder.conv1.stride[0] * encoder.conv2.stride[0]
        if items.shape[-1] != expected:
            raise ValueError(
                f"Every window of {name} must have {expected} frames for {type(encoder).__name__}, got "
                f"{items.shape[-1]}. Cut longer audio into several windows, each with its placeholder, and pad "
                "shorter ones; MMProcessor does both when its feature extractor's chunk_length fits the encoder."
            )
    if is_torchdynamo_compiling() and any(isinstance(m, BATCH_NORMS) and m.training for m in encoder.modules()):
        refuse_statistics(type(encoder).__name__)
    dtype, learns = None, False
    for parameter in parameters_of(encoder):
        dtype = parameter.dtype if dtype is None and parameter.is_floating_point() else dtype
        learns = learns or parameter.requires_grad
        if learns and dtype is not None:
            break
    needs_grad = learns and torch.is_grad_enabled()
    arguments: dict[str, Any] = {name: items.to(dtype), "return_dict": True}
    if item_dimensions(encoder) > 1:
        return encoder, arguments, needs_grad
    missing = minimum_samples(config) - items.shape[1]
    if missing > 0:
        arguments[name] = nn.functional.pad(arguments[name], (0, missing))
        frame_mask = None if frame_mask is None else nn.functional.pad(frame_mask, (0, missing))
    if frame_mask is None:
        return encoder, arguments, needs_grad
    # A very short wave takes as much of the padding behind it as the encoder needs for one token.
    index = torch.arange(frame_mask.shape[1], device=frame_mask.device)
    frame_mask = frame_mask | (frame_mask.any(-1, keepdim=True) & (index < minimum_samples(config)))
    if hasattr(config, "conv_kernel") and getattr(config, "feat_extract_norm", "layer") == "layer":
        return encoder, {**arguments, "attention_mask": frame_mask.long()}, needs_grad
    lengths = frame_mask.sum(-1).tolist()
    if min(lengths) == frame_mask.shape[1]:
        return encoder, arguments, needs_grad
    return partial(encode_by_length, encoder, lengths), arguments, needs_grad


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


def encode_by_length(encoder: PreTrainedModel, lengths: list[int], **arguments: Any) -> BaseModelOutput:
    """Encode waves (N, T) of equal length together, without padding; pad the tokens with zeros, (N, L, W)."""
    waves = arguments.pop(encoder.main_input_name)
    tokens: list[torch.Tensor] = [waves] * len(lengths)
    for length in set(lengths):
        rows = [row for row, own_length in enumerate(lengths) if own_length == length]
        states = encoder(**{encoder.main_input_name: waves[rows, :length]}, **arguments).last_hidden_state
        for row, state in zip(rows, states, strict=True):
            tokens[row] = state
    return BaseModelOutput(last_hidden_state=nn.utils.rnn.pad_sequence(tokens, batch_first=True))


def read_tokens(
    encoder: PreTrainedModel, output: BaseModelOutput, frame_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return an encoder's output as tokens (N, L, W), and which of them belong to real frames, (N, L) bool.

    Feature maps (N, W, h, w) are read row by row.

    Raises:
        ValueError: if there is no `last_hidden_state`, or one of another shape.
    """
    states = getattr(output, "last_hidden_state", None)
    name = type(encoder).__name__
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
    return states, token_mask(encoder, frame_mask, states)


def token_mask(encoder: PreTrainedModel, frame_mask: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
    """Carry a frame mask (N, T) through the encoder's downsampling to tokens (N, L), at least one of a real window."""
    num_items, num_tokens = tokens.shape[:2]
    if frame_mask is None:
        return torch.ones(num_items, num_tokens, dtype=torch.bool, device=tokens.device)
    frame_mask = frame_mask.to(tokens.device)
    if encoder.config.model_type in SPECTROGRAM_ENCODERS:
        return spectrogram_token_mask(encoder.config, frame_mask, num_tokens)
    lengths = frame_mask.sum(-1)  # (N,)
    token_lengths = downsampled_lengths(encoder, lengths)
    if token_lengths is None:
        token_lengths = (lengths * num_tokens + frame_mask.shape[1] - 1) // frame_mask.shape[1]
    token_lengths = token_lengths.clamp(min=1, max=num_tokens).masked_fill(lengths == 0, 0)
    return torch.arange(num_tokens, device=tokens.device) < token_lengths[:, None]


def spectrogram_token_mask(config: PreTrainedConfig, frame_mask: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Return AST's mask (N, L): two summary tokens, then patches by frequency and time, as their first frame is."""
    starts = torch.arange(0, config.max_length - config.patch_size + 1, config.time_stride, device=frame_mask.device)
    patches = frame_mask[:, starts].repeat(1, (num_tokens - 2) // len(starts))  # (N, rows * columns)
    return torch.cat([frame_mask.any(-1, keepdim=True).expand(-1, 2), patches], dim=1)
