# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Any vision or audio encoder of transformers: how it is built, fed, and read as tokens with a mask."""

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

from .compat import auto_model_class, downsampled_lengths, rename_published_weights, supports_attention
from .modalities import MODALITIES

# Shape legend: N items (images or windows), T frames or samples, L encoder tokens, W the encoder's width.

# Parameters that only the pooled output uses. They would never get a gradient from ours, which breaks distributed
# training and wastes memory, so encoders are built without them.
POOLING_ONLY = {"clip_vision_model": "post_layernorm", "convnext": "layernorm", "convnextv2": "layernorm"}
# Likewise, as fields of the config.
POOLING_HEADS = ("siglip_vision_model", "siglip2_vision_model")
# What raw-wave encoders do at random in training by their published configs: they mask stretches (and raise on sounds
# shorter than one), and drop layers. Parameters used by chance break distributed training, and augmentation belongs to
# the data, where it can be seen.
RANDOM_IN_TRAINING = {"apply_spec_augment": False, "mask_time_prob": 0.0, "mask_feature_prob": 0.0, "layerdrop": 0.0}
WIDTH_FIELDS = ("hidden_size", "d_model", "hidden_sizes", "hidden_dim", "embed_dim", "num_features")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
SPECTROGRAM_ENCODERS = ("audio-spectrogram-transformer",)


def build_encoder(field: str, config: PreTrainedConfig | None) -> PreTrainedModel | None:
    """
    The encoder's own class with random weights, sharing `config`, without parts that only pooling uses and without
    random masking; `None` without a config.

    Args:
        field: `"vision_config"` or `"audio_config"`, what the config was given as

    Raises:
        ValueError: where transformers knows no model for the config, or one that takes another kind of input.
    """
    if config is None:
        return None
    encoder_class = encoder_class_of(config)
    names = next(modality.inputs for modality in MODALITIES.values() if modality.config_field == field)
    if encoder_class.main_input_name not in names:
        raise ValueError(
            f"{field} is a {type(config).__name__}, whose {encoder_class.__name__} reads "
            f"{encoder_class.main_input_name}; expected an encoder of {' or '.join(names)}."
        )
    turn_off_unused(config)
    config._attn_implementation = supported_attention(encoder_class, config._attn_implementation)
    kwargs = {}
    if "add_pooling_layer" in inspect.signature(encoder_class.__init__).parameters:
        kwargs["add_pooling_layer"] = False
    encoder = encoder_class(config, **kwargs)
    if (name := POOLING_ONLY.get(config.model_type)) is not None:
        setattr(encoder, name, nn.Identity())
    encoder.register_load_state_dict_pre_hook(understand_published_names)
    return encoder


def understand_published_names(encoder: PreTrainedModel, state_dict: dict, prefix: str, *args) -> None:
    """
    A hook before `load_state_dict`: weights under the names of published checkpoints are put under the encoder's own.

    `save_pretrained` writes some encoders (ViT among them) under those names, which every version of transformers
    reads, and `from_pretrained` translates them. A `Trainer` that resumes, or takes up its best checkpoint, calls
    `load_state_dict`, which would go on without those weights.
    """
    own = {name for name, _ in encoder.named_parameters(remove_duplicate=False)}
    own |= {name for name, _ in encoder.named_buffers(remove_duplicate=False)}
    names = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
    foreign = {name: state_dict.pop(prefix + name) for name in sorted(names) if name not in own}
    if foreign:
        state_dict.update(
            {prefix + name: weight for name, weight in rename_published_weights(encoder, foreign).items()}
        )


def supported_attention(encoder_class: type[PreTrainedModel], implementation: str | None) -> str | None:
    """
    The attention implementation that was asked for, or the nearest that the encoder has: what is asked of the whole
    model is meant for the decoder, and a CNN among the encoders must not forbid it.
    """
    if supports_attention(encoder_class, implementation):
        return implementation
    return "sdpa" if supports_attention(encoder_class, "sdpa") else "eager"


def turn_off_unused(config: PreTrainedConfig) -> None:
    """Writes into an encoder's config what ours does without, so that a reload builds the same encoder."""
    if config.model_type in POOLING_HEADS:
        config.vision_use_head = False
    if getattr(config, "use_mask_token", False):
        config.use_mask_token = False
    if hasattr(config, "conv_kernel"):
        for field, value in RANDOM_IN_TRAINING.items():
            setattr(config, field, value)


