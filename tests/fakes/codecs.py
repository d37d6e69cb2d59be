"""Tiny seeded codecs, each of its real class, and media for them.

codec = tiny_codec("mimi")
codec.decode(codec.encode(waves(codec)))
"""

import torch
from transformers import (
    ChameleonVQVAEConfig,
    DacConfig,
    Emu3VQVAEConfig,
    EncodecConfig,
    HubertConfig,
    JanusVQVAEConfig,
    MimiConfig,
    XcodecConfig,
)

from modeling_mm.codec_interface import MediaCodec
from modeling_mm.codecs import codec_from_config
from tests.fakes.tiny import seeded

CODES = 16  # the size of each codebook
RATE = 800  # samples a second
SIZE = 16  # the height and width of an image
AUDIO = ("encodec", "dac", "mimi", "xcodec")
IMAGES = ("emu3_vqgan", "janus_vqgan", "chameleon_vqgan")
OPTIONS = {"emu3_vqgan": {"image_size": SIZE}}


def encodec_config(**fields) -> EncodecConfig:
    sizes = {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [4, 2], "num_lstm_layers": 1}
    rates = {"sampling_rate": RATE, "codebook_size": CODES, "target_bandwidths": [0.8, 1.6]}
    return EncodecConfig(**{**sizes, **rates, **fields})


def dac_config(**fields) -> DacConfig:
    sizes = {"encoder_hidden_size": 4, "decoder_hidden_size": 16, "downsampling_ratios": [2, 4], "codebook_dim": 4}
    rates = {"sampling_rate": RATE, "codebook_size": CODES, "n_codebooks": 3}
    return DacConfig(**{**sizes, **rates, **fields})


def mimi_config(**fields) -> MimiConfig:
    sizes = {"hidden_size": 8, "num_filters": 4, "upsampling_ratios": [4, 2], "codebook_dim": 4, "upsample_groups": 8}
    sizes |= {"num_hidden_layers": 1, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"vector_quantization_hidden_dimension": 4, "sliding_window": 8, "max_position_embeddings": 100}
    rates = {"sampling_rate": RATE, "codebook_size": CODES, "num_quantizers": 4}
    return MimiConfig(**{**sizes, **rates, **fields})


def xcodec_config(**fields) -> XcodecConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": [8, 8], "conv_kernel": [6, 2], "conv_stride": [4, 2], "num_feat_extract_layers": 2}
    position = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    hubert = HubertConfig(**sizes, **convolutions, **position).to_dict()
    dac = dac_config(downsampling_ratios=[4, 2]).to_dict()
    rates = {"sample_rate": RATE, "codebook_size": CODES, "target_bandwidths": [0.4, 0.8]}
    return XcodecConfig(**{"acoustic_model_config": dac, "semantic_model_config": hubert, **rates, **fields})


def emu3_config(**fields) -> Emu3VQVAEConfig:
    sizes = {"embed_dim": 4, "latent_channels": 4, "base_channels": 32, "channel_multiplier": [1, 1, 1]}
    blocks = {"num_res_blocks": 1, "attn_resolutions": [], "hidden_size": 32, "temporal_downsample_factor": 2}
    return Emu3VQVAEConfig(**{**sizes, **blocks, "codebook_size": CODES, **fields})


def janus_config(**fields) -> JanusVQVAEConfig:
    sizes = {"embed_dim": 4, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1, 1]}
    return JanusVQVAEConfig(**{**sizes, "num_res_blocks": 1, "num_patches": 4, "num_embeddings": CODES, **fields})


def chameleon_config(**fields) -> ChameleonVQVAEConfig:
    sizes = {"embed_dim": 4, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1, 1]}
    return ChameleonVQVAEConfig(
        **{**sizes, "num_res_blocks": 1, "resolution": SIZE, "num_embeddings": CODES, **fields}
    )


CONFIGS = {
    "encodec": encodec_config,
    "dac": dac_config,
    "mimi": mimi_config,
    "xcodec": xcodec_config,
    "emu3_vqgan": emu3_config,
    "janus_vqgan": janus_config,
    "chameleon_vqgan": chameleon_config,
}


@torch.no_grad()
def spread_codebooks(codec: MediaCodec, seed: int = 7) -> MediaCodec:
    """Draw the codebooks that start at zero or close to it, so that media have many codes."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in codec.named_buffers():
        if name.endswith(("codebook.embed", "codebook.embed_sum")):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    for name, parameter in codec.named_parameters():
        if name.endswith("quantize.embedding.weight"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
    return codec


def tiny_codec(kind: str, **options) -> MediaCodec:
    """A codec of transformers with random weights."""
    options = {**OPTIONS.get(kind, {}), **options}
    return spread_codebooks(seeded(lambda: codec_from_config(CONFIGS[kind](), **options)))


def waves(samples: int = 3 * RATE // 10, rows: int = 2, seed: int = 5) -> torch.Tensor:
    return torch.randn(rows, samples, generator=torch.Generator().manual_seed(seed))


def images(rows: int = 2, size: int = SIZE, seed: int = 6) -> torch.Tensor:
    return torch.rand(rows, 3, size, size, generator=torch.Generator().manual_seed(seed))


def media_of(codec: MediaCodec, rows: int = 2) -> torch.Tensor:
    return images(rows) if codec.modality == "image" else waves(rows=rows)
