# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Connectors: from encoder tokens to media tokens, with their position in the item and their modality."""

import math
from itertools import pairwise

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.gpt2.configuration_gpt2 import GPT2Config

from .attention import Attention
from .configuration_mm import DIRECT, SINUSOIDAL_2D, MMConfig
from .encoder_shapes import encoder_width
from .layers import MLP, activation, sinusoidal_positions
from .masks import cross_attention_mask
from .modalities import MODALITIES, Modality
from .tags import build_tagger

# Shape legend: N items, L encoder tokens, M media tokens an item, W the encoder's width, D the decoder's width.

StatesAndMask = tuple[torch.Tensor, torch.Tensor]


def build_connector(modality: Modality, config: MMConfig) -> "Connector | DirectConnector | None":
    """Build the connector of a modality; `None` if the model has no encoder for it."""
    encoder_config = getattr(config, modality.config_field)
    if encoder_config is None:
        return None
    width = encoder_width(encoder_config, getattr(config, f"{modality.tower}_feature_layers", None))
    if getattr(config, f"{modality.tower}_connector") == DIRECT:
        return DirectConnector(width, config.text_config.n_embd)
    return Connector(config, modality.tower, width)


class DirectConnector(nn.Module):
    """
    Encoder tokens (N, L, W) as media tokens (N, L, D), through one linear layer where the widths differ.

    It adds neither norm nor positions nor modality vector, as encoder-decoders connect their halves.

    Args:
        width: W
        text_width: D
    """

    tagger = None

    def __init__(self, width: int, text_width: int):
        super().__init__()
        self.width = width
        self.linear = nn.Linear(width, text_width) if width != text_width else nn.Identity()

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> StatesAndMask:
        """Return media tokens (N, L, D) with their mask (N, L); masked ones are zeros."""
        return self.linear(states).masked_fill(~mask[..., None], 0.0), mask

    def check_items(self, count: int) -> None:
        """Take any number of items."""

    def number(self, states: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Return the states (B, S, D) as they are: nothing says which item they are of."""
        return states


class Connector(nn.Module):
    """
    Encoder tokens (N, L, W) with their mask (N, L) -> media tokens (N, M, D) with theirs (N, M).

    The encoder's states pass a layer norm first, because encoders differ widely in scale. Media tokens do not depend
    on encoder tokens that are masked.

    Args:
        config: the joint config
        tower: prefix of the config's fields for this connector, such as `"vision"`
        width: W
    """

    def __init__(self, config: MMConfig, tower: str, width: int):
        super().__init__()
        text = config.text_config
        self.width = width
        self.pooling = getattr(config, f"{tower}_pooling")
        self.is_grid = not next(modality.has_frames for modality in MODALITIES.values() if modality.tower == tower)
        self.norm = nn.LayerNorm(width, eps=text.layer_norm_epsilon)
        self.projector = PROJECTORS[getattr(config, f"{tower}_connector")](
            config=text,
            width=width,
            size=getattr(config, f"{tower}_connector_size") or text.n_embd,
            num_layers=getattr(config, f"{tower}_connector_layers"),
            num_latents=getattr(config, f"{tower}_latents"),
        )
        self.dropout = config.connector_dropout
        self.position_encoding = config.media_position_encoding
        learned = self.position_encoding == "learned"
        self.positions = nn.Embedding(config.max_media_positions, text.n_embd) if learned else None
        # One row, W_m: e_m = x + W_m.
        self.modality = nn.Embedding(1, text.n_embd) if config.modality_embedding else None
        self.tagger = build_tagger(config, tower, width)
        self.items = nn.Embedding(config.max_media_items, text.n_embd) if config.max_media_items else None

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> StatesAndMask:
        if self.pooling > 1:
            states, mask = (pool_squares if self.is_grid else pool_runs)(states, mask, self.pooling)
        states = self.norm(states)
        if self.training and self.dropout > 0:  # drops a feature in all tokens of an item, (N, W, L)
            states = nn.functional.dropout1d(states.transpose(1, 2), self.dropout).transpose(1, 2)
        states = states.masked_fill(~mask[..., None], 0.0)
        states, mask = self.projector(states, mask)
        positions = torch.arange(states.shape[1], device=states.device)  # (M,), of the media tokens within their item
        if self.position_encoding == SINUSOIDAL_2D and self.is_grid:
            states = states + grid_positions(positions, states.shape[2]).to(states.dtype)
        elif self.position_encoding in ("sinusoidal", SINUSOIDAL_2D):
            states = states + sinusoidal_positions(positions, states.shape[2]).to(states.dtype)
        elif self.positions is not None:
            if len(positions) > self.positions.num_embeddings:
                raise ValueError(
                    f"An item has {len(positions)} media tokens, but max_media_positions is "
                    f"{self.positions.num_embeddings}. Raise it, or use a connector that gives fewer tokens ('conv', "
                    "'perceiver') or sinusoidal positions."
                )
            states = states + self.positions(positions)
        if self.modality is not None:
            states = states + self.modality(torch.zeros(1, dtype=torch.long, device=states.device))
        return states.masked_fill(~mask[..., None], 0.0), mask

    def check_items(self, count: int) -> None:
        """
        Refuse a row with more items than there are vectors of their numbers.

        Raises:
            ValueError: if `count` is above `max_media_items`.
        """
        if self.items is not None and count > self.items.num_embeddings:
            raise ValueError(
                f"A row has {count} items of a modality, but max_media_items is {self.items.num_embeddings}. "
                "Raise it and train the new vectors, or give fewer."
            )

    def number(self, states: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """
        Add the vector of its item's number to each media token of this modality.

        Args:
            states: (B, S, D)
            numbers: (B, S), of the item of each token among those of its row, -1 for tokens that are masked or of
                another modality
        """
        if self.items is None:
            return states
        vectors = self.items(numbers.clamp(min=0)).to(states)  # (B, S, D)
        return states + vectors.masked_fill((numbers < 0)[..., None], 0.0)


def grid_positions(positions: torch.Tensor, width: int) -> torch.Tensor:
    """
    Return the sinusoidal encoding of the row and of the column of each token of a square image, (M, width).

    Args:
        positions: (M,), 0 to M - 1, row by row
        width: D; the first half encodes the row, the second the column

    Raises:
        ValueError: if the tokens are not a square, such as those of an encoder with a class token.
    """
    edge = math.isqrt(len(positions))
    if edge * edge != len(positions):
        raise ValueError(
            f"media_position_encoding is {SINUSOIDAL_2D!r}, but an image has {len(positions)} media tokens, which are "
            "not a square. Use an encoder of square images without a class token, or another position encoding."
        )
    rows = sinusoidal_positions(positions.div(edge, rounding_mode="floor"), width // 2)
    return torch.cat([rows, sinusoidal_positions(positions % edge, width - width // 2)], dim=-1)


def pool_squares(states: torch.Tensor, mask: torch.Tensor, side: int) -> StatesAndMask:
    """
    Average squares of `side` by `side` tokens of square images.

    Args:
        states: (N, L, W), row by row
        mask: (N, L) bool

    Raises:
        ValueError: if the tokens are not a square, such as those of an encoder with a class token, or do not divide.
    """
    items, length, width = states.shape
    edge = math.isqrt(length)
    if edge * edge != length or edge % side:
        raise ValueError(
            f"vision_pooling is {side}, but the encoder gives {length} tokens an image, which do not make squares of "
            f"{side} by {side}. Set it to 1, or use an encoder without a class token whose tokens divide."
        )
    places = edge // side
    squares = (items, places, side, places, side)
    states = states.view(*squares, width).transpose(2, 3).reshape(items, places**2, side**2, width)
    mask = mask.view(squares).transpose(2, 3).reshape(items, places**2, side**2)
    return masked_mean(states, mask)


def pool_runs(states: torch.Tensor, mask: torch.Tensor, size: int) -> StatesAndMask:
    """Average runs of `size` tokens (N, L, W); the last run may be shorter."""
    missing = -states.shape[1] % size
    states, mask = nn.functional.pad(states, (0, 0, 0, missing)), nn.functional.pad(mask, (0, missing))
    return masked_mean(states.unflatten(1, (-1, size)), mask.unflatten(1, (-1, size)))


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> StatesAndMask:
    """Return the means of the real ones among G tokens, (N, M, W) of (N, M, G, W), and which have any, (N, M)."""
    kept = states.masked_fill(~mask[..., None], 0.0).sum(2)
    return kept / mask.sum(-1, keepdim=True).clamp(min=1), mask.any(-1)


class MLPProjector(nn.Module):
    """Linear layers with the decoder's activation between them, token by token."""

    def __init__(self, config: GPT2Config, width: int, size: int, num_layers: int, **kwargs: object):
        super().__init__()
        widths = [width] + [size] * num_layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.linear = nn.Linear(widths[-1], config.n_embd)
        self.act = activation(config.activation_function)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> StatesAndMask:
        for layer in self.hidden:
            states = self.act(layer(states))
        return self.linear(states), mask


class LinearProjector(MLPProjector):
    """One linear layer, token by token."""

    def __init__(self, config: GPT2Config, width: int, **kwargs: object):
        super().__init__(config, width, size=width, num_layers=0)


class ConvProjector(nn.Module):
    """Convolutions of stride 2 over the token sequence; each halves its length."""

    def __init__(self, config: GPT2Config, width: int, size: int, num_layers: int, **kwargs: object):
        super().__init__()
        widths = [width] + [size] * num_layers
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, kernel_size=3, stride=2, padding=1) for a, b in pairwise(widths)
        )
        self.linear = nn.Linear(size, config.n_embd)
        self.act = activation(config.activation_function)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> StatesAndMask:
        for convolution in self.convolutions:
            if states.shape[1] == 1:  # oneDNN leaves the bfloat16 gradient of a tap that sees padding alone unset
                states = nn.functional.pad(states, (0, 0, 0, 1))
            states = self.act(convolution(states.transpose(1, 2))).transpose(1, 2)  # (N, L / 2, size)
            # Output j is centered on input 2j. Masked tokens must be zero like the padding outside.
            mask = mask[:, ::2]
            states = states.masked_fill(~mask[..., None], 0.0)
        return self.linear(states), mask


