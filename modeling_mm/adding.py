# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Adding a modality, or location tokens, to a model that has learned without, so that nothing is forgotten."""

from copy import deepcopy
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from .configuration_mm import (
    LOCATION_BINS,
    LOCATION_TOKENS,
    TAG_FIELDS,
    MMConfig,
    encoder_sub_config,
    first_location_id,
)
from .cross_attention import CROSS_ATTENTION, cross_attention_groups
from .joining import (
    LOADING_ARGUMENTS,
    Component,
    Joint,
    load_encoder,
    load_state,
    location_rows,
    refuse_unknown,
    with_rows,
)
from .loading import count, shortened
from .modalities import MODALITIES, Modality

FREEZING = ("freeze", "freeze_encoder")
MOST_LAYERS = 4  # blocks before which a new modality is read, where none are named
# Arguments of a new modality, by the ends of its fields in the config.
FIELDS = {
    "cross_attention_layers": "cross_attention_layers",
    "placement": "cross_attention_placement",
    "connector": "connector",
    "connector_size": "connector_size",
    "connector_layers": "connector_layers",
    "latents": "latents",
    "pooling": "pooling",
    **{field: field for field in TAG_FIELDS},
    "feature_layers": "feature_layers",
}
BEFORE_BLOCKS = (
    *("cross_attention_feed_forward", "cross_attention_feed_forward_size"),
    *("cross_attention_query_gate", "cross_attention_token_gate"),
    *("cross_attention_stand_in", "cross_attention_sink"),
)
# Of all modalities with a connector that learns, and of all cross-attention before decoder blocks.
SHARED_FIELDS = (
    *("connector_dropout", "max_media_items", "media_position_encoding", "max_media_positions"),
    *BEFORE_BLOCKS,
)


def add_modality(
    model: Joint, name: str, component: Component, *, freeze: bool = True, freeze_encoder: bool = True, **kwargs: Any
) -> Joint:
    """
    Return a copy of a model that has one modality more.

    The new modality has separate cross-attention, which adds zero at first, so that every logit of text and of the
    other modalities is what it was; and it stays so in training, as only the new connector and the new cross-attention
    learn. Processors: [`MMProcessor.add_part`].

    Args:
        model: a joint model, joined or converted
        name: of the modality, such as `"image"`, or one that you have registered
        component: its encoder: a Hub id, a local path or a model in memory
        freeze: whether all that is pretrained is frozen, the new encoder too; the config keeps it for a reload.
            Otherwise what was trainable stays so
        freeze_encoder: False for an encoder that has learned nothing yet, which trains while the rest is frozen
        **kwargs: `cross_attention_layers`, indices of decoder blocks (by default the first four), and `placement`,
            `"before"` them or `"inside"`; `connector`, `connector_size`, `connector_layers`, `latents`, `pooling`,
            `tags`, `tag_length`, `tag_choices`, `tag_rank`, `feature_layers`, `connector_dropout`,
            `max_media_items`, `media_position_encoding`, `max_media_positions`, `cross_attention_feed_forward`,
            `cross_attention_feed_forward_size`, `cross_attention_query_gate`, `cross_attention_token_gate`,
            `cross_attention_stand_in` and `cross_attention_sink`, as the fields of [`MMConfig`] say; and arguments of
            loading (`cache_dir`, `token`, `revision`, ...)

    Returns:
        the new model in evaluation mode, which shares no weights with the first.

    Raises:
        ValueError: if the model has the modality already, for an unknown argument, with the nearest valid name, and
            for an encoder whose weights are missing; and if a field of cross-attention would change blocks that
            have learned.
    """
    modality = MODALITIES[name]
    refuse_unknown(f"add_{modality.tower}", kwargs, (*LOADING_ARGUMENTS, *FIELDS, *SHARED_FIELDS, *FREEZING))
    if (present := getattr(model.config, modality.config_field)) is not None:
        raise ValueError(
            f"The model has an encoder of {modality.plural} already, a {type(present).__name__}. Join a new model "
            "with from_text_vision_audio_pretrained to replace it."
        )
    loading = {argument: kwargs.pop(argument) for argument in LOADING_ARGUMENTS if argument in kwargs}
    encoder, absent = load_encoder(component, modality, loading)
    config = enlarged_config(model.config, modality, encoder.config, freeze, kwargs)
    setattr(config, modality.freeze_field, getattr(config, modality.freeze_field) and freeze_encoder)

    is_base = model.base_model is model
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    for table in ("language_model.wte.weight", "model.language_model.wte.weight", "lm_head.weight"):
        if table in weights:
            weights[table] = with_rows(weights[table], config.text_config.vocab_size)
    prefix = f"{'' if is_base else 'model.'}{modality.tower_attribute}."
    for name, tensor in encoder.state_dict(keep_vars=True).items():
        if id(tensor) not in absent:
            weights[prefix + name] = tensor.detach().clone()
    arguments = {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}
    enlarged, report = load_state(type(model), config, weights, arguments)
    if missing := sorted(name for name in report["missing_keys"] if not is_new(name, modality)):
        raise ValueError(
            f"{count(missing)} missing in the given encoder: {shortened(missing)}. Pass a whole checkpoint, or a "
            "model of the class that AutoModel has for its config."
        )
    if model.can_generate():
        enlarged.generation_config = deepcopy(model.generation_config)
    return enlarged.to(model.device).eval()


