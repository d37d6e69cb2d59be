# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Encoders of transformers: the class of a config, the width of its tokens, and the shape of one item."""

import inspect
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cache

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from .compat import auto_model_class
from .feature_layers import merge_layers
from .modalities import BUILT_IN, MODALITIES, Modality

# Shape legend: N items (images or windows), T frames or samples, L encoder tokens, W the encoder's width.

WIDTH_FIELDS = ("hidden_size", "d_model", "hidden_sizes", "hidden_dim", "embed_dim", "num_features")
# Fields of the features of a spectrogram's frame.
FRAME_FIELDS = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel")
# Lists of numbers that say nothing about the widths of stages.
OTHER_LISTS = ("image_size", "patch_size", "out_indices", "_out_indices")
# Encoders whose `input_values` are spectrograms, not samples.
SPECTROGRAM_ENCODERS = ("audio-spectrogram-transformer",)
# The field that configs of CLAP's Swin alone have, which reads spectrograms as images with a channel axis.
OF_CLAP = "enable_fusion"
# Frames of an empty item for encoders that take any number of them.
FEW_FRAMES = 16


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


def check_arguments(encoder_class: type[PreTrainedModel], config_field: str) -> None:
    """Raise a `ValueError` for an encoder that needs more than its main input, such as a NaFlex or a video encoder."""
    parameters = list(inspect.signature(encoder_class.forward).parameters.values())[1:]  # without self
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in kinds]
    if more := [name for name in needed if name != encoder_class.main_input_name]:
        raise ValueError(
            f"{config_field} names {encoder_class.__name__}, whose forward also needs {', '.join(more)}; an encoder "
            f"gets {encoder_class.main_input_name} alone here. Use a checkpoint of the family that reads images or "
            "windows of one shape, such as google/siglip2-base-patch16-224 for SigLIP2."
        )


def encoder_width(config: PreTrainedConfig, layers: Sequence[int] | None = None) -> int:
    """
    Return the size of an encoder's token, W.

    Args:
        config: of the encoder.
        layers: hidden states whose features make a token, see [`merge_layers`]; by default the last state alone.

    A config that describes stages (lists of sizes), or none of the usual fields, does not tell which of its numbers is
    the last one: its encoder is then run once on the meta device, which computes shapes alone.

    Raises:
        ValueError: if neither its fields nor a run show the width, and for layers that the encoder does not have,
            or that are maps of folded spectrograms (CLAP).
    """
    if layers is not None:
        if hasattr(config, OF_CLAP):
            raise ValueError(
                f"feature_layers names hidden states {list(layers)} of {encoder_class_of(config).__name__}, which are "
                "maps of a spectrogram folded into a square, whose places are not those of its tokens. Leave it out."
            )
        states = run_without_weights(config, output_hidden_states=True).hidden_states
        return merge_layers(states, layers, encoder_class_of(config).__name__).shape[-1]
    width = width_field(config)
    if width is not None and not has_stages(config):
        return width
    try:  # code of any encoder runs, on a device that not every operation knows
        return last_width(config)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        if width is not None:
            return width
        raise ValueError(
            f"The width of encoder {config.model_type!r} is unknown: {type(config).__name__} has none of "
            f"{', '.join(WIDTH_FIELDS)}, and a run without weights failed ({error}). Set hidden_size on it to the "
            "last dimension of its last_hidden_state."
        ) from error


def width_field(config: PreTrainedConfig) -> int | None:
    """Return the first of the usual fields, of a list its last entry."""
    if getattr(config, "add_adapter", False) and isinstance(getattr(config, "output_hidden_size", None), int):
        return config.output_hidden_size  # the adapter of wav2vec2's kind comes last
    for field in WIDTH_FIELDS:
        width = getattr(config, field, None)
        if isinstance(width, (list, tuple)) and width:
            width = width[-1]
        if isinstance(width, int):
            return width
    return None


def has_stages(config: PreTrainedConfig) -> bool:
    """Return whether a vision config has a list of numbers, as pyramids have for the sizes of their stages."""
    if getattr(auto_model_class(config), "main_input_name", None) != "pixel_values":
        return False
    lists = (value for name, value in vars(config).items() if name not in OTHER_LISTS)
    lists = (value for value in lists if isinstance(value, (list, tuple)) and len(value) > 0)
    return any(all(isinstance(entry, int) for entry in value) for value in lists)


