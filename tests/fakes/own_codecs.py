"""Tiny seeded codecs of ours, whose residual blocks are opened so that every weight counts."""

import torch

from modeling_mm import MMCodec, MMCodecConfig
from tests.fakes.tiny import seeded

SIZE = 16
HOP = 40  # samples of one code


def own_config(modality: str = "image", bottleneck: str = "fsq", **fields) -> MMCodecConfig:
    sizes = {"hidden_sizes": [8, 12], "strides": [2], "num_res_blocks": 1, "latent_channels": 4, "image_size": SIZE}
    codes = {"codebook_size": 16, "fsq_levels": [4, 3, 3]}
    audio = {"sampling_rate": 800, "num_mel_bins": 6, "fft_size": 64, "hop_length": HOP // 2, "stft_sizes": [32, 64]}
    vocoder = {"vocoder_size": 8, "vocoder_layers": 1}
    return MMCodecConfig(modality=modality, bottleneck=bottleneck, **{**sizes, **codes, **audio, **vocoder, **fields})


def own_codec(modality: str = "image", bottleneck: str = "fsq", seed: int = 3, **fields) -> MMCodec:
    model = seeded(lambda: MMCodec(own_config(modality, bottleneck, **fields)), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "conv2" in name or name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        if bottleneck == "vq":
            model.bottleneck.codebook.copy_(torch.randn(model.bottleneck.codebook.shape, generator=generator))
            model.bottleneck.sums.copy_(model.bottleneck.codebook)
            model.bottleneck.is_started.fill_(True)
    return model


def own_media(modality: str, rows: int = 2, codes: int = 6, seed: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if modality == "image":
        return torch.rand(rows, 3, SIZE, SIZE, generator=generator)
    return torch.randn(rows, codes * HOP, generator=generator) * 0.1
