# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Joining pretrained components: a GPT-2-family decoder and any subset of encoders."""

import difflib
import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import fields
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from transformers import AutoConfig, AutoModel, GenerationConfig, GPT2LMHeadModel
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .configuration_mm import (
    LOCATION_BINS,
    SPECIAL_TOKEN_FIELDS,
    SPECIAL_TOKENS,
    MMConfig,
    first_location_id,
    part_of_config,
)
from .cross_attention import CROSS_ATTENTION
from .encoder_shapes import encoder_class_of
from .loading import check_missing, check_weight_files, count, shortened
from .modalities import MODALITIES, Modality

# Arguments of `from_pretrained` that are about loading, of each component and of the joint model.
LOADING_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "trust_remote_code")
MODEL_ARGUMENTS = ("dtype", "attn_implementation", "device_map")
MOST_ROWS = 4096  # of an embedding, of which mean and spread are taken
OTHER_ARGUMENTS = ("tokenizer", "num_labels", "ignore_missing")

Component: TypeAlias = str | PreTrainedModel
Joint = TypeVar("Joint", bound=PreTrainedModel)


def join_pretrained(cls: type[Joint], text: Component, **kwargs: Any) -> Joint:
    """
    Build a model of pretrained components, whose weights are kept bit for bit.

    Connectors and cross-attention are new. New rows of the embedding, for the special tokens, start around the mean of
    the others. The components are not changed.

    Args:
        cls: the joint class to build
        text: a GPT-2-family model, with or without its head: a Hub id, a local path or a model in memory
        **kwargs:
            encoders, by the towers of `MODALITIES` (`vision=`, `audio=`), as ids, paths or models: of a two-tower
            model its half is taken, of an encoder-decoder its encoder; `tokenizer=` (or a processor), whose special
            tokens the model then uses; fields of [`MMConfig`]; `dtype`, `attn_implementation`, `device_map`;
            `ignore_missing=True`, to start weights at random that a component's checkpoint lacks; and arguments of
            loading (`cache_dir`, `token`, `revision`, ...)

    Returns:
        the model in evaluation mode.

    Raises:
        ValueError: for an unknown argument, with the nearest valid name, for a decoder outside the GPT-2 family, and
            for weights that are missing or not finite.
    """
    config_class = cls.config_class
    check_arguments(config_class, kwargs)
    loading = {name: kwargs.pop(name) for name in LOADING_ARGUMENTS if name in kwargs}
    model_arguments = {name: kwargs.pop(name) for name in MODEL_ARGUMENTS if name in kwargs}
    tokenizer, ignore_missing = kwargs.pop("tokenizer", None), kwargs.pop("ignore_missing", False)
    components = {each: kwargs.pop(each.tower, None) for each in MODALITIES.values()}
    decoder = load_decoder(text, loading, ignore_missing)
    encoders, absent = {}, set[int]()
    for modality, given in components.items():
        if given is not None:
            encoders[modality], without = load_encoder(given, modality, loading)
            absent |= without
    if tokenizer is not None:
        kwargs = {**special_token_ids(tokenizer), **kwargs}
    configs = {each.tower: encoders[each].config if each in encoders else None for each in components}
    config = config_class.from_text_vision_audio_configs(decoder.config, **configs, **kwargs)
    if tokenizer is not None:
        fit_to_tokenizer(config, tokenizer)
    state = decoder_state(decoder, config)
    for modality, encoder in encoders.items():
        prefix = f"model.{modality.tower_attribute}."
        weights = encoder.state_dict(keep_vars=True).items()
        state |= {prefix + name: tensor.detach() for name, tensor in weights if id(tensor) not in absent}
    if any(isinstance(component, PreTrainedModel) for component in (text, *components.values())):
        # The loader takes tensors as they are; the joint model must not share them with the caller's models.
        state = {name: tensor.clone() for name, tensor in state.items()}
    model, report = load_state(cls, config, state, model_arguments)
    if not ignore_missing:
        check_report(report)
    if model.can_generate():
        model.generation_config = joint_generation_config(decoder, config, model.generation_config)
    return model.eval()


def load_state(
    cls: type[Joint], config: MMConfig, state: dict[str, torch.Tensor], arguments: dict[str, Any]
) -> tuple[Joint, dict]:
    """
    Build a model of these weights, which it takes as they are, and of new ones for those that are missing.

    Args:
        cls: the joint class to build
        config: of the model
        state: weights under the joint model's names
        arguments: `dtype` (by default one that holds all weights exactly), `attn_implementation`, `device_map`

    Returns:
        the model, and the report of the loader.
    """
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    arguments = {"dtype": reduce(torch.promote_types, dtypes), **arguments}
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # no warning about new weights: connectors and cross-attention are new by design
    try:
        model, report = cls.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, **arguments
        )
    finally:
        logging.set_verbosity(verbosity)
    # The loader notes the path it was given, None, as text, which PEFT would look up on the Hub.
    model.name_or_path = model.config.name_or_path = ""
    return model, report


