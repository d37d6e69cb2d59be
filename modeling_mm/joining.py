# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Joining pretrained parts: a GPT-2-family decoder, a vision encoder, an audio encoder, in any subset."""

import difflib
from contextlib import contextmanager
from dataclasses import fields
from functools import reduce
from typing import TypeAlias

import torch
from transformers import AutoConfig, AutoModel, GenerationConfig, GPT2LMHeadModel
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .configuration_mm import SPECIAL_TOKEN_FIELDS, SPECIAL_TOKENS, MMConfig
from .encoders import encoder_class_of

# Arguments of from_pretrained that say where and how parts are loaded, not what the joint model is.
LOADING_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "trust_remote_code")
MODEL_ARGUMENTS = ("dtype", "attn_implementation", "device_map")

Part: TypeAlias = str | PreTrainedModel


def join_pretrained(cls, text: Part, vision: Part | None = None, audio: Part | None = None, **kwargs):
    """
    Args:
        cls: the joint class to build
        text: a GPT-2-family model: a Hub id, a local path or a model in memory, with or without its head
        vision, audio: encoders, likewise; of two-tower models the half that is meant, of encoder-decoders the encoder
        **kwargs:
            fields of [`MMConfig`]; `tokenizer=` (or a processor) whose special tokens the model should use;
            `dtype`, `attn_implementation`, `device_map`; and how to load (`cache_dir`, `token`, `revision`, ...)

    Returns:
        a model of class `cls` in evaluation mode, with the parts' weights bit for bit. Connectors and cross-attention
        start fresh; rows that the special tokens need start around the mean of the embedding. The parts are not
        changed.

    Raises:
        ValueError: for an unknown argument, with the nearest valid name, and for a decoder outside the GPT-2 family.
    """
    check_arguments(kwargs)
    loading = {name: kwargs.pop(name) for name in LOADING_ARGUMENTS if name in kwargs}
    how = {name: kwargs.pop(name) for name in MODEL_ARGUMENTS if name in kwargs}
    tokenizer = kwargs.pop("tokenizer", None)
    decoder = load_decoder(text, loading)
    encoders = {
        "vision": load_encoder(vision, "vision_config", loading),
        "audio": load_encoder(audio, "audio_config", loading),
    }
    if tokenizer is not None:
        kwargs = {**special_token_ids(tokenizer), **kwargs}
    config = MMConfig.from_text_vision_audio_configs(
        decoder.config, *(None if encoder is None else encoder.config for encoder in encoders.values()), **kwargs
    )
    if tokenizer is not None:
        fit_to_tokenizer(config, tokenizer)
    state = decoder_state(decoder, config.text_config.vocab_size, tied=config.tie_word_embeddings)
    for modality, encoder in encoders.items():
        if encoder is not None:
            prefix = f"model.{modality}_tower."
            state.update({prefix + name: tensor for name, tensor in encoder.state_dict().items()})
    if any(isinstance(part, PreTrainedModel) for part in (text, vision, audio)):
        # The loader takes tensors as they are; the joint model must not share them with the caller's models.
        state = {name: tensor.clone() for name, tensor in state.items()}
    how.setdefault("dtype", widest_dtype(state))
    with quiet_report_of_fresh_weights():
        model, report = cls.from_pretrained(None, config=config, state_dict=state, output_loading_info=True, **how)
    check_report(report)
    # It came from nowhere; the loader notes the path it was given, None, as text, which PEFT would look up on the Hub.
    model.name_or_path = model.config.name_or_path = ""
    if model.can_generate():
        model.generation_config = joint_generation_config(decoder, config, model.generation_config)
    return model.eval()


def check_arguments(kwargs: dict) -> None:
    known = {
        *LOADING_ARGUMENTS,
        *MODEL_ARGUMENTS,
        "tokenizer",
        *(field.name for field in fields(MMConfig)),
        "num_labels",
    }
    for name in kwargs:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"from_text_vision_audio_pretrained got an unknown argument {name!r}.{hint}")


def widest_dtype(state: dict[str, torch.Tensor]) -> torch.dtype:
    """The precision that holds every part's weights exactly."""
    return reduce(torch.promote_types, {tensor.dtype for tensor in state.values() if tensor.is_floating_point()})


def check_report(report: dict) -> None:
    """
    Raises:
        ValueError: where a pretrained part's weight did not land.
    """
    fresh = ("vision_connector.", "audio_connector.", "cross_blocks.", "score.", "lm_head.")
    missing = sorted(name for name in report["missing_keys"] if not any(part in name for part in fresh))
    if missing:
        raise ValueError(
            f"{len(missing)} weights are not among those of the parts that were given, such as {missing[0]}. The part "
            "is not of the class that transformers names for its config; load it with AutoModel."
        )


def load_decoder(text: Part, loading: dict) -> PreTrainedModel:
    """
    The decoder, with or without its head.

    Raises:
        ValueError: where it is not of the GPT-2 family.
    """
    config = text.config if isinstance(text, PreTrainedModel) else AutoConfig.from_pretrained(text, **loading)
    if config.model_type != "gpt2":
        raise ValueError(
            f"The decoder must be of the GPT-2 family (model_type 'gpt2'), got model_type {config.model_type!r}. "
            "Its blocks are rebuilt with cross-attention between them, which needs GPT-2's parameters."
        )
    if isinstance(text, PreTrainedModel):
        return text
    return GPT2LMHeadModel.from_pretrained(text, **loading)


