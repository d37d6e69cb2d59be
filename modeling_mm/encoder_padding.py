# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Padding kept out of an encoder's tokens: by whole windows, by a mask, or by groups of equal length."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from .compat import downsampled_lengths
from .encoder_shapes import OF_CLAP, SPECTROGRAM_ENCODERS, frame_features, modality_read_by
from .modalities import BUILT_IN

# Shape legend: N items (images or windows), T frames or samples, F features of a frame, L encoder tokens, W the
# encoder's width.

# `window`: every item has one length, to which the feature extractor pads or repeats it; its padding is part of what
# the encoder was trained on. `mask`: an attention mask keeps padding out. `length`: items of equal length go together,
# without padding.
PADDING_RULES = ("window", "mask", "length")
OVER_TIME = (nn.GroupNorm, nn.InstanceNorm1d, nn.AvgPool1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d)
CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


@dataclass
class MaskedEncoderOutput(BaseModelOutput):
    """
    Output of an encoder that tells which of its tokens are real.

    Args:
        attention_mask: (N, L)
    """

    attention_mask: torch.Tensor | None = None


def padding_rule(encoder: PreTrainedModel) -> str:
    """Return which of `PADDING_RULES` holds for an encoder; `build_encoder` notes it, as finding it takes a walk."""
    return getattr(encoder, "padding_rule", None) or find_padding_rule(encoder)


def find_padding_rule(encoder: PreTrainedModel) -> str:
    """Return which of `PADDING_RULES` holds for an encoder, from its modules. `length` is right for any of them."""
    if not modality_read_by(encoder).has_frames or whole_window(encoder):
        return "window"
    return "mask" if takes_exact_mask(encoder) else "length"


def whole_window(encoder: PreTrainedModel) -> bool:
    """Return whether windows have one length: Whisper's (and of those built on it), AST's and CLAP's."""
    config = encoder.config
    return config.model_type in SPECTROGRAM_ENCODERS or hasattr(config, OF_CLAP) or window_frames(encoder) is not None


def window_frames(encoder: PreTrainedModel) -> int | None:
    """Return the frames that every window of Whisper's encoder must have."""
    positions = getattr(encoder.config, "max_source_positions", None)
    if encoder.main_input_name != "input_features" or positions is None or not hasattr(encoder, "conv2"):
        return None
    return positions * encoder.conv1.stride[0] * encoder.conv2.stride[0]


def takes_exact_mask(encoder: PreTrainedModel) -> bool:
    """
    Return whether an attention mask leaves the real frames' states as they are without padding, to rounding.

    It does if nothing mixes frames without the mask. Norms and pooling over time do (group norm; SEW's pooling), and
    so do the adapters of wav2vec2's kind, whose convolutions reach behind the last real state, and every convolution
    with padding in a module that takes no mask (the Conformer's; all but the first of Data2Vec's positions). The one
    convolution of positions that wav2vec2 and its kind have directly behind the masking sees zeros in either case,
    unless a batch norm comes before it.
    """
    if "attention_mask" not in inspect.signature(encoder.forward).parameters:
        return False
    if getattr(encoder.config, "add_adapter", False) or any(isinstance(m, OVER_TIME) for m in encoder.modules()):
        return False
    positions = getattr(getattr(encoder, "encoder", None), "pos_conv_embed", None)
    harmless = None if getattr(positions, "batch_norm", None) is not None else getattr(positions, "conv", None)
    return all(convolution is harmless for convolution in unmasked_convolutions(encoder))


def unmasked_convolutions(module: nn.Module, takes_mask: bool = False) -> Iterator[nn.Module]:
    """Yield the convolutions with padding that belong to modules whose forward takes no attention mask."""
    for child in module.children():
        if isinstance(child, CONVOLUTIONS):
            padding = child.padding if isinstance(child.padding, tuple) else (child.padding,)
            if not takes_mask and any(padding):
                yield child
            continue
        is_container = isinstance(child, CONTAINERS)
        masked = takes_mask if is_container else "attention_mask" in inspect.signature(child.forward).parameters
        yield from unmasked_convolutions(child, masked)


