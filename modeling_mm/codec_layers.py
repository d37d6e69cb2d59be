# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Convolutional encoder and decoder of a codec, in two dimensions for images and in one for spectrograms.

Every layer is local, and norms take each position by itself, so that what a position holds does not depend on the
length of the audio around it.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .configuration_codec import MMCodecConfig

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}


class ChannelNorm(nn.Module):
    """Root-mean-square norm over the channels of each position, (N, C, ...)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(states.float().pow(2).mean(1, keepdim=True) + 1e-6).to(states.dtype)
        return states * scale * self.weight.view(-1, *[1] * (states.ndim - 2))


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); it starts by adding zero."""

    def __init__(self, dimensions: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        convolution, padding = CONVOLUTIONS[dimensions], kernel_size // 2
        self.norm1 = ChannelNorm(channels)
        self.conv1 = convolution(channels, channels, kernel_size, padding=padding)
        self.norm2 = ChannelNorm(channels)
        last: Any = convolution(channels, channels, kernel_size, padding=padding)
        last.starts_at_zero = True
        self.conv2 = last

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        inner = self.conv1(nn.functional.silu(self.norm1(states)))
        return states + self.conv2(nn.functional.silu(self.norm2(inner)))


def blocks(config: MMCodecConfig, dimensions: int, channels: int) -> nn.Sequential:
    """Return the residual blocks of one resolution."""
    return nn.Sequential(
        *(ResidualBlock(dimensions, channels, config.kernel_size) for _ in range(config.num_res_blocks))
    )


class CodecEncoder(nn.Module):
    """From media (N, channels, ...) to states (N, out_channels, ...) on the latents' grid."""

    def __init__(self, config: MMCodecConfig, dimensions: int, channels: int, out_channels: int) -> None:
        super().__init__()
        convolution, sizes = CONVOLUTIONS[dimensions], config.hidden_sizes
        self.conv_in = convolution(channels, sizes[0], 3, padding=1)
        stages = []
        for size, next_size, stride in zip(sizes[:-1], sizes[1:], config.strides, strict=True):
            # A kernel of two strides sees each input twice, and the padding leaves exactly length / stride.
            down = convolution(size, next_size, 2 * stride, stride, padding=(stride + 1) // 2)
            stages.append(nn.Sequential(blocks(config, dimensions, size), down))
        self.stages = nn.Sequential(*stages, blocks(config, dimensions, sizes[-1]))
        self.norm_out = ChannelNorm(sizes[-1])
        self.conv_out = convolution(sizes[-1], out_channels, 1)

    def forward(self, media: torch.Tensor) -> torch.Tensor:
        return self.conv_out(nn.functional.silu(self.norm_out(self.stages(self.conv_in(media)))))


class Upsample(nn.Module):
    """A convolution, then each position repeated; the blocks behind it smooth the edges."""

    def __init__(self, dimensions: int, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = CONVOLUTIONS[dimensions](channels, out_channels, 3, padding=1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(self.conv(states), scale_factor=float(self.stride), mode="nearest")


class CodecDecoder(nn.Module):
    """From latents (N, latent_channels, ...) to media (N, channels, ...)."""

    def __init__(self, config: MMCodecConfig, dimensions: int, channels: int) -> None:
        super().__init__()
        convolution, sizes = CONVOLUTIONS[dimensions], list(reversed(config.hidden_sizes))
        self.conv_in = convolution(config.latent_channels, sizes[0], 3, padding=1)
        stages = [blocks(config, dimensions, sizes[0])]
        for size, next_size, stride in zip(sizes[:-1], sizes[1:], reversed(config.strides), strict=True):
            up = Upsample(dimensions, size, next_size, stride)
            stages.append(nn.Sequential(up, blocks(config, dimensions, next_size)))
        self.stages = nn.Sequential(*stages)
        self.norm_out = ChannelNorm(sizes[-1])
        self.conv_out = convolution(sizes[-1], channels, 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return self.conv_out(nn.functional.silu(self.norm_out(self.stages(self.conv_in(latents)))))


def decoder_reach(config: MMCodecConfig, reach: int) -> int:
    """Return the number of latents on each side that `reach` positions on each side of the media depend on."""
    convolutions = 2 * config.num_res_blocks * (config.kernel_size // 2)  # of the blocks of one resolution
    reach += 1
    for stride in config.strides:  # from the media back
        reach = math.ceil((reach + convolutions) / stride) + 1
    return reach + convolutions + 1


def init_codec_weights(module: nn.Module) -> None:
    """
    Initialize a module of a codec; loaded weights are left alone.

    | module | weights |
    |---|---|
    | convolutions, linear layers | normal, deviation 1 / sqrt(inputs of an output); biases 0 |
    | the second convolution of a residual block | 0 |
    | norms | 1 |
    """
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
        deviation = 0.0 if getattr(module, "starts_at_zero", False) else module.weight[0].numel() ** -0.5
        init.normal_(module.weight, std=deviation)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, ChannelNorm):
        init.ones_(module.weight)
