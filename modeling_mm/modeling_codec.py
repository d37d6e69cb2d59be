# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Our codec: an autoencoder of images or speech whose bottleneck is a Gaussian, a codebook or rounding."""

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .bottlenecks import BOTTLENECK_CLASSES, Bottleneck
from .codec_layers import CodecDecoder, CodecEncoder, init_codec_weights
from .configuration_codec import CODEC_AUTO_MAP, MMCodecConfig
from .spectrograms import ISTFTVocoder, griffin_lim, log_mel, multi_resolution_stft_loss

# Shape legend: N items, C latent channels, G the latents' grid: (rows, columns) of an image, (T,) of audio.
# Features are what is coded: images from -1 to 1, (N, 3, H, W), or scaled log-mel spectrograms, (N, M, F).


@dataclass
class MMCodecOutput(ModelOutput):
    """
    Output of [`MMCodec`].

    Args:
        loss: to be minimized; for `kl` the negative ELBO with the weight of this step, in nats per dimension
        reconstruction: features, as the decoder gives them
        latents: (N, C, G), after the bottleneck
        codes: (N, G); `None` for `kl`
        nll: negative log-likelihood of the features given the latents, in nats per dimension, for `kl`
        divergence: of the posterior from the prior, in nats per dimension, for `kl`
        elbo: -(nll + divergence), whatever the weight, for `kl`
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    nll: torch.Tensor | None = None
    divergence: torch.Tensor | None = None
    elbo: torch.Tensor | None = None


def gaussian_nll(features: torch.Tensor, mean: torch.Tensor, log_sigma: torch.Tensor) -> torch.Tensor:
    """Return -log N(features; mean, sigma^2) in nats per dimension, averaged over items."""
    squares = (features - mean).pow(2).mean()
    return 0.5 * (squares * torch.exp(-2 * log_sigma) + math.log(2 * math.pi)) + log_sigma


class MMCodec(PreTrainedModel):
    """
    Autoencoder of images or speech.

    [`load_codec`] gives the interface of all codecs around it, from media to codes and back with checks. The methods
    here are what training, sampling and interpolation need.

    Example:
        ```python
        codec = MMCodec(MMCodecConfig(bottleneck="kl", image_size=64, latent_channels=4))
        images = torch.rand(2, 3, 64, 64)
        codec(images).loss.backward()
        latents = codec.encode_latents(images)  # (2, 4, 8, 8)
        halfway = codec.decode_latents(latents.mean(0, keepdim=True))
        drawn = codec.decode_latents(torch.randn(4, 4, 8, 8))
        ```
    """

    config: MMCodecConfig
    config_class = MMCodecConfig
    base_model_prefix = "codec"
    main_input_name = "media"

    def __init__(self, config: MMCodecConfig) -> None:
        super().__init__(config)
        bottleneck = BOTTLENECK_CLASSES[config.bottleneck]
        dimensions, channels = (2, 3) if config.modality == "image" else (1, config.num_mel_bins)
        width = config.latent_channels * bottleneck.inputs_per_channel
        self.encoder = CodecEncoder(config, dimensions, channels, width)
        self.bottleneck: Any = bottleneck(config)
        self.decoder = CodecDecoder(config, dimensions, channels)
        self.vocoder = ISTFTVocoder(config) if config.modality == "audio" and config.vocoder == "istft" else None
        if config.bottleneck == "kl" and config.learn_sigma:
            self.log_sigma = nn.Parameter(torch.empty(()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_codec_weights(module)
        if isinstance(module, MMCodec) and hasattr(module, "log_sigma"):
            init.constant_(module.log_sigma, math.log(self.config.sigma))

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        self.config.auto_map = dict(CODEC_AUTO_MAP)
        super().save_pretrained(save_directory, **kwargs)

    @property
    def hop_length(self) -> int:
        """Samples of one code of audio."""
        return self.config.hop_length * self.config.downsampling

    def to_features(self, media: torch.Tensor) -> torch.Tensor:
        """Return what is coded of media: images (N, 3, H, W) from 0 to 1, or waves (N, samples)."""
        if self.config.modality == "image":
            return media.to(self.dtype) * 2 - 1
        return log_mel(media, self.config).to(self.dtype)

    def to_media(self, features: torch.Tensor) -> torch.Tensor:
        """Return images from 0 to 1, or waves (N, samples), of features."""
        if self.config.modality == "image":
            return (features.float() / 2 + 0.5).clamp(0, 1)
        return griffin_lim(features, self.config) if self.vocoder is None else self.vocoder(features)

    def forward(self, media: torch.Tensor, return_dict: bool | None = None) -> MMCodecOutput | tuple:
        """
        Return the loss of reconstructing media.

        Args:
            media: images (N, 3, H, W) from 0 to 1, or waves (N, samples) with a multiple of `hop_length` samples
        """
        features = self.to_features(media)
        between = self.bottleneck(self.encoder(features))
        reconstruction = self.decoder(between.latents)
        output = MMCodecOutput(reconstruction=reconstruction, latents=between.latents, codes=between.codes)
        output.loss = self.feature_loss(output, features, between)
        if self.vocoder is not None and self.config.stft_weight:
            # Detached: the spectral loss, far larger, would keep the codes from being learned.
            waves = self.vocoder(reconstruction.detach())
            spectral = multi_resolution_stft_loss(waves, media.float(), self.config.stft_sizes)
            output.loss = output.loss + self.config.stft_weight * spectral
        return output if return_dict in (None, True) else output.to_tuple()

    def feature_loss(self, output: MMCodecOutput, features: torch.Tensor, between: Bottleneck) -> torch.Tensor:
        """Return the loss of the features: the negative ELBO, whose terms are noted, or the squared error and more."""
        assert output.reconstruction is not None
        features, reconstruction = features.float(), output.reconstruction.float()
        if between.divergence is None:
            return nn.functional.mse_loss(reconstruction, features) + between.loss
        output.nll = gaussian_nll(features, reconstruction, self.sigma_logarithm())
        output.divergence = between.divergence.float().sum() / features.numel()
        output.elbo = -(output.nll + output.divergence)
        return output.nll + self.bottleneck.beta() * output.divergence

    def sigma_logarithm(self) -> torch.Tensor:
        """Return the logarithm of p(x|z)'s deviation, a parameter or the config's."""
        if self.config.learn_sigma:
            return self.log_sigma.float()
        return torch.tensor(math.log(self.config.sigma), device=self.device)

    def encode_latents(self, media: torch.Tensor) -> torch.Tensor:
        """Return latents (N, C, G): the posterior's mean, or quantized."""
        return self.bottleneck.final(self.encoder(self.to_features(media)))

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return images from 0 to 1, or waves, of latents (N, C, G)."""
        return self.to_media(self.decoder(latents.to(self.dtype)))

    def encode_codes(self, media: torch.Tensor) -> torch.Tensor:
        """Return codes (N, G) of media, for `vq` and `fsq`."""
        return self.bottleneck.to_codes(self.encoder(self.to_features(media)))

    def decode_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Return images from 0 to 1, or waves, of codes (N, G), for `vq` and `fsq`."""
        return self.decode_latents(self.bottleneck.to_latents(codes))


MMCodec.register_for_auto_class("AutoModel")
