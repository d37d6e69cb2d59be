# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Tokens made of several layers of an encoder: early ones know where things are, late ones what they are."""

from collections.abc import Sequence

import torch
from torch import nn

# Shape legend: N items, L tokens, h and w the grid of a feature map, C the channels of a layer, W all of them.


def merge_layers(hidden_states: Sequence[torch.Tensor] | None, layers: Sequence[int], name: str) -> torch.Tensor:
    """
    Return the tokens (N, L, W) of layers, whose features stand side by side.

    The tokens are those of the first of the layers. Feature maps (N, C, h, w) of another grid are resized to it.

    Args:
        hidden_states: all of an encoder, (N, L, C) or (N, C, h, w).
        layers: indices of hidden states, as Python counts them.
        name: of the encoder, for messages.

    Raises:
        ValueError: for an encoder without hidden states, an index outside of them, and tokens (N, L, C) that differ
            in their number.
    """
    if hidden_states is None:
        raise ValueError(
            f"{name} returned no hidden_states, of which feature_layers names {list(layers)}. Leave it out."
        )
    if outside := [each for each in layers if not -len(hidden_states) <= each < len(hidden_states)]:
        raise ValueError(
            f"feature_layers names {outside[0]}, but {name} has {len(hidden_states)} hidden states, from 0, the input "
            f"of its first layer, to {len(hidden_states) - 1}."
        )
    chosen = [hidden_states[each] for each in layers]
    if all(each.ndim == 4 for each in chosen):
        size = chosen[0].shape[-2:]
        chosen = [
            each if each.shape[-2:] == size else nn.functional.interpolate(each, size, mode="bilinear")
            for each in chosen
        ]
        chosen = [each.flatten(2).transpose(1, 2) for each in chosen]  # (N, C, h, w) -> (N, h * w, C)
    if any(each.ndim != 3 or each.shape[1] != chosen[0].shape[1] for each in chosen):
        shapes = ", ".join(str(tuple(each.shape)) for each in chosen)
        raise ValueError(
            f"feature_layers names hidden states of {name} of the shapes {shapes}. Name feature maps (N, C, h, w), or "
            "layers with as many tokens (N, L, C)."
        )
    return torch.cat(chosen, dim=-1)