def load_encoder(part: Part | None, half: str, loading: dict) -> PreTrainedModel | None:
    """
    An encoder, taken out of the model that it is half of where need be.

    Args:
        half: `"vision_config"` or `"audio_config"`, the name under which two-tower configs hold the half that is meant
    """
    if part is None:
        return None
    if isinstance(part, PreTrainedModel):
        return encoder_of(part, half)
    config = AutoConfig.from_pretrained(part, **loading)
    config = getattr(config, half, None) or config
    if config.is_encoder_decoder:
        return encoder_of(AutoModel.from_pretrained(part, config=config, **loading), half)
    return encoder_class_of(config).from_pretrained(part, config=config, **loading)


def encoder_of(model: PreTrainedModel, half: str) -> PreTrainedModel:
    """The encoder within a model in memory: itself, the half of a two-tower model, or an encoder-decoder's encoder."""
    wanted = getattr(model.config, half, None)
    if wanted is not None:
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and module.config is wanted:
                return module
        raise ValueError(
            f"{type(model).__name__} has a {half}, but no part of its own for it. Pass the encoder itself."
        )
    encoder_class = encoder_class_of(model.config)
    for module in model.modules():
        if type(module) is encoder_class:
            return module
    raise ValueError(
        f"{type(model).__name__} has no {encoder_class.__name__} in it, which transformers names as the encoder of "
        f"model_type {model.config.model_type!r}. Pass the encoder itself."
    )


def decoder_state(decoder: PreTrainedModel, vocab_size: int, tied: bool) -> dict[str, torch.Tensor]:
    """The decoder's weights under the joint model's names, with rows for the special tokens."""
    base = decoder.base_model
    prefix = "model.language_model."
    state = {prefix + name: tensor for name, tensor in base.state_dict().items()}
    # Masks that very old checkpoints keep as buffers are no weights.
    state = {name: tensor for name, tensor in state.items() if not name.endswith((".attn.bias", ".attn.masked_bias"))}
    embedding = f"{prefix}wte.weight"
    state[embedding] = with_rows(state[embedding], vocab_size)
    head = decoder.get_output_embeddings()
    if not tied and head is not None:
        state["lm_head.weight"] = with_rows(head.weight.detach(), vocab_size)
    return state


def with_rows(weight: torch.Tensor, num_rows: int) -> torch.Tensor:
    """
    (V, D) -> (num_rows, D). New rows lie close around the mean of the old, so that a new token is as likely as an
    average one, but apart from each other, so that each can be told by its embedding. The same rows every time.
    """
    missing = num_rows - weight.shape[0]
    if missing < 0:
        raise ValueError(f"The vocabulary has {weight.shape[0]} tokens already; it cannot shrink to {num_rows}.")
    if missing == 0:
        return weight
    mean, spread = weight.float().mean(0), weight.float().std(0)  # (D,) each
    noise = torch.randn(missing, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.device)
    return torch.cat([weight, (mean + 0.1 * spread * noise).to(weight.dtype)])


def special_token_ids(tokenizer) -> dict[str, int]:
    """The config's token fields, from a tokenizer or processor to which [`MMProcessor`] has added the tokens."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in SPECIAL_TOKENS[: len(SPECIAL_TOKEN_FIELDS)] if token not in vocabulary]
    if missing:
        raise ValueError(
            f"The tokenizer lacks {', '.join(missing)}. Build it with MMProcessor.from_text_vision_audio_pretrained, "
            "which adds the special tokens."
        )
    return {field: vocabulary[token] for field, token in zip(SPECIAL_TOKEN_FIELDS, SPECIAL_TOKENS, strict=False)}


def fit_to_tokenizer(config: MMConfig, tokenizer) -> None:
    """Makes room in the vocabulary for every token of a tokenizer, and pads as it does."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    config.text_config.vocab_size = max(config.text_config.vocab_size, len(tokenizer))
    if tokenizer.pad_token_id is not None:
        config.text_config.pad_token_id = tokenizer.pad_token_id


def joint_generation_config(decoder: PreTrainedModel, config: MMConfig, joint: GenerationConfig) -> GenerationConfig:
    """The decoder's own way of generating; an answer also ends at the end-of-turn token."""
    generation_config = decoder.generation_config if decoder.can_generate() else joint
    generation_config = GenerationConfig.from_dict(generation_config.to_dict())
    ends = generation_config.eos_token_id if generation_config.eos_token_id is not None else []
    ends = [ends] if isinstance(ends, int) else list(ends)
    if config.end_token_id is not None:
        ends = [config.end_token_id, *(end for end in ends if end != config.end_token_id)]
    generation_config.eos_token_id = ends or None
    generation_config.pad_token_id = config.text_config.pad_token_id
    return generation_config


@contextmanager
def quiet_report_of_fresh_weights():
    """Connectors and cross-attention start fresh by design: the loader's warning about it would only alarm."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