class GRUProjector(nn.Module):
    """A recurrent network over the token sequence, forward in time: padding behind an item cannot reach it."""

    def __init__(self, config: GPT2Config, width: int, size: int, num_layers: int, **kwargs: object):
        super().__init__()
        self.gru = nn.GRU(width, size, num_layers=num_layers, batch_first=True)
        self.linear = nn.Linear(size, config.n_embd)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> StatesAndMask:
        hidden, _ = self.gru(states)  # (N, L, size)
        return self.linear(hidden), mask


class PerceiverProjector(nn.Module):
    """Learned latents that read the encoder tokens, as in Flamingo (arxiv.org/abs/2204.14198); all are real."""

    def __init__(self, config: GPT2Config, width: int, num_layers: int, num_latents: int, **kwargs: object):
        super().__init__()
        self.linear = nn.Linear(width, config.n_embd)
        self.latents = nn.Embedding(num_latents, config.n_embd)
        self.layers = nn.ModuleList(ResamplerLayer(config) for _ in range(num_layers))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> StatesAndMask:
        states = self.linear(states)  # (N, L, D)
        # Attention ignores order, so the tokens carry their position.
        positions = torch.arange(states.shape[1], device=states.device)
        states = states + sinusoidal_positions(positions, states.shape[2]).to(states.dtype)
        numbers = torch.arange(self.latents.num_embeddings, device=states.device)
        latents = self.latents(numbers).expand(states.shape[0], -1, -1)  # (N, M, D)
        for layer in self.layers:
            latents = layer(latents, states, mask)
        present = mask.any(-1, keepdim=True).expand(-1, latents.shape[1])  # (N, M)
        return self.ln_f(latents), present