def last_width(config: PreTrainedConfig) -> int:
    """Return the width that an encoder has in a run on the meta device; equal configs run once in a process."""
    key = f"{type(config).__name__} {config.to_json_string()}"
    if key not in _WIDTHS:
        shape = run_without_weights(config).last_hidden_state.shape
        if len(shape) == 4 and shape[1] == shape[2] != shape[3]:
            raise ValueError(
                f"{encoder_class_of(config).__name__} returns feature maps of shape {tuple(shape)}, with the channels "
                "last; expected (N, W, h, w)"
            )
        _WIDTHS[key] = shape[1] if len(shape) == 4 else shape[-1]
    return _WIDTHS[key]


_WIDTHS: dict[str, int] = {}


def run_without_weights(config: PreTrainedConfig, **options: bool) -> BaseModelOutput:
    """Return an encoder's output for an item of zeros on the meta device, which computes shapes alone."""
    config = deepcopy(config)
    config._attn_implementation = "eager"
    meta = torch.device("meta")
    with meta, torch.no_grad():
        encoder = encoder_class_of(config)(config).eval()
        return encoder(**{encoder.main_input_name: dummy_item(encoder, meta)}, return_dict=True, **options)


def item_dimensions(encoder: PreTrainedModel) -> int:
    """Return the dimensions of one item without its batch: 3 for an image, 2 for a spectrogram, 1 for a raw wave."""
    if encoder.config.model_type in SPECTROGRAM_ENCODERS:
        return 2
    modality = modality_read_by(encoder)
    return modality.dimensions[modality.inputs.index(encoder.main_input_name)]


def modality_read_by(encoder: PreTrainedModel) -> Modality:
    """
    Return the modality that an encoder reads.

    Raises:
        ValueError: if no modality has its input.
    """
    for modality in MODALITIES.values():
        if encoder.main_input_name in modality.inputs:
            return modality
    raise ValueError(f"No modality has an input named {encoder.main_input_name}, as {type(encoder).__name__} reads.")


def frame_features(config: PreTrainedConfig) -> int | None:
    """Return the features of a frame of a spectrogram, `None` if no field of the config states them."""
    sizes = [getattr(config, field, None) for field in FRAME_FIELDS]
    known = [size for size in sizes if size is not None]
    return known[0] if known else None


def dummy_item(encoder: PreTrainedModel, device: torch.device) -> torch.Tensor:
    """
    Return an item of zeros, (1, ...), for a process that must run the encoder without media.

    Raises:
        ValueError: for an encoder of a registered modality without `dummy_inputs`, unless its items are series.
    """
    config, dimensions = encoder.config, item_dimensions(encoder)
    shape: tuple[int, ...]
    if encoder.main_input_name in encoder.dummy_inputs:
        shape = encoder.dummy_inputs[encoder.main_input_name].shape[1:]
    elif dimensions > 1 and (modality := modality_read_by(encoder)).name not in BUILT_IN:
        raise ValueError(
            f"A process whose rows have no {modality.plural} must run {type(encoder).__name__} with those whose rows "
            f"have, but its dummy_inputs have no {encoder.main_input_name!r}. Let them hold one item, (1, ...)."
        )
    elif dimensions == 3:
        shape = image_shape(config)
    elif dimensions == 1:
        shape = (minimum_samples(encoder),)
    elif config.model_type in SPECTROGRAM_ENCODERS:
        shape = (config.max_length, config.num_mel_bins)
    else:
        positions = getattr(config, "max_source_positions", None)
        shape = (frame_features(config) or 1, FEW_FRAMES if positions is None else 2 * positions)
    return torch.zeros(1, *shape, dtype=dtype_of(encoder), device=device)


def image_shape(config: PreTrainedConfig) -> tuple[int, ...]:
    """Return the shape of an image, (channels, height, width), as a config or that of its timm model states it."""
    if (timm := getattr(config, "pretrained_cfg", None)) and "input_size" in timm:
        return tuple(timm["input_size"])
    size = getattr(config, "image_size", None) or 224
    return (getattr(config, "num_channels", 3), *((size, size) if isinstance(size, int) else size))


def minimum_samples(encoder: PreTrainedModel) -> int:
    """
    Return the receptive field of a raw-wave encoder's shortest output, in samples: shorter waves give no token.

    The convolutions are in the config (wav2vec2 and its kind) or are the encoder's own first modules (Moonshine). SEW
    also pools `squeeze_factor` of their outputs.
    """
    config = encoder.config
    kernels, strides = getattr(config, "conv_kernel", None), getattr(config, "conv_stride", None)
    if kernels is None or strides is None:
        layers = [module for module in encoder.children() if isinstance(module, nn.Conv1d)]
        kernels, strides = [layer.kernel_size[0] for layer in layers], [layer.stride[0] for layer in layers]
    samples = getattr(config, "squeeze_factor", 1)
    for kernel, stride in reversed(list(zip(kernels, strides, strict=True))):
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
