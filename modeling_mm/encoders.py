# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Any vision or audio encoder of transformers: how it is built, fed, and read as tokens with a mask."""

import inspect
from collections.abc import Iterator
from functools import cache

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import is_torchdynamo_compiling

from .compat import auto_model_class, downsampled_lengths, rename_published_weights, supports_attention

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
INPUT_NAMES = {"vision_config": ("pixel_values",), "audio_config": ("input_features", "input_values")}
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
    if encoder_class.main_input_name not in INPUT_NAMES[field]:
        raise ValueError(
            f"{field} is a {type(config).__name__}, whose {encoder_class.__name__} reads "
            f"{encoder_class.main_input_name}; expected an encoder of {' or '.join(INPUT_NAMES[field])}."
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
    """Dimensions of one item without its batch: 3 for a picture, 2 for a spectrogram, 1 for a raw wave."""
    if encoder.main_input_name == "pixel_values":
        return 3
    return 1 if is_raw_wave(encoder) else 2


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
    """A module's parameters, also those of a `DataParallel` replica, which `parameters()` does not list."""
    for child in module.modules():
        yield from (p for p in child._parameters.values() if p is not None)
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
    Runs an encoder over real items and reads its output as tokens.

    Args:
        items: (N, 3, H, W), (N, n_mels, T), (N, T, n_mels) or (N, T), in any floating dtype
        frame_mask: (N, T) bool, which frames or samples are real; sounds only, padded on the right
        **kwargs: `output_hidden_states`, `output_attentions`

    Returns:
        the encoder's output, with `last_hidden_state` as tokens (N, L, W); the tokens; and which of them stand for
        real frames, (N, L) bool.

    Raises:
        ValueError: for windows that do not fit, and for a compiled encoder that learns from the statistics of a batch.
    """
    check_window(encoder, items)
    if is_torchdynamo_compiling() and learns_statistics(encoder):
        refuse_statistics(type(encoder).__name__)
    items = items.to(dtype_of(encoder))
    # Frozen encoders run without autograd: nothing of theirs needs to be kept for a backward pass.
    trainable = torch.is_grad_enabled() and any(p.requires_grad for p in parameters_of(encoder))
    with torch.set_grad_enabled(trainable):
        if is_raw_wave(encoder):
            output = encode_waves(encoder, items, frame_mask, **kwargs)
        else:
            output = encoder(**{encoder.main_input_name: items}, return_dict=True, **kwargs)
    tokens = as_tokens(output, encoder)
    output.last_hidden_state = tokens
    return output, tokens, token_mask(encoder, frame_mask, tokens)


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


def check_window(encoder: PreTrainedModel, items: torch.Tensor) -> None:
    """
    Raises:
        ValueError: where windows (N, n_mels, T) are not as long as an encoder with a fixed window, Whisper's, demands.
    """
    positions = getattr(encoder.config, "max_source_positions", None)
    if encoder.main_input_name == "input_features" and positions is not None and hasattr(encoder, "conv2"):
        expected = positions * encoder.conv1.stride[0] * encoder.conv2.stride[0]
        if items.shape[-1] != expected:
            raise ValueError(
                f"Every window of input_features must have {expected} frames for {type(encoder).__name__}, got "
                f"{items.shape[-1]}. Cut longer sounds into several windows, each with its placeholder, and pad "
                "shorter ones; MMProcessor does both when its feature extractor's chunk_length fits the encoder."
            )


def encode_waves(
    encoder: PreTrainedModel, waves: torch.Tensor, sample_mask: torch.Tensor | None, **kwargs
) -> BaseModelOutput:
    """
    Raw-wave encoders, (N, T) -> output, each wave unmoved by the padding behind it.

    Encoders with layer norm take a mask. Those with group norm take statistics over the whole padded length, so that
    a mask comes too late for them: waves of equal length go together there, without their padding.
    """
    missing = minimum_samples(encoder.config) - waves.shape[1]
    if missing > 0:
        waves = nn.functional.pad(waves, (0, missing))
        sample_mask = None if sample_mask is None else nn.functional.pad(sample_mask, (0, missing))
    if sample_mask is None:
        return encoder(waves, return_dict=True, **kwargs)
    if getattr(encoder.config, "feat_extract_norm", "layer") == "layer":
        return encoder(waves, attention_mask=at_least(encoder, sample_mask).long(), return_dict=True, **kwargs)
    lengths = at_least(encoder, sample_mask).sum(-1)
    if bool((lengths == waves.shape[1]).all()):
        return encoder(waves, return_dict=True, **kwargs)
    return encode_by_length(encoder, waves, lengths, **kwargs)


def encode_by_length(
    encoder: PreTrainedModel, waves: torch.Tensor, lengths: torch.Tensor, **kwargs
) -> BaseModelOutput:
    """Waves (N, T) of equal length together, without padding; the tokens are padded with zeros again, (N, L, W)."""
    tokens: list[torch.Tensor] = [waves] * len(waves)
    longest = 0
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero().flatten()
        part = encoder(waves[rows, :length], return_dict=True, **kwargs).last_hidden_state
        longest = max(longest, part.shape[1])
        for row, states in zip(rows.tolist(), part, strict=True):
            tokens[row] = states
    padded = [nn.functional.pad(states, (0, 0, 0, longest - states.shape[0])) for states in tokens]
    return BaseModelOutput(last_hidden_state=torch.stack(padded))


def at_least(encoder: PreTrainedModel, sample_mask: torch.Tensor) -> torch.Tensor:
    """The mask (N, T), with as much of the silence behind a very short sound as the encoder needs for one token."""
    real = sample_mask.any(-1, keepdim=True)
    index = torch.arange(sample_mask.shape[1], device=sample_mask.device)
    return sample_mask | (real & (index < minimum_samples(encoder.config)))


def as_tokens(output: BaseModelOutput, encoder: PreTrainedModel) -> torch.Tensor:
    """
    The encoder's `last_hidden_state` as (N, L, W); feature maps (N, W, h, w) are read row by row.

    Raises:
        ValueError: where there is no such state, or one of another shape.
    """
    states = getattr(output, "last_hidden_state", None)
    name = type(encoder).__name__
    if states is None:
        raise ValueError(
            f"{name} returned no last_hidden_state (it returned {', '.join(output)}). An encoder must return token "
            "states (N, L, W) or feature maps (N, W, h, w) under that name; use the encoder's base model."
        )
    if states.ndim == 4:
        return states.flatten(2).transpose(1, 2)  # (N, W, h, w) -> (N, h * w, W)
    if states.ndim != 3:
        raise ValueError(
            f"{name} returned a last_hidden_state of shape {tuple(states.shape)}; expected (N, L, W) or (N, W, h, w)."
        )
    return states


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