def check_arguments(config_class: type[MMConfig], kwargs: dict[str, Any]) -> None:
    """Raise a `ValueError` for an unknown argument, with the nearest valid name."""
    known = {*LOADING_ARGUMENTS, *MODEL_ARGUMENTS, *OTHER_ARGUMENTS, *(field.name for field in fields(config_class))}
    known |= {name for modality in MODALITIES.values() for name in (modality.tower, *modality.config_defaults)}
    refuse_unknown("from_text_vision_audio_pretrained", kwargs, known)


def refuse_unknown(function: str, kwargs: Iterable[str], known: Iterable[str]) -> None:
    """Raise a `ValueError` for an argument that a function does not have, with the nearest one that it has."""
    for name in sorted(set(kwargs) - set(known)):
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"{function} got an unknown argument {name!r}.{hint}")


def check_report(report: dict) -> None:
    """Raise a `ValueError` if a weight of a pretrained component was not loaded."""
    new = (*(f"{modality.connector_attribute}." for modality in MODALITIES.values()), "score.", "lm_head.")
    new += ("matching_head.",)
    heads = ("embedding_projection.weight", "logit_scale", "logit_bias", "mask_embedding")
    lost = [name for name in report["missing_keys"] if not CROSS_ATTENTION.search(name) and name not in heads]
    missing = sorted(name for name in lost if not any(part in name for part in new))
    if missing:
        raise ValueError(
            f"{count(missing)} missing in the given components: {shortened(missing)}. Pass a whole checkpoint, or a "
            "model of the class that AutoModel has for its config; or ignore_missing=True to start them at random."
        )


def load_decoder(text: Component, loading: dict[str, Any], ignore_missing: bool) -> PreTrainedModel:
    """Load the decoder, with or without its head; raise a `ValueError` outside the GPT-2 family."""
    config = text.config if isinstance(text, PreTrainedModel) else AutoConfig.from_pretrained(text, **loading)
    if config.model_type != "gpt2":
        raise ValueError(
            f"The decoder must be of the GPT-2 family (model_type 'gpt2'), got model_type {config.model_type!r}. "
            "Its blocks are rebuilt with cross-attention between them, which needs GPT-2's parameters."
        )
    if isinstance(text, PreTrainedModel):
        return text
    decoder, missing = load_reporting(GPT2LMHeadModel, text, loading)
    if not ignore_missing:
        check_missing(decoder, missing, text)
    return decoder


def load_encoder(
    component: Component, modality: Modality, loading: dict[str, Any]
) -> tuple[PreTrainedModel, set[int]]:
    """Load the encoder of a modality, alone or out of a larger model; return also ids of tensors it was not given."""
    if isinstance(component, PreTrainedModel):
        return encoder_of(component, modality), set()
    config = AutoConfig.from_pretrained(component, **loading)
    config = part_of_config(config, modality.config_field)
    loader = AutoModel if config.is_encoder_decoder else encoder_class_of(config)
    model, missing = load_reporting(loader, component, {**loading, "config": config})
    encoder = encoder_of(model, modality) if config.is_encoder_decoder else model
    return encoder, {id(tensor) for name, tensor in model.state_dict(keep_vars=True).items() if name in missing}


def load_reporting(loader: Any, source: str, loading: dict[str, Any]) -> tuple[PreTrainedModel, set[str]]:
    """Load a component; return also the names of its weights that the checkpoint lacks."""
    if Path(source).is_dir():
        check_weight_files(Path(source))
    model, report = loader.from_pretrained(source, output_loading_info=True, **loading)
    return model, set(report["missing_keys"])


def encoder_of(model: PreTrainedModel, modality: Modality) -> PreTrainedModel:
    """Return the encoder in a model in memory: itself, or a part of two towers, an encoder-decoder or a CTC model."""
    half = part_of_config(model.config, modality.config_field)
    if half is model.config:
        encoder_class = encoder_class_of(model.config)
        found = [module for module in model.modules() if type(module) is encoder_class]
        expected = f"{encoder_class.__name__}, the encoder of model_type {model.config.model_type!r}"
    else:
        found = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m.config is half]
        expected = f"module for its {type(half).__name__}"
    if not found:
        raise ValueError(f"{type(model).__name__} contains no {expected}. Pass the encoder itself.")
    return found[0]


