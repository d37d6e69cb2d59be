# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Codecs of the ecosystem behind the interface of [`MediaCodec`]: by id, by folder, or by config with random weights.

    codec = load_codec("kyutai/mimi", num_codebooks=8)
    codes = codec.encode(waves)  # (N, 8, T)

Audio: EnCodec, DAC, Mimi and X-Codec. Images: the VQ models of Emu3, Janus and Chameleon, and diffusers' `VQModel`.
Both: our [`MMCodec`] with the bottleneck `vq` or `fsq`.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import cached_file

from .audio_codecs import DacCodec, EncodecCodec, MimiCodec, MMAudioCodec, XcodecCodec
from .codec_interface import MediaCodec
from .compat import nearest_attention
from .configuration_codec import MMCodecConfig
from .image_codecs import ChameleonCodec, DiffusersCodec, Emu3Codec, JanusCodec, MMImageCodec
from .modeling_codec import MMCodec

CODECS: dict[str, type[MediaCodec]] = {
    "encodec": EncodecCodec,
    "dac": DacCodec,
    "mimi": MimiCodec,
    "xcodec": XcodecCodec,
    "emu3_vqgan": Emu3Codec,
    "janus_vqgan": JanusCodec,
    "chameleon_vqgan": ChameleonCodec,
}
OWN = MMCodecConfig.model_type
OWN_CODECS: dict[str, type[MediaCodec]] = {each.modality: each for each in (MMImageCodec, MMAudioCodec)}
# Models that hold a VQ model: its config is `vq_config`, and its weights have this prefix.
HOLDERS = ("emu3", "janus", "chameleon")
PREFIX = r"^(model\.)?vqmodel\."
OPTIONS = "codec_options"  # the field of a config that keeps what the wrapper was built with


def codec_from_config(config: PreTrainedConfig | dict[str, Any], **options: int | None) -> MediaCodec:
    """
    Build a codec with random weights.

    The options are written into the config as `codec_options`, so that the config alone builds the codec again.

    Args:
        config: of a codec, or of a model that holds one; a dict has a `model_type`, or diffusers' `_class_name`
        **options: `num_codebooks` for audio: how many of the model's codebooks to use; `image_size` for images, in
            pixels, where the model takes any

    Raises:
        ValueError: for a model that is not a supported codec, and for options that do not fit it.
    """
    config = read_config(config)
    if isinstance(config, dict):
        return wrap_diffusers(vq_model().from_config(config), config, **options)
    codec_class = class_of(config)
    # A joint model hands its own implementation down, which a convolutional codec does not have.
    config._attn_implementation = nearest_attention(codec_class, config._attn_implementation)
    return wrap(codec_class(config), config, **options)


def load_codec(source: str | Path | PreTrainedConfig | dict[str, Any], **options: int | None) -> MediaCodec:
    """
    Load a codec from a folder or the Hub, or build one with random weights from a config.

    Args:
        source: folder or id of a codec or of a model that holds one (Janus, Emu3, Chameleon), or a config
        **options: as of [`codec_from_config`]

    Raises:
        ValueError: for a model that is not a supported codec, options that do not fit it, or missing weights.
    """
    if not isinstance(source, (str, Path)):
        return codec_from_config(source, **options)
    path = cached_file(str(source), "config.json")
    fields = json.loads(Path(path).read_text(encoding="utf-8"))
    if "_class_name" in fields:
        return wrap_diffusers(vq_model().from_pretrained(str(source)), fields, **options)
    config_class: Any = MMCodecConfig if fields.get("model_type") == OWN else AutoConfig  # known without registration
    config = read_config(config_class.from_pretrained(str(source)))
    held = {"key_mapping": {PREFIX: ""}} if fields.get("model_type") in HOLDERS else {}
    model, report = class_of(config).from_pretrained(str(source), config=config, output_loading_info=True, **held)
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(f"{source} lacks weights of its {type(model).__name__}, such as {missing}.")
    return wrap(model, config, **options)


def read_config(config: PreTrainedConfig | dict[str, Any]) -> Any:
    """Return the config of the codec itself, as an object, or a dict of diffusers."""
    if isinstance(config, Mapping):
        if "_class_name" in config:
            return dict(config)
        if "model_type" not in config:
            raise ValueError("The config of a codec has no model_type; add it, for example 'mimi'.")
        fields = {name: value for name, value in config.items() if name != "model_type"}
        own = config["model_type"] == OWN
        config = MMCodecConfig(**fields) if own else AutoConfig.for_model(config["model_type"], **fields)
    return config.vq_config if config.model_type in HOLDERS else config


def class_of(config: PreTrainedConfig) -> Any:
    """
    Return the model class of a codec's config.

    Raises:
        ValueError: if it is not a supported codec.
    """
    if config.model_type == OWN:
        if config.bottleneck == "kl":
            raise ValueError(
                "This MMCodec has the bottleneck 'kl', whose latents are not codes. Use one with 'vq' or 'fsq', or "
                "its encode_latents and decode_latents."
            )
        return MMCodec
    if config.model_type not in CODECS:
        supported = ", ".join(sorted([*CODECS, OWN]))
        raise ValueError(
            f"model_type {config.model_type!r} is not a supported codec. Supported are {supported}, "
            f"models that hold one ({', '.join(HOLDERS)}), and VQModel of diffusers."
        )
    return getattr(transformers, CODECS[config.model_type].model_class)


def wrap(model: nn.Module, config: PreTrainedConfig, **options: int | None) -> MediaCodec:
    """Return the wrapper of a model, with its options kept in the config."""
    chosen = {**getattr(config, OPTIONS, {}), **drop_none(options)}
    codec_class = OWN_CODECS[config.modality] if config.model_type == OWN else CODECS[config.model_type]
    check_options(chosen, codec_class.option, config.model_type)
    setattr(config, OPTIONS, chosen)
    return codec_class(model, config, **chosen)


def wrap_diffusers(model: nn.Module, config: dict[str, Any], **options: int | None) -> MediaCodec:
    """Return the wrapper of a `VQModel`; its config has a field for the image's size."""
    chosen = drop_none(options)
    check_options(chosen, "image_size", "VQModel")
    size = chosen.get("image_size", config.get("sample_size"))
    return DiffusersCodec(model, {**config, "sample_size": size}, size)


def drop_none(options: Mapping[str, int | None]) -> dict[str, int]:
    """Return the options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


def check_options(options: Mapping[str, int], known: str | None, name: str) -> None:
    """Raise a `ValueError` for an option that a codec does not have."""
    if unknown := sorted(options.keys() - {known}):
        raise ValueError(f"Unknown option {unknown[0]!r} of the codec {name}; it has {known or 'none'}.")


def vq_model() -> Any:
    """
    Return diffusers' `VQModel`.

    Raises:
        ImportError: if diffusers is not installed.
    """
    try:
        return import_module("diffusers").VQModel
    except ModuleNotFoundError as error:
        raise ImportError("This codec is a VQModel of diffusers: pip install 'modeling_mm[diffusers]'.") from error
