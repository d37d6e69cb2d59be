# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Weights of encoder-decoders: where they are read, and their names and layout in the joint model."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from transformers import GenerationConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .joining import load_reporting
from .loading import check_weight_files, count, read_shards, shortened
from .modalities import Modality

Weights = dict[str, torch.Tensor]

WHISPER = "whisper"
# The class of transformers for each model type that can be converted.
SOURCES = {
    "vision-encoder-decoder": "VisionEncoderDecoderModel",
    "speech-encoder-decoder": "SpeechEncoderDecoderModel",
    WHISPER: "WhisperForConditionalGeneration",
}
HEAD = "decoder.lm_head.weight"

# Whisper's names of what a GPT-2 block has.
NORMS = {"self_attn_layer_norm": "ln_1", "encoder_attn_layer_norm": "ln_cross_attn", "final_layer_norm": "ln_2"}
LAYERS = {
    "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": ("self_attn.out_proj",),
    "crossattention.q_attn": ("encoder_attn.q_proj",),
    "crossattention.c_attn": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "crossattention.c_proj": ("encoder_attn.out_proj",),
    "mlp.c_fc": ("fc1",),
    "mlp.c_proj": ("fc2",),
}


@dataclass
class Original:
    """
    The parts of an encoder-decoder that a conversion keeps.

    Args:
        weights: by the original's names
        is_tied: whether head and embedding are one
        generation: its generation config
    """

    weights: Weights
    is_tied: bool
    generation: GenerationConfig


def original_of(model: PreTrainedModel) -> Original:
    """Return the parts of a model in memory, which share its weights."""
    decoder = getattr(model, "decoder", model)  # the top config of a captioner says nothing about its head
    is_tied = decoder.get_output_embeddings().weight is decoder.get_input_embeddings().weight
    return Original(dict(model.state_dict()), is_tied, deepcopy(model.generation_config))


def load_original(source: str, config: PreTrainedConfig, loading: dict[str, Any]) -> PreTrainedModel:
    """Load a source by its class of transformers; raise a `ValueError` if its checkpoint lacks weights."""
    loader = getattr(transformers, SOURCES[config.model_type])
    model, missing = load_reporting(loader, source, loading)
    if lost := sorted(name for name in missing if not name.startswith("encoder.pooler.")):
        raise ValueError(f"{source}: {count(lost)} missing: {shortened(lost)}. Save or download the model again.")
    return model


def read_captioner(source: str, config: PreTrainedConfig, loading: dict[str, Any]) -> Original | None:
    """
    Read a captioner's weights as its files hold them, mapped into memory.

    Its class would be built and filled only to be taken apart.

    Returns:
        `None` if only the class knows what the files mean: those of a Whisper, not in safetensors, not downloaded yet,
        quantized, in another precision than the model's, without a generation config, or with a head where the config
        has none. Names that have changed are left to the caller, who misses them.
    """
    if config.model_type == WHISPER or hasattr(config, "quantization_config"):
        return None
    folder = find_folder(source, loading)
    paths = weight_paths(folder) if folder is not None else []
    if folder is None or not paths or not (folder / "generation_config.json").is_file():
        return None
    weights: Weights = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    dtypes = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    is_cast = loading.get("dtype", "auto") == "auto" and config.dtype not in (None, *dtypes)
    is_tied = config.decoder.tie_word_embeddings
    if is_cast or len(dtypes) != 1 or is_tied == (HEAD in weights):
        return None
    return Original(weights, is_tied, GenerationConfig.from_pretrained(folder))


def find_folder(source: str, loading: dict[str, Any]) -> Path | None:
    """Return the local folder of a source, or that of its download, if it has been downloaded."""
    if Path(source).is_dir():
        check_weight_files(Path(source))
        return Path(source)
    where = {"cache_dir": loading.get("cache_dir"), "revision": loading.get("revision")}
    found = try_to_load_from_cache(source, SAFE_WEIGHTS_NAME, **where)
    return Path(found).parent if isinstance(found, str) and not loading.get("force_download") else None


def weight_paths(folder: Path) -> list[Path]:
    """Return the files of safetensors that `from_pretrained` would read in a folder."""
    if (folder / SAFE_WEIGHTS_NAME).exists():
        return [folder / SAFE_WEIGHTS_NAME]
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    return [folder / name for name in read_shards(index)] if index.exists() else []


def encoder_decoder_weights(weights: Weights, modality: Modality) -> Weights:
    """Return the weights of a captioner under the joint model's names; `weights` is emptied."""
    prefixes = {
        "encoder.": f"model.{modality.tower_attribute}.",
        "enc_to_dec_proj.": f"model.{modality.connector_attribute}.linear.",
        "decoder.transformer.": "model.language_model.",
        "decoder.lm_head.": "lm_head.",
    }
    state = {}
    for name in list(weights):
        weight, prefix = weights.pop(name), next((each for each in prefixes if name.startswith(each)), None)
        if prefix is not None:  # files may hold more than the model reads
            state[prefixes[prefix] + name.removeprefix(prefix)] = weight
    return state


def whisper_weights(weights: Weights, modality: Modality) -> Weights:
    """
    Return the weights of a Whisper under the joint model's names; `weights` is emptied.

    Its linear layers are GPT-2's turned, (out, in) to (in, out), and those of one input stand side by side. Keys have
    no bias, which is a bias of zero.
    """
    text, decoder = "model.language_model.", "model.decoder."
    encoder = [name for name in weights if name.startswith("model.encoder.")]
    tower = f"model.{modality.tower_attribute}."
    state = {tower + name.removeprefix("model.encoder."): weights.pop(name) for name in encoder}
    names = {"embed_tokens.weight": "wte.weight", "embed_positions.weight": "wpe.weight"}
    names |= {f"layer_norm.{kind}": f"ln_f.{kind}" for kind in ("weight", "bias")}
    state |= {text + ours: weights.pop(decoder + theirs) for theirs, ours in names.items()}
    state["lm_head.weight"] = weights.pop("proj_out.weight")
    for layer in sorted({name.split(".")[3] for name in weights}, key=int):
        block, theirs = f"{text}h.{layer}.", f"{decoder}layers.{layer}."
        for norm, ours in NORMS.items():
            state |= {f"{block}{ours}.{kind}": weights.pop(f"{theirs}{norm}.{kind}") for kind in ("weight", "bias")}
        for ours, parts in LAYERS.items():
            turned = [weights.pop(f"{theirs}{part}.weight").T for part in parts]  # (in, out) each
            biases = [weights.pop(f"{theirs}{part}.bias", None) for part in parts]
            given = zip(turned, biases, strict=True)
            state[f"{block}{ours}.bias"] = torch.cat([x.new_zeros(x.shape[1]) if b is None else b for x, b in given])
            state[f"{block}{ours}.weight"] = torch.cat(turned, dim=1).contiguous()
    return state