class ResamplerLayer(GradientCheckpointingLayer):
    """Attention of latents to the encoder's tokens and to themselves, then a feed-forward network."""

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.norm_latents = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.norm_states = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.resampler_attn = Attention(config, is_cross_attention=True)
        self.norm_mlp = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, latents: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Update latents (N, M, D) from states (N, L, D) with their mask (N, L)."""
        queries = self.norm_latents(latents)
        keys = torch.cat([self.norm_states(states), queries], dim=1)  # (N, L + M, D)
        visible = torch.cat([mask, mask.new_ones(latents.shape[:2])], dim=1)[:, None]  # (N, 1, L + M)
        attention_mask, _ = cross_attention_mask(visible.expand(-1, latents.shape[1], -1), queries.dtype, boolean=True)
        # Always sdpa: the latents are few, and flash kernels take no such mask.
        attended, _ = self.resampler_attn(
            queries, attention_mask, media=self.resampler_attn.keys_and_values(keys), implementation="sdpa"
        )
        latents = latents + attended
        return latents + self.mlp(self.norm_mlp(latents))


PROJECTORS = {
    "linear": LinearProjector,
    "mlp": MLPProjector,
    "conv": ConvProjector,
    "gru": GRUProjector,
    "perceiver": PerceiverProjector,
}