def add_location_tokens(model: PreTrainedModel, tokenizer: Any) -> None:
    """
    Give a model the tokens of boxes and points, in place: rows of its embedding and of its head.

    The logits of all other tokens stay what they are. The new rows have the mean and the spread of the old ones, and
    neighbors start alike, so that what is learned of one bin is of use to the next. A model that has them is left as
    it is.

    Args:
        model: any of our models.
        tokenizer: a tokenizer or processor with location tokens, see [`MMProcessor.add_location_tokens`].

    Raises:
        ValueError: for a tokenizer without them, and for a model that has them under other ids.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    first, config = first_location_id(tokenizer.get_vocab()), model.config
    if first is None:
        raise ValueError(
            f"The tokenizer lacks {LOCATION_TOKENS[0]}. Call `processor.add_location_tokens()` before, and save it."
        )
    if config.location_token_id not in (None, first):
        raise ValueError(
            f"The model has its location tokens from {config.location_token_id} on, the tokenizer from {first} on. "
            "Use the model's own tokenizer."
        )
    if config.location_token_id == first:
        return
    vocab_size = max(len(tokenizer), model.get_input_embeddings().num_embeddings)
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for weight in {id(each.weight): each.weight for each in tables if each is not None}.values():
            weight[first : first + LOCATION_BINS] = location_rows(weight[:first]).to(weight)
    config.location_token_id = first
    if config.suppressed_token_ids is not None:
        places = range(first, first + LOCATION_BINS)
        config.suppressed_token_ids = [each for each in config.suppressed_token_ids if each not in places]
    config.validate_fields()


def enlarged_config(
    config: MMConfig, modality: Modality, encoder: Any, freeze: bool, given: dict[str, Any]
) -> MMConfig:
    """Return a config with a modality more; `given` are the arguments of `FIELDS` and `SHARED_FIELDS`."""
    given = {"placement": "before", "connector": "mlp", **given}
    if given.get("cross_attention_layers") is None:
        given["cross_attention_layers"] = list(range(min(MOST_LAYERS, config.text_config.n_layer)))
    if any(group.placement == "before" for group in cross_attention_groups(config)):
        for field in BEFORE_BLOCKS:
            if given.get(field, known := getattr(config, field)) != known:
                raise ValueError(
                    f"{field} belongs to all cross-attention before decoder blocks, but the model has learned with "
                    f"{known}. Leave it out."
                )
    known, config = config.modalities, deepcopy(config)
    for field in SHARED_FIELDS:
        setattr(config, field, given.pop(field, getattr(config, field)))
    setattr(config, modality.config_field, encoder_sub_config(modality.config_field, deepcopy(encoder)))
    for argument, value in given.items():
        setattr(config, f"{modality.tower}_{FIELDS[argument]}", value)
    if getattr(config, modality.token_id_field) is None:
        setattr(config, modality.token_id_field, config.text_config.vocab_size)
        config.text_config.vocab_size += 1
    if freeze:
        config.freeze_text = config.freeze_cross_attention = True
        config.frozen_modalities = [each.name for each in known]
        for each in config.modalities:
            setattr(config, each.freeze_field, True)
    config.validate_fields()
    return config


def is_new(name: str, modality: Modality) -> bool:
    """Return whether a weight is of a modality's connector or its own cross-attention, which are not loaded."""
    cross = CROSS_ATTENTION.search(f".{name}")
    is_own = cross is not None and cross[1] == f"{modality.tower}_"
    return is_own or f"{modality.connector_attribute}." in name
