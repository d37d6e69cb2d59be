# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Codecs inside a model: built with it, and added to one that has learned without, so that nothing is forgotten."""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from .code_tokens import EDGES, INTERLEAVED, code_tokens_in, edge_tokens
from .codec_interface import MediaCodec
from .codecs import codec_from_config
from .configuration_mm import CODEC_FIELDS, MMConfig
from .joining import mean_and_spread


def build_codecs(model: nn.Module, config: MMConfig) -> None:
    """Give a model the codecs of its config, with random weights, as `image_codec` and `audio_codec`."""
    for field in CODEC_FIELDS:
        if (codec_config := getattr(config, field)) is not None:
            setattr(model, field.removesuffix("_config"), codec_from_config(codec_config))


def freeze_codecs(model: nn.Module) -> None:
    """Freeze the codecs of a model, which are for inference alone; loading makes their weights trainable again."""
    for field in CODEC_FIELDS:
        if (codec := getattr(model, field.removesuffix("_config"), None)) is not None:
            codec.requires_grad_(False)


def add_codec(model: PreTrainedModel, codec: MediaCodec, tokenizer: Any, layout: str = INTERLEAVED) -> None:
    """
    Give a model a codec, in place, and rows of its embedding and of its head for the codes.

    The logits of all other tokens stay what they are. The new rows have the mean and the spread of the old ones, each
    its own direction, as rows that start alike learn alike.

    Args:
        model: any of our models.
        codec: of images or audio; the model keeps a copy.
        tokenizer: a tokenizer or processor with tokens for its codes, see [`MMProcessor.add_codec`].
        layout: order of the codes of several codebooks, `"interleaved"` or `"delayed"`.

    Raises:
        ValueError: if the model has a codec of this modality, for a tokenizer without tokens for it, and for a codec
            of another size than these.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    config, name = model.config, codec.modality
    span = code_tokens_in(tokenizer.get_vocab(), name)
    if (present := getattr(config, f"{name}_codec_config")) is not None:
        raise ValueError(
            f"The model has a codec of {name} already, of model_type {present.model_type!r}. Its codes are what the "
            "decoder has learned to write, so another codec needs another model."
        )
    if span is None:
        raise ValueError(
            f"The tokenizer lacks {edge_tokens(name)[0]}. Call `processor.add_codec(codec)` before, and save it."
        )
    codes, expected = span[1] - span[0] - EDGES, codec.num_codebooks * codec.codebook_size
    if codes != expected:
        raise ValueError(
            f"The tokenizer has {codes} codes of {name}, but the codec has {codec.num_codebooks} codebooks of "
            f"{codec.codebook_size}, {expected} codes. Use the codec that the tokenizer was extended for."
        )
    vocab_size = max(len(tokenizer), model.get_input_embeddings().num_embeddings)
    model.resize_token_embeddings(vocab_size, mean_resizing=False)
    tables = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for weight in {id(each.weight): each.weight for each in tables if each is not None}.values():
            weight[span[0] : span[1]] = distinct_rows(weight[: span[0]], span[1] - span[0]).to(weight)
    values: dict[str, Any] = {"codec_config": codec.config, "code_range": list(span)}
    values |= {"codebooks": codec.num_codebooks, "code_layout": layout}
    if codec.grid is not None:
        values["code_grid"] = list(codec.grid)
    for field, value in values.items():
        setattr(config, f"{name}_{field}", deepcopy(value))
    if config.suppressed_token_ids is not None:
        config.suppressed_token_ids = [each for each in config.suppressed_token_ids if not span[0] <= each < span[1]]
    config.validate_fields()
    setattr(model.base_model, f"{name}_codec", deepcopy(codec).to(model.device))


def distinct_rows(known: torch.Tensor, count: int) -> torch.Tensor:
    """Return rows (count, D) beside the known ones (V, D), of their mean and spread, the same always."""
    mean, spread = mean_and_spread(known)
    noise = torch.randn(count, known.shape[1], generator=torch.Generator().manual_seed(0)).to(known.device)
    return mean + spread * noise
