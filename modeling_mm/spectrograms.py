# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Log-mel spectrograms, and waves from them: a network with an inverse Fourier transform, or Griffin-Lim.

Shape legend: N waves, F frames of `hop_length` samples each, M mel bands, Q = fft_size / 2 + 1 frequencies.
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank

from .codec_layers import ChannelNorm
from .configuration_codec import MMCodecConfig

FLOOR = 1e-5  # of magnitudes, before the logarithm
# Log-mel values of speech are scaled to about -2.5 to 2.5.
CENTER, SPREAD = -5.0, 2.5
MAX_MAGNITUDE = 1e2
# The shortest log-magnitude the network writes, so that gradients remain finite.
MIN_LOG_MAGNITUDE = -12.0


@cache
def mel_filters(config_values: tuple[int, int, int]) -> torch.Tensor:
    """Return the filters (Q, M) for (fft size, mel bands, sampling rate)."""
    fft_size, bands, rate = config_values
    filters = mel_filter_bank(
        fft_size // 2 + 1, bands, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney"
    )  # numpy, float64
    return torch.from_numpy(filters).float()


def filters_of(config: MMCodecConfig, like: torch.Tensor) -> torch.Tensor:
    """Return the mel filters (Q, M) of a config, computed here as a buffer would not survive a reload."""
    return mel_filters((config.fft_size, config.num_mel_bins, config.sampling_rate)).to(like.device)


def spectrum(waves: torch.Tensor, fft_size: int, hop_length: int) -> torch.Tensor:
    """Return complex spectra (N, Q, F) of waves (N, F * hop_length); frame i is centered at sample i * hop_length."""
    window = torch.hann_window(fft_size, device=waves.device)
    frames = torch.stft(
        waves.float(), fft_size, hop_length, window=window, center=True, pad_mode="constant", return_complex=True
    )
    return frames[..., : waves.shape[-1] // hop_length]


def to_waves(spectra: torch.Tensor, fft_size: int, hop_length: int) -> torch.Tensor:
    """Return waves (N, F * hop_length) of complex spectra (N, Q, F); the last frame is repeated behind the end."""
    frames = torch.cat([spectra, spectra[..., -1:]], dim=-1)
    window = torch.hann_window(fft_size, device=spectra.device)
    length = spectra.shape[-1] * hop_length
    return torch.istft(frames, fft_size, hop_length, window=window, center=True, length=length)


def log_mel(waves: torch.Tensor, config: MMCodecConfig) -> torch.Tensor:
    """Return scaled log-mel spectrograms (N, M, F) of waves (N, F * hop_length)."""
    magnitudes = spectrum(waves, config.fft_size, config.hop_length).abs()
    with torch.autocast(waves.device.type, enabled=False):  # half precision would round what is to be coded
        mel = filters_of(config, waves).T @ magnitudes
    return (mel.clamp(min=FLOOR).log() - CENTER) / SPREAD


def griffin_lim(mel: torch.Tensor, config: MMCodecConfig, iterations: int = 32) -> torch.Tensor:
    """
    Return waves (N, F * hop_length) of scaled log-mel spectrograms (N, M, F), without learned weights.

    Phases start at random, always the same, and are made consistent by going from spectra to waves and back.
    """
    filters = filters_of(config, mel)
    energies = (mel.float() * SPREAD + CENTER).exp()
    magnitudes = (torch.linalg.pinv(filters.T) @ energies).clamp(min=0.0)
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(magnitudes.shape[1:], generator=generator).to(mel.device) * 2 * math.pi
    spectra = torch.polar(magnitudes, angles.expand_as(magnitudes).contiguous())
    for _ in range(iterations):
        waves = to_waves(spectra, config.fft_size, config.hop_length)
        phases = spectrum(waves, config.fft_size, config.hop_length)
        spectra = magnitudes * phases / phases.abs().clamp(min=1e-8)
    return to_waves(spectra, config.fft_size, config.hop_length)


class VocoderBlock(nn.Module):
    """x + a depthwise convolution over time, then a feed-forward over the channels of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, 7, padding=3, groups=channels)
        self.norm = ChannelNorm(channels)
        self.expand = nn.Conv1d(channels, 3 * channels, 1)
        self.reduce = nn.Conv1d(3 * channels, channels, 1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        inner = self.expand(self.norm(self.depthwise(states)))
        return states + self.reduce(nn.functional.gelu(inner))


class ISTFTVocoder(nn.Module):
    """Magnitudes and phases of every frame from its log-mel spectrogram, as [Vocos](https://arxiv.org/abs/2306.00814)."""

    def __init__(self, config: MMCodecConfig) -> None:
        super().__init__()
        self.fft_size, self.hop_length = config.fft_size, config.hop_length
        self.conv_in = nn.Conv1d(config.num_mel_bins, config.vocoder_size, 7, padding=3)
        self.blocks = nn.Sequential(*(VocoderBlock(config.vocoder_size) for _ in range(config.vocoder_layers)))
        self.norm_out = ChannelNorm(config.vocoder_size)
        self.conv_out = nn.Conv1d(config.vocoder_size, config.fft_size + 2, 1)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Return waves (N, F * hop_length) of scaled log-mel spectrograms (N, M, F)."""
        states = self.conv_out(self.norm_out(self.blocks(self.conv_in(mel))))
        log_magnitudes, angles = states.float().chunk(2, dim=1)
        magnitudes = log_magnitudes.clamp(MIN_LOG_MAGNITUDE, math.log(MAX_MAGNITUDE)).exp()
        spectra = torch.complex(magnitudes * angles.cos(), magnitudes * angles.sin())
        return to_waves(spectra, self.fft_size, self.hop_length)


def vocoder_reach(config: MMCodecConfig) -> int:
    """Return the number of frames on each side of a frame that its samples depend on, of [`ISTFTVocoder`]."""
    return math.ceil(config.fft_size / 2 / config.hop_length) + 3 * (1 + config.vocoder_layers)


def multi_resolution_stft_loss(waves: torch.Tensor, targets: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """
    Return the mean over window sizes of spectral convergence plus the distance of log-magnitudes.

    Args:
        waves: (N, samples)
        targets: (N, samples)
        sizes: of the windows, whose hop is a fourth
    """
    losses = []
    for size in sizes:
        found, wanted = (spectrum(each, size, size // 4).abs() for each in (waves, targets))
        convergence = (wanted - found).norm() / wanted.norm().clamp(min=FLOOR)
        distance = (wanted.clamp(min=FLOOR).log() - found.clamp(min=FLOOR).log()).abs().mean()
        losses.append(convergence + distance)
    return torch.stack(losses).mean()