def decoder_state(decoder: PreTrainedModel, config: MMConfig) -> dict[str, torch.Tensor]:
    """Return the decoder's weights under the joint model's names, with rows for the special tokens."""
    prefix, num_rows = "model.language_model.", config.text_config.vocab_size
    masks = (".attn.bias", ".attn.masked_bias")  # buffers of very old checkpoints
    weights = decoder.base_model.state_dict().items()
    state = {prefix + name: tensor for name, tensor in weights if not name.endswith(masks)}
    state[f"{prefix}wte.weight"] = with_rows(state[f"{prefix}wte.weight"], num_rows)
    head = decoder.get_output_embeddings()
    if not config.tie_word_embeddings and head is not None:
        state["lm_head.weight"] = with_rows(head.weight.detach(), num_rows)
    if (first := config.location_token_id) is not None:
        for name in state.keys() & {f"{prefix}wte.weight", "lm_head.weight"}:
            # A copy, (V, D), as without missing rows these are the decoder's own weights.
            state[name] = state[name].detach().clone()
            state[name][first : first + LOCATION_BINS] = location_rows(state[name][:first]).to(state[name])
    return state


def with_rows(weight: torch.Tensor, num_rows: int) -> torch.Tensor:
    """
    Add rows to an embedding, (V, D) -> (num_rows, D), the same rows every time.

    New rows lie close around the mean of the old, so that a new token is as likely as an average one, but apart, so
    that their embeddings differ.
    """
    missing = num_rows - weight.shape[0]
    if missing < 0:
        raise ValueError(f"The vocabulary has {weight.shape[0]} tokens already. It cannot shrink to {num_rows}.")
    if missing == 0:
        return weight
    mean, spread = mean_and_spread(weight)
    noise = torch.randn(missing, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.device)
    return torch.cat([weight, (mean + 0.1 * spread * noise).to(weight.dtype)])


def mean_and_spread(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the standard deviation of the rows of a table (V, D), float32, (D,) each."""
    sample = table[:: max(1, table.shape[0] // MOST_ROWS)].float()  # of a large table some rows tell both well
    return sample.mean(0), sample.std(0)


def location_rows(known: torch.Tensor) -> torch.Tensor:
    """Return rows (1000, D) for location tokens beside the known ones (V, D): waves over the bins, the same always."""
    mean, spread = mean_and_spread(known)
    generator = torch.Generator().manual_seed(0)
    # From half a wave over all bins, which tells left from right, to one of four bins, which tells neighbors apart.
    turns, phase = torch.rand(2, known.shape[1], generator=generator).to(known.device)
    cycles = 0.5 * (LOCATION_BINS / 2) ** turns  # (D,)
    bins = (torch.arange(LOCATION_BINS, device=known.device) + 0.5) / LOCATION_BINS
    waves = math.sqrt(2) * torch.cos(2 * math.pi * (bins[:, None] * cycles + phase))  # (1000, D), of variance 1
    return mean + spread * waves


def special_token_ids(tokenizer: Any) -> dict[str, int]:
    """Return the config's token fields, from a tokenizer or processor whose tokens [`MMProcessor`] has added."""
    vocabulary = getattr(tokenizer, "tokenizer", tokenizer).get_vocab()
    tokens = dict(zip(SPECIAL_TOKEN_FIELDS, SPECIAL_TOKENS, strict=False))
    if missing := [token for token in tokens.values() if token not in vocabulary]:
        raise ValueError(
            f"The tokenizer lacks {', '.join(missing)}. Build it with MMProcessor.from_text_vision_audio_pretrained, "
            "which adds the special tokens."
        )
    tokens |= {each.token_id_field: each.token for each in MODALITIES.values() if each.token in vocabulary}
    ids = {field: vocabulary[token] for field, token in tokens.items()}
    return ids if (first := first_location_id(vocabulary)) is None else {**ids, "location_token_id": first}


def fit_to_tokenizer(config: MMConfig, tokenizer: Any) -> None:
    """Enlarge the vocabulary to every token of a tokenizer, and pad as it does."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    config.text_config.vocab_size = max(config.text_config.vocab_size, len(tokenizer))
    if tokenizer.pad_token_id is not None:
        config.text_config.pad_token_id = tokenizer.pad_token_id


def joint_generation_config(decoder: PreTrainedModel, config: MMConfig, joint: GenerationConfig) -> GenerationConfig:
    """Return the decoder's generation config; an answer also ends at the end-of-turn token."""
    generation_config = deepcopy(decoder.generation_config if decoder.can_generate() else joint)
    ends = generation_config.eos_token_id
    ends = [config.end_token_id, *(ends if isinstance(ends, (list, tuple)) else [ends])]
    generation_config.eos_token_id = list(dict.fromkeys(end for end in ends if end is not None)) or None
    generation_config.pad_token_id = config.text_config.pad_token_id
    return generation_config
