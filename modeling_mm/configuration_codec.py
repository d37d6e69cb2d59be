# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Configuration of our codec: an autoencoder of images or speech with a choice of bottleneck."""

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .modalities import BUILT_IN

BOTTLENECKS = ("kl", "vq", "fsq")
VOCODERS = ("istft", "griffin_lim")
CODEC_AUTO_MAP = {"AutoConfig": "configuration_codec.MMCodecConfig", "AutoModel": "modeling_codec.MMCodec"}


@strict
class MMCodecConfig(PreTrainedConfig):
    r"""
    Configuration of [`MMCodec`].

    Args:
        modality (`str`, *optional*, defaults to `"image"`): `"image"` or `"audio"`.
        bottleneck (`str`, *optional*, defaults to `"fsq"`):
            `"kl"`: a Gaussian posterior, as of a VAE, without codes; `"vq"`: a codebook that follows the latents by
            moving averages; `"fsq"`: latents rounded to `fsq_levels`.
        hidden_sizes (`list[int]`, *optional*): channels at each resolution, from the media's to the latents'.
        strides (`list[int]`, *optional*): by how much each step reduces height and width, or time.
        num_res_blocks (`int`, *optional*, defaults to 2): residual blocks at each resolution.
        kernel_size (`int`, *optional*, defaults to 3): of their convolutions; odd.
        latent_channels (`int`, *optional*, defaults to 8): of `kl` and `vq`; `fsq` has one for each level.
        image_size (`int`, *optional*, defaults to 64): height and width of images, a multiple of all strides together.
        kl_weight (`float`, *optional*, defaults to 1.0): beta, which multiplies the divergence from the prior.
        kl_warmup_steps (`int`, *optional*, defaults to 0): steps of training in which beta rises from 0.
        sigma (`float`, *optional*, defaults to 0.1): deviation of the media given the latents, of values from -1 to 1.
        learn_sigma (`bool`, *optional*, defaults to `True`): if sigma is a parameter that starts there.
        codebook_size (`int`, *optional*, defaults to 1024): codes of `vq`.
        codebook_decay (`float`, *optional*, defaults to 0.99): of the moving averages of the codebook.
        commitment_weight (`float`, *optional*, defaults to 0.25): pulls latents to their codes.
        dead_code_threshold (`float`, *optional*, defaults to 0.1):
            A code with a lower moving average of uses in a batch is replaced by a latent of the batch.
        fsq_levels (`list[int]`, *optional*): values of each latent channel of `fsq`; their product is the codes.
        sampling_rate (`int`, *optional*, defaults to 16000): of waves.
        num_mel_bins (`int`, *optional*, defaults to 80): bands of the log-mel spectrogram that is coded.
        fft_size (`int`, *optional*, defaults to 512): samples of its windows.
        hop_length (`int`, *optional*, defaults to 160): samples between them; a code has `hop_length` times strides.
        vocoder (`str`, *optional*, defaults to `"istft"`):
            What makes waves of spectrograms: `"istft"`, a network that is trained along, or `"griffin_lim"`.
        vocoder_size (`int`, *optional*, defaults to 256): channels of that network.
        vocoder_layers (`int`, *optional*, defaults to 4): its blocks.
        stft_sizes (`list[int]`, *optional*): window sizes of the spectral loss of waves.
        stft_weight (`float`, *optional*, defaults to 1.0):
            Weight of this loss, which teaches the vocoder alone; with 0 the vocoder does not run in training.

    Example:

        ```python
        codec = MMCodec(MMCodecConfig(bottleneck="fsq", image_size=64))
        print(codec.config.codebook_size, codec.config.grid)  # 1000 (8, 8)
        ```
    """

    model_type = "mm_codec"

    modality: str = "image"
    bottleneck: str = "fsq"
    hidden_sizes: Sequence[int] = (32, 64, 128, 128)
    strides: Sequence[int] = (2, 2, 2)
    num_res_blocks: int = 2
    kernel_size: int = 3
    latent_channels: int = 8
    image_size: int = 64
    kl_weight: float = 1.0
    kl_warmup_steps: int = 0
    sigma: float = 0.1
    learn_sigma: bool = True
    codebook_size: int = 1024
    codebook_decay: float = 0.99
    commitment_weight: float = 0.25
    dead_code_threshold: float = 0.1
    fsq_levels: Sequence[int] = (8, 5, 5, 5)
    sampling_rate: int = 16000
    num_mel_bins: int = 80
    fft_size: int = 512
    hop_length: int = 160
    vocoder: str = "istft"
    vocoder_size: int = 256
    vocoder_layers: int = 4
    stft_sizes: Sequence[int] = (256, 512, 1024)
    stft_weight: float = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        if TRANSFORMERS_DYNAMIC_MODULE_NAME not in __name__:
            import_module(".registration", __package__).register_classes()
        for name in ("hidden_sizes", "strides", "fsq_levels", "stft_sizes"):
            setattr(self, name, list(getattr(self, name)))
        if self.bottleneck == "fsq":
            self.latent_channels, self.codebook_size = len(self.fsq_levels), math.prod(self.fsq_levels)
        super().__post_init__(**kwargs)
        self.validate_fields()

    @property
    def downsampling(self) -> int:
        """Ratio of an image's height and width, or of a spectrogram's frames, to those of the latents."""
        return math.prod(self.strides)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of an image's latents; `None` for audio."""
        side = self.image_size // self.downsampling
        return (side, side) if self.modality == "image" else None

    def validate_fields(self) -> None:
        """Raise a `ValueError` for values that do not fit each other."""
        choices = {"modality": BUILT_IN, "bottleneck": BOTTLENECKS, "vocoder": VOCODERS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}.")
        if len(self.hidden_sizes) != len(self.strides) + 1:
            raise ValueError(
                f"hidden_sizes has {len(self.hidden_sizes)} values and strides {len(self.strides)}; give one more "
                "hidden size than strides."
            )
        if min(self.strides, default=1) < 1 or min(self.hidden_sizes) < 1 or min(self.fsq_levels) < 2:
            raise ValueError("hidden_sizes and strides must be positive, and fsq_levels 2 at least.")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {self.kernel_size}; expected an odd number.")
        if self.modality == "image" and (self.image_size < 1 or self.image_size % self.downsampling):
            raise ValueError(
                f"image_size is {self.image_size}; expected a multiple of the strides' product, {self.downsampling}."
            )
        if self.sigma <= 0:
            raise ValueError(f"sigma is {self.sigma}; expected a positive deviation.")


MMCodecConfig.register_for_auto_class()