def encoder_class_of(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The model class of a config; of an encoder-decoder, the class of its encoder."""
    model_class = auto_model_class(config)
    if model_class is None:
        raise ValueError(f"transformers has no AutoModel class for an encoder config of type {type(config).__name__}.")
    return encoder_half(model_class, type(config)) if config.is_encoder_decoder else model_class  # type: ignore[arg-type]


@cache
def encoder_half(model_class: type[PreTrainedModel], config_class: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """The class of an encoder-decoder's encoder, from a model of default size without weights."""
    with torch.device("meta"):
        return type(model_class(config_class()).get_encoder())


def encoder_width(config: PreTrainedConfig) -> int:
    """
    The size of an encoder's token, W.

    Raises:
        ValueError: where the config has none of the usual fields.
    """
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


def is_raw_wave(encoder: PreTrainedModel) -> bool:
    return encoder.main_input_name == "input_values" and encoder.config.model_type not in SPECTROGRAM_ENCODERS


def dummy_item(encoder: PreTrainedModel, device: torch.device) -> torch.Tensor:
    """One item of silence or black, (1, ...), for a rank that must run the encoder though it has no media."""
    config = encoder.config
    if encoder.main_input_name == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        shape: tuple[int, ...] = (getattr(config, "num_channels", 3), height, width)
    elif is_raw_wave(encoder):
        shape = (minimum_samples(config),)
    elif encoder.main_input_name == "input_values":
        shape = (config.max_length, config.num_mel_bins)
    else:
        shape = (config.num_mel_bins, 2 * getattr(config, "max_source_positions", 1500))
    return torch.zeros(1, *shape, dtype=dtype_of(encoder), device=device)


def parameters_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """Yield a module's parameters, also those of a `DataParallel` replica, which `parameters()` does not list."""
    yield from module.parameters()
    if getattr(module, "_is_replica", False):
        for child in module.modules():
            yield from getattr(child, "_former_parameters", {}).values()


def dtype_of(module: nn.Module) -> torch.dtype:
    return next(p.dtype for p in parameters_of(module) if p.is_floating_point())


def is_sharded(module: nn.Module) -> bool:
    """Whether weights are spread over processes (FSDP, FSDP2, ZeRO-3), so that to use them takes all of them."""
    if any(hasattr(p, "device_mesh") or hasattr(p, "ds_id") for p in parameters_of(module)):
        return True
    return any(type(part).__name__ == "FullyShardedDataParallel" for part in module.modules())


def minimum_samples(config: PreTrainedConfig) -> int:
    """The receptive field of one token of a raw-wave encoder, in samples: shorter sounds give it no token at all."""
    samples = 1
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def encode(
    encoder: PreTrainedModel, items: torch.Tensor, frame_mask: torch.Tensor | None = None, **kwargs
) -> tuple[BaseModelOutput, torch.Tensor, torch.Tensor]:
    """
    Run an encoder over real items and read its output as tokens.

    Args:
        items: (N, 3, H, W), (N, n_mels, T), (N, T, n_mels) or (N, T), in any floating dtype
        frame_mask: (N, T) bool, which frames or samples are real; audio only, padded on the right
        **kwargs: `output_hidden_states`, `output_attentions`

    Returns:
        the encoder's output, with `last_hidden_state` as tokens (N, L, W); the tokens; and which of them belong to
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
    Return what to call for real items, its arguments, and whether to record gradients: frozen encoders need none.

    It is the encoder, so that the caller calls it directly, or `encode_by_length` for raw-wave encoders whose outputs
    would change with the padding. Those with layer norm take a mask. Those with group norm normalize over the whole
    padded length, before a mask has any effect: waves of equal length go together there, without padding.

    Args:
        items, frame_mask: see [`encode`]

    Raises:
        ValueError: for windows that are not as long as an encoder with a fixed window, Whisper's, demands, and for a
            compiled encoder that learns from the statistics of a batch.
    """
    name, config = encoder.main_input_name, encoder.config
    positions = getattr(config, "max_source_positions", None)
    if name == "input_features" and positions is not None and hasattr(encoder, "conv2"):
        expected = positions * encoder.conv1.stride[0] * encoder.conv2.stride[0]
        if items.shape[-1] != expected:
            raise ValueError(
                f"Every window of input_features must have {expected} frames for {type(encoder).__name__}, got "
                f"{items.shape[-1]}. Cut longer audio into several windows, each with its placeholder, and pad "
                "shorter ones; MMProcessor does both when its feature extractor's chunk_length fits the encoder."
            )
    if is_torchdynamo_compiling() and learns_statistics(encoder):
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
    sample_mask = at_least(encoder, frame_mask)
    if getattr(config, "feat_extract_norm", "layer") == "layer":
        return encoder, {**arguments, "attention_mask": sample_mask.long()}, needs_grad
    lengths = sample_mask.sum(-1).tolist()
    if min(lengths) == sample_mask.shape[1]:
        return encoder, arguments, needs_grad
    return partial(encode_by_length, encoder, lengths=lengths), arguments, needs_grad


def learns_statistics(encoder: PreTrainedModel) -> bool:
    """Whether it normalizes by its batch now, and remembers it: batch norms in training do."""
    return any(isinstance(module, BATCH_NORMS) and module.training for module in encoder.modules())


@torch.compiler.disable(reason="batch norm in training: freeze the encoder, or compile the decoder alone")
def refuse_statistics(name: str) -> None:
    """
    A compiled graph encodes absent items too, as its shapes cannot hang on how many are real, and masks them later: a
    batch norm would have mixed them with the real ones by then. Outside the graph, so that it is raised as it is.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"{name} has batch norms that are in training. Compiled, it would take its statistics over the padding among "
        "images or windows too. Freeze it (config.freeze_vision or freeze_audio, `frozen: {vision: always}` in a "
        "recipe), or compile the decoder alone: model.model.language_model.compile()."
    )


def encode_by_length(
    encoder: PreTrainedModel, input_values: torch.Tensor, lengths: list[int], **kwargs
) -> BaseModelOutput:
    """Encode waves (N, T) of equal length together, without padding; pad the tokens with zeros, (N, L, W)."""
    tokens: list[torch.Tensor] = [input_values] * len(lengths)
    for length in set(lengths):
        rows = [row for row, own_length in enumerate(lengths) if own_length == length]
        states = encoder(input_values[rows, :length], **kwargs).last_hidden_state
        for row, state in zip(rows, states, strict=True):
            tokens[row] = state
    return BaseModelOutput(last_hidden_state=nn.utils.rnn.pad_sequence(tokens, batch_first=True))


def at_least(encoder: PreTrainedModel, sample_mask: torch.Tensor) -> torch.Tensor:
    """The mask (N, T), with as much of the silence behind a very short sound as the encoder needs for one token."""
    real = sample_mask.any(-1, keepdim=True)
    index = torch.arange(sample_mask.shape[1], device=sample_mask.device)
    return sample_mask | (real & (index < minimum_samples(encoder.config)))


def read_tokens(
    encoder: PreTrainedModel, output: BaseModelOutput, frame_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the encoder's `last_hidden_state` as tokens (N, L, W), and which of them belong to real frames, (N, L) bool.
    Feature maps (N, W, h, w) are read row by row.

    Raises:
        ValueError: if there is no such state, or one of another shape.
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
    """
    Carries a frame mask (N, T) through the encoder's own downsampling to its tokens (N, L).

    A window with any real frame keeps at least one token, so that it can be seen at all.
    """
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
    """
    AST's tokens are two summary tokens, then patches by frequency and time; a patch is real if its first frame is.

    Args:
        frame_mask: (N, T) bool

    Returns:
        (N, L) bool
    """
    starts = torch.arange(0, config.max_length - config.patch_size + 1, config.time_stride, device=frame_mask.device)
    columns = frame_mask[:, starts]  # (N, columns)
    num_rows = (num_tokens - 2) // len(starts)
    patches = columns.repeat(1, num_rows)  # (N, rows * columns)
    summary = frame_mask.any(-1, keepdim=True).expand(-1, 2)
    return torch.cat([summary, patches], dim=1)
