# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Audio codecs behind the interface of [`AudioCodec`]: EnCodec, X-Codec, DAC, Mimi, and an [`MMCodec`] of audio."""

import math

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig

from .codec_interface import AudioCodec
from .codec_layers import decoder_reach
from .spectrograms import vocoder_reach

# Shape legend as in codec_interface.py: N waves, K codebooks, T codes.


class EncodecCodec(AudioCodec):
    """EnCodec; its bandwidths fix the numbers of codebooks, by default that of the first, as in transformers."""

    model_class = "EncodecModel"

    def __init__(self, model: nn.Module, config: PreTrainedConfig, num_codebooks: int | None = None) -> None:
        super().__init__(model, config)
        if config.normalize or config.chunk_length_s is not None or config.audio_channels != 1:
            raise ValueError(
                "This EnCodec writes volumes beside its codes, works in chunks or reads two channels, so that codes "
                "alone do not give the audio back. Use one like facebook/encodec_24khz."
            )
        self.codebook_size, self.sampling_rate, self.hop_length = read_rates(config, config.sampling_rate)
        self.rate = self.sampling_rate / self.hop_length
        default = config.target_bandwidths[0]
        self.bandwidth, self.num_codebooks = choose_bandwidth(config, num_codebooks, default)

    @property
    def reach(self) -> tuple[float, float]:
        """Return all codes before; codes behind only where the first ones are mirrored to pad a convolution."""
        config = self.config
        widest = max(
            config.kernel_size, config.last_kernel_size, config.dilation_growth_rate**config.num_residual_layers
        )
        return math.inf, (widest if config.pad_mode == "reflect" else 0) if config.use_causal_conv else math.inf

    def _encode(self, waves: torch.Tensor) -> torch.Tensor:
        return self.model.encode(waves[:, None], bandwidth=self.bandwidth).audio_codes[0]  # one chunk

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.fit(self.model.decode(codes[None], [None]).audio_values[:, 0], codes.shape[2])


class XcodecCodec(AudioCodec):
    """X-Codec; its bandwidths fix the numbers of codebooks, by default that of the last, as in transformers."""

    model_class = "XcodecModel"

    def __init__(self, model: nn.Module, config: PreTrainedConfig, num_codebooks: int | None = None) -> None:
        super().__init__(model, config)
        self.codebook_size, self.sampling_rate, self.hop_length = read_rates(config, config.sample_rate)
        self.rate = self.sampling_rate / self.hop_length
        default = config.target_bandwidths[-1]
        self.bandwidth, self.num_codebooks = choose_bandwidth(config, num_codebooks, default)

    @property
    def reach(self) -> tuple[float, float]:
        return dac_reach(self.config.acoustic_model_config)

    def _encode(self, waves: torch.Tensor) -> torch.Tensor:
        return self.model.encode(waves[:, None], bandwidth=self.bandwidth).audio_codes

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.fit(self.model.decode(codes).audio_values[:, 0], codes.shape[2])


class DacCodec(AudioCodec):
    """Descript's codec."""

    model_class = "DacModel"

    def __init__(self, model: nn.Module, config: PreTrainedConfig, num_codebooks: int | None = None) -> None:
        super().__init__(model, config)
        self.codebook_size, self.sampling_rate, self.hop_length = read_rates(config, config.sampling_rate)
        self.rate = self.sampling_rate / self.hop_length
        self.num_codebooks = at_most(num_codebooks, config.n_codebooks)

    @property
    def reach(self) -> tuple[float, float]:
        return dac_reach(self.config)

    def _encode(self, waves: torch.Tensor) -> torch.Tensor:
        return self.model.encode(waves[:, None], n_quantizers=self.num_codebooks).audio_codes

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.fit(self.model.decode(audio_codes=codes).audio_values, codes.shape[2])


class MimiCodec(AudioCodec):
    """Mimi, whose first codebooks hold what is said."""

    model_class = "MimiModel"

    def __init__(self, model: nn.Module, config: PreTrainedConfig, num_codebooks: int | None = None) -> None:
        super().__init__(model, config)
        self.codebook_size, self.sampling_rate = config.codebook_size, config.sampling_rate
        self.rate = float(config.frame_rate)
        self.hop_length = round(self.sampling_rate / self.rate)
        self.num_codebooks = at_most(num_codebooks, config.num_quantizers, at_least=config.num_semantic_quantizers)

    @property
    def reach(self) -> tuple[float, float]:
        is_causal = self.config.use_causal_conv and self.config.pad_mode == "constant"
        return math.inf, 0 if is_causal else math.inf

    def _encode(self, waves: torch.Tensor) -> torch.Tensor:
        return self.model.encode(waves[:, None], num_quantizers=self.num_codebooks).audio_codes

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.fit(self.model.decode(codes).audio_values[:, 0], codes.shape[2])


class MMAudioCodec(AudioCodec):
    """An [`MMCodec`] of audio."""

    option = None
    num_codebooks = 1

    def __init__(self, model: nn.Module, config: PreTrainedConfig) -> None:
        super().__init__(model, config)
        self.codebook_size, self.sampling_rate = config.codebook_size, config.sampling_rate
        self.hop_length = self.model.hop_length
        self.rate = self.sampling_rate / self.hop_length

    @property
    def reach(self) -> tuple[float, float]:
        """Return the codes on both sides, which a wave by Griffin-Lim depends on all of."""
        if self.model.vocoder is None:
            return math.inf, math.inf
        codes = decoder_reach(self.config, vocoder_reach(self.config))
        return codes, codes

    def _encode(self, waves: torch.Tensor) -> torch.Tensor:
        return self.model.encode_codes(waves)[:, None]

    def _decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.model.decode_codes(codes[:, 0])


def read_rates(config: PreTrainedConfig, sampling_rate: int) -> tuple[int, int, int]:
    """Return the codebook's size, the sampling rate and the samples of one code."""
    return config.codebook_size, sampling_rate, int(config.hop_length)


def choose_bandwidth(config: PreTrainedConfig, num_codebooks: int | None, default: float) -> tuple[float, int]:
    """
    Return a bandwidth in kbit/s and its number of codebooks.

    Raises:
        ValueError: if no bandwidth of the model has this number.
    """
    kilobits = math.log2(config.codebook_size) * config.frame_rate / 1000  # of one codebook
    numbers = {
        bandwidth: min(max(1, math.floor(bandwidth / kilobits)), config.num_quantizers)
        for bandwidth in config.target_bandwidths
    }
    if num_codebooks is None:
        return default, numbers[default]
    for bandwidth, number in numbers.items():
        if number == num_codebooks:
            return bandwidth, number
    raise ValueError(
        f"num_codebooks is {num_codebooks}; the bandwidths of this {config.model_type} have "
        f"{', '.join(map(str, sorted(set(numbers.values()))))}."
    )


def dac_reach(config: PreTrainedConfig) -> tuple[float, float]:
    """Return the reach of DAC's decoder, which X-Codec has too, in codes on both sides."""
    reach = 3  # samples; every kernel is of 7, and of transposed convolutions of two strides
    for stride in reversed(config.upsampling_ratios):
        reach += 3 * (1 + 3 + 9)  # three residual units with dilations
        reach = (reach + stride - 1 + math.ceil(stride / 2)) // stride
    return reach + 3, reach + 3


def at_most(number: int | None, available: int, at_least: int = 1) -> int:
    """Return the number of codebooks to use, by default all; raise a `ValueError` if there are not as many."""
    if number is None:
        return available
    if not at_least <= number <= available:
        raise ValueError(f"num_codebooks is {number}; expected {at_least} to {available}.")
    return number