def check_frames(encoder: PreTrainedModel, items: torch.Tensor) -> None:
    """Raise a `ValueError` for spectrograms (N, F, T) of another shape than the encoder reads."""
    name, expected = encoder.main_input_name, window_frames(encoder)
    if name != "input_features":
        return
    features = frame_features(encoder.config)
    if features is not None and items.shape[1] != features:
        raise ValueError(
            f"{name} must be (..., {features}, frames) for {type(encoder).__name__}, got {tuple(items.shape[1:])} an "
            "item. MMProcessor makes them so; transpose what another feature extractor returns with frames first."
        )
    if expected is not None and items.shape[-1] != expected:
        raise ValueError(
            f"Every window of {name} must have {expected} frames for {type(encoder).__name__}, got "
            f"{items.shape[-1]}. Cut longer audio into several windows, each with its placeholder, and pad "
            "shorter ones; MMProcessor does both when its feature extractor's chunk_length fits the encoder."
        )


def encoder_arguments(encoder: PreTrainedModel, items: torch.Tensor) -> dict[str, Any]:
    """
    Return the arguments of an encoder for items in our layout, without a mask.

    `input_features` (N, F, T) go to Whisper as they are, to others as (N, T, F), to CLAP as (N, channels, T, F). Its
    further channels are for crops of audio longer than a window, which never comes here.
    """
    name = encoder.main_input_name
    if name != "input_features" or isinstance(getattr(encoder, "conv1", None), nn.Conv1d):
        return {name: items}
    items = items.transpose(1, 2)
    if not hasattr(encoder.config, OF_CLAP):
        return {name: items}
    if not encoder.config.enable_fusion:
        return {name: items[:, None]}
    is_longer = torch.zeros(len(items), 1, dtype=torch.bool, device=items.device)
    return {name: items[:, None].expand(-1, 4, -1, -1), "is_longer": is_longer}


def encode_by_length(encoder: PreTrainedModel, lengths: list[int], **arguments: Any) -> MaskedEncoderOutput:
    """
    Encode windows (N, T, ...) of equal length together, without padding; pad the tokens with zeros, (N, L, W).

    So are all hidden states, if the encoder returns them. A window of length 0 goes whole; `token_mask` masks its
    tokens.
    """
    windows = arguments.pop(encoder.main_input_name)
    axis = length_axis(encoder, windows)
    found: list[Sequence[torch.Tensor]] = [()] * len(lengths)  # of each window its tokens, then all hidden states
    for length in set(lengths):
        rows = [row for row, own_length in enumerate(lengths) if own_length == length]
        items = windows[rows].narrow(axis, 0, length or windows.shape[axis])
        output = encoder(**{encoder.main_input_name: items}, **arguments)
        layers = output.last_hidden_state, *(getattr(output, "hidden_states", None) or ())
        for row, states in zip(rows, zip(*layers, strict=True), strict=True):
            found[row] = states
    counts = torch.tensor([len(tokens) for tokens, *_ in found], device=windows.device)
    padded, *hidden = (nn.utils.rnn.pad_sequence(list(each), batch_first=True) for each in zip(*found, strict=True))
    mask = torch.arange(padded.shape[1], device=windows.device) < counts[:, None]
    return MaskedEncoderOutput(last_hidden_state=padded, hidden_states=tuple(hidden) or None, attention_mask=mask)


def length_axis(encoder: PreTrainedModel, windows: torch.Tensor) -> int:
    """Return the axis of the frames of windows (N, ...) as an encoder reads them, see [`encoder_arguments`]."""
    modality = modality_read_by(encoder)
    if modality.name not in BUILT_IN:
        return modality.frame_axes[modality.inputs.index(encoder.main_input_name)] - 1  # items are rows here
    return 2 if windows.ndim == 3 and isinstance(getattr(encoder, "conv1", None), nn.Conv1d) else 1


def token_mask(
    encoder: PreTrainedModel,
    frame_mask: torch.Tensor | None,
    tokens: torch.Tensor,
    returned: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Carry a frame mask (N, T) through the encoder's downsampling to tokens (N, L), at least one of a real window.

    Args:
        tokens: (N, L, W)
        returned: (N, L), the mask that the encoder returned beside its tokens
    """
    num_items, num_tokens = tokens.shape[:2]
    if frame_mask is None:
        return torch.ones(num_items, num_tokens, dtype=torch.bool, device=tokens.device)
    frame_mask = frame_mask.to(tokens.device)
    present = frame_mask.any(-1, keepdim=True)  # (N, 1)
    if encoder.config.model_type in SPECTROGRAM_ENCODERS:
        return spectrogram_token_mask(encoder.config, frame_mask, num_tokens)
    if hasattr(encoder.config, OF_CLAP):
        return present.expand(-1, num_tokens)
    if returned is not None:
        return returned.bool() & present
    if padding_rule(encoder) == "length":  # all of one length: it would have returned a mask otherwise
        return present.expand(-1, num_tokens)
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
