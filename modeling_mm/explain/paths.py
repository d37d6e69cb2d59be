# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Paths from media tokens back to encoder tokens: the share that each encoder token has in each media token.

Token-wise connectors keep places, pooling averages them, a convolution reads three neighbors, and the latents of a
perceiver read all of them, which attention rollout ([Abnar and Zuidema](https://arxiv.org/abs/2005.00928)) follows
through its layers. A recurrent connector has no paths, as its tokens depend on all before them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..connectors import (
    Connector,
    ConvProjector,
    DirectConnector,
    PerceiverProjector,
    pool_runs,
    pool_squares,
)
from ..masks import cross_attention_mask
from ..modalities import MODALITIES

# Shape legend: N items, L encoder tokens, M media tokens an item, H heads.

TAPS = 3  # encoder tokens that one output of a connector's convolution reads


@dataclass
class ConnectorRecord:
    """
    Inputs of a connector in one forward.

    Args:
        mask: (N, L) bool, which encoder tokens are real
        rollouts: weights of the latents of each layer of a perceiver, (N, M, L + M), mean over heads
    """

    mask: torch.Tensor | None = None
    rollouts: list[torch.Tensor] = field(default_factory=list)


@contextmanager
def record_connectors(model: Any) -> Iterator[dict[str, ConnectorRecord]]:
    """
    Record what the connectors of a model read while it encodes media, by modality.

    Args:
        model: an `MMModel`
    """
    records: dict[str, ConnectorRecord] = {}
    with ExitStack() as stack:
        for name, modality in MODALITIES.items():
            connector = getattr(model, modality.connector_attribute, None)
            if connector is None:
                continue
            projector = getattr(connector, "projector", None)
            record = records[name] = ConnectorRecord()
            stack.callback(connector.register_forward_pre_hook(mask_recorder(record)).remove)
            for layer in projector.layers if isinstance(projector, PerceiverProjector) else ():
                hook = layer.resampler_attn.register_forward_hook(rollout_recorder(record), with_kwargs=True)
                stack.callback(hook.remove)
        yield records


def mask_recorder(record: ConnectorRecord) -> Any:
    """Return a hook that keeps the mask that a connector reads."""

    def keep(_: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
        record.mask = inputs[1].detach()

    return keep


def rollout_recorder(record: ConnectorRecord) -> Any:
    """Return a hook that computes a resampler's weights again, as its fused kernel keeps none."""

    def keep(attention: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        queries, mask = inputs
        visible = mask[:, 0] if mask is not None else None  # (N, M, L + M) bool
        added = None if visible is None else cross_attention_mask(visible, queries.dtype, boolean=False)[0]
        with torch.no_grad():
            _, weights = attention.forward(queries, added, media=kwargs["media"], implementation="eager")
        record.rollouts.append(weights.float().mean(1))

    return keep


def connector_paths(connector: Connector | DirectConnector, record: ConnectorRecord) -> torch.Tensor:
    """
    Return the share of each encoder token in each media token, (N, M, L).

    The shares of a real media token sum to 1 over the real encoder tokens.
    """
    assert record.mask is not None, "the connector has run"
    real = mask = record.mask
    paths = torch.eye(mask.shape[1], device=mask.device).expand(len(mask), -1, -1) * mask[:, None]  # (N, L, L)
    if (size := getattr(connector, "pooling", 1)) > 1:
        assert isinstance(connector, Connector), "a direct connector pools nothing"
        paths, mask = (pool_squares if connector.is_grid else pool_runs)(paths, mask, size)
    projector = getattr(connector, "projector", None)
    if isinstance(projector, ConvProjector):
        for _ in projector.convolutions:
            paths = convolved(paths)
    elif isinstance(projector, PerceiverProjector):
        paths = rollout(record.rollouts) @ paths
    if connector.tagger is not None:  # tags are read from the mean of all
        tags = connector.tagger.places.num_embeddings
        paths = torch.cat([paths, real[:, None].to(paths).expand(-1, tags, -1)], dim=1)
    return paths / paths.sum(-1, keepdim=True).clamp(min=torch.finfo(paths.dtype).tiny)


def convolved(paths: torch.Tensor) -> torch.Tensor:
    """Return the paths of a convolution of stride 2 over M tokens, (N, M, L) -> (N, M / 2, L): the sum of its taps."""
    summed = nn.functional.avg_pool1d(paths.transpose(1, 2), TAPS, stride=2, padding=TAPS // 2) * TAPS
    return summed.transpose(1, 2)


def rollout(layers: list[torch.Tensor]) -> torch.Tensor:
    """
    Return how much each latent has of each encoder token behind all layers, (N, M, L).

    In each layer a latent is half itself, by the residual connection, and half what it attends to.

    Args:
        layers: for each layer the weights on the encoder tokens and then on the latents, (N, M, L + M)
    """
    latents = layers[0].shape[1]
    shares = torch.zeros_like(layers[0][..., :-latents])
    for weights in layers:
        read = weights[..., :-latents] + weights[..., -latents:] @ shares
        shares = (shares + read) / 2
    return shares
