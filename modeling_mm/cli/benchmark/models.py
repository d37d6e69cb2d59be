# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Models of the benchmark, ours and peers, with random weights."""

from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    SpeechEncoderDecoderModel,
    ViTConfig,
    WhisperConfig,
    WhisperModel,
)
from transformers import VisionEncoderDecoderConfig as PeerConfig
from transformers import VisionEncoderDecoderModel as Peer

from ... import MMConfig, MMForConditionalGeneration

PROMPT_TOKENS = 16


def open_gates(model: MMForConditionalGeneration) -> MMForConditionalGeneration:
    """Open the gates, so that closed ones cannot be suspected of a shortcut. Both compute the same."""
    for name, parameter in model.named_parameters():
        if ".gate_" in name:
            torch.nn.init.constant_(parameter, 0.5)
    return model


def captioner(text: GPT2Config, vision: ViTConfig, **fields: Any) -> MMForConditionalGeneration:
    """Return ours of an image encoder and a decoder."""
    config = MMConfig.from_text_vision_audio_configs(text, vision, **fields)
    return open_gates(MMForConditionalGeneration(config))


def transcriber(text: GPT2Config, audio: WhisperConfig, **fields: Any) -> MMForConditionalGeneration:
    """Return ours of an audio encoder and a decoder."""
    config = MMConfig.from_text_vision_audio_configs(text, None, audio, **fields)
    return open_gates(MMForConditionalGeneration(config))


def peer_captioner(text: GPT2Config, vision: ViTConfig) -> PreTrainedModel:
    """Return the peer of an image encoder and a decoder."""
    return started(Peer(PeerConfig.from_encoder_decoder_configs(vision, text)), text)


def peer_transcriber(text: GPT2Config, audio: WhisperConfig) -> PreTrainedModel:
    """Return the peer of an audio encoder and a decoder; a Whisper encoder alone has no class of `AutoModel`."""
    decoder = GPT2LMHeadModel(GPT2Config(**{**text.to_diff_dict(), "add_cross_attention": True, "is_decoder": True}))
    return started(SpeechEncoderDecoderModel(encoder=WhisperModel(audio).encoder, decoder=decoder), text)


def started(peer: PreTrainedModel, text: GPT2Config) -> PreTrainedModel:
    """Return a peer that knows the first token of an answer."""
    peer.generation_config.decoder_start_token_id = text.bos_token_id
    peer.config.decoder_start_token_id = text.bos_token_id
    peer.config.pad_token_id = text.eos_token_id
    return peer


def text_config(**fields: Any) -> GPT2Config:
    """Return GPT-2's config, 124M."""
    return GPT2Config(**fields)


def vision_config(**fields: Any) -> ViTConfig:
    """Return ViT-B/16's config, 86M."""
    return ViTConfig(**fields)


def whisper_config(**fields: Any) -> WhisperConfig:
    """Return a config of Whisper with the sizes that are given."""
    return WhisperConfig(**fields)


def whisper_base() -> WhisperConfig:
    """Return the config of Whisper base, whose encoder has 21M parameters."""
    sizes = {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048}
    return whisper_config(**sizes, decoder_layers=6, decoder_attention_heads=8, decoder_ffn_dim=2048)


def greedy(tokens: int) -> dict[str, Any]:
    """Return options of `generate` for exactly so many new tokens."""
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
