# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Explanations by attention: the weights themselves, and weights times their gradients.

The weights are those of the cross-attention blocks, averaged over heads and blocks, at the position that predicted the
word, and followed through the connectors to the encoders' tokens. They show where the decoder read, not that it was
right to. Weights times gradients keep what raised the score of a word, and follow it through the text of the later
blocks too ([Chefer et al.](https://arxiv.org/abs/2103.15679)).
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..cross_attention import CrossAttentionGroup, recording_order
from ..modalities import MODALITIES
from ..outputs import MMMediaOutput
from .paths import connector_paths, record_connectors
from .places import SHOWN, Places
from .target import Target

# Shape legend: B rows, L text tokens, W words, S media tokens of a row, M media tokens of an item, K places, H heads.


def attention_relevance(target: Target, places: Places) -> tuple[torch.Tensor, None]:
    """
    Return the attention of each word to places, (W, K); what class tokens of an encoder get is left out.

    Raises:
        ValueError: if the attention implementation keeps no weights, or a connector mixes places.
    """
    check_explainable(target.model)
    with torch.no_grad():
        media, paths = encode_with_paths(target)
        outputs = target.forward({}, media=media, output_attentions=True)
    if media is None:
        return torch.zeros(len(target.words), 0), None
    groups = target.model.model.language_model.groups
    weights = mean_weights(outputs.cross_attentions, groups, sizes_of(media))[0]  # (L, S)
    words = torch.stack([weights[positions].mean(0) for positions in target.positions])  # (W, S)
    return to_places(words, media, paths, places), None


def gradient_relevance(target: Target, places: Places) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the relevance of places (W, K) and of the tokens of the text (W, L), by gradient-weighted attention.

    In each block a token takes over the relevance of what it attends to, as far as that attention raises the score:
    the mean over heads of the weights times their gradients, where that is positive.

    Raises:
        ValueError: if the attention implementation keeps no weights, or a connector mixes places.
    """
    check_explainable(target.model)
    with torch.no_grad():
        media, paths = encode_with_paths(target)
        embeds = target.model.get_input_embeddings()(target.text["input_ids"])  # (1, L, D)
    # Of a model without a parameter that learns, no gradient of attention would be recorded otherwise.
    embeds = embeds.detach().requires_grad_()
    with torch.enable_grad():
        outputs = target.forward({}, media=media, inputs_embeds=embeds, output_attentions=True)
        scores = target.read_for_gradient(outputs)[0]  # (W,)
    attentions, crosses = list(outputs.attentions), list(outputs.cross_attentions or ())
    groups = shown_groups(target.model.model.language_model.groups, sizes_of(media))
    found, texts = [], []
    for number, positions in enumerate(target.positions):
        grads = torch.autograd.grad(scores[number], attentions + crosses, retain_graph=True, allow_unused=True)
        weighted = [positive_part(*pair) for pair in zip(attentions + crosses, grads, strict=True)]
        own, cross = weighted[: len(attentions)], weighted[len(attentions) :]
        text, seen = accumulate(own, cross, groups, sizes_of(media))
        found.append(seen[positions].mean(0))
        texts.append((text - torch.eye(len(text), device=text.device))[positions].mean(0))
    return to_places(torch.stack(found), media, paths, places), torch.stack(texts)


def positive_part(weights: torch.Tensor, gradient: torch.Tensor | None) -> torch.Tensor:
    """Return the mean over heads of weights (1, H, L, K) times their gradient, where it is positive, (L, K)."""
    if gradient is None:
        return torch.zeros_like(weights[0, 0], dtype=torch.float32)
    return (weights.detach().float() * gradient.float()).clamp(min=0)[0].mean(0)


def accumulate(
    own: Sequence[torch.Tensor],
    cross: Sequence[torch.Tensor],
    groups: Sequence[CrossAttentionGroup],
    sizes: Sequence[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the relevance of text tokens (L, L) and media tokens (L, S) for each text token behind all blocks.

    Args:
        own: weighted self-attention of each block, (L, L)
        cross: weighted cross-attention (L, media tokens of its group), in the order of [`recording_order`]
        groups: those that have media
        sizes: media tokens of each modality in a row
    """
    text = torch.eye(own[0].shape[0], device=own[0].device)
    media = text.new_zeros(len(text), sum(sizes))
    reads = iter(cross)
    for layer, weights in enumerate(own):
        for placement in ("before", "inside"):
            if placement == "inside":  # behind the block's self-attention
                text, media = text + weights @ text, media + weights @ media
            for group in groups:
                if group.placement == placement and layer in group.layers:
                    media = media.index_add(1, columns_of(group, sizes, media.device), next(reads))
    return text, media


def columns_of(group: CrossAttentionGroup, sizes: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return the columns among the S of a group's media tokens."""
    numbers = torch.arange(sum(sizes), device=device)[None]
    return group.select(numbers, sizes)[0]


def encode_with_paths(target: Target) -> tuple[MMMediaOutput | None, dict[str, torch.Tensor]]:
    """
    Return the encoded media of a target, and for each modality the paths (N, M, encoder tokens) of its items.

    A target without media, one side of a match, has none.
    """
    if not target.media:
        return None, {}
    model = target.model.model
    with record_connectors(model) as records:
        media = model.encode_media(**target.media)
    paths = {
        name: connector_paths(getattr(model, MODALITIES[name].connector_attribute), record)
        for name, record in records.items()
        if record.mask is not None
    }
    return media, paths


def to_places(
    weights: torch.Tensor, media: MMMediaOutput | None, paths: dict[str, torch.Tensor], places: Places
) -> torch.Tensor:
    """Return the weights of places, (W, K), that media tokens (W, S) have, by the paths of each modality."""
    if media is None:
        return weights[:, :0]
    parts = []
    for name in SHOWN:
        columns = item_columns(media, name)
        if not columns:
            continue
        number = list(MODALITIES).index(name)
        first, size = sum(sizes_of(media)[:number]), paths[name].shape[1]
        for item, own in enumerate(columns):
            tokens = weights[:, own] @ paths[name][item, (own - first) % size]  # (W, encoder tokens)
            stop = tokens.shape[1] if name == "image" else places.windows[item]
            parts.append(tokens[:, places.leading if name == "image" else 0 : stop])
    return torch.cat(parts, dim=1)


def check_explainable(model: Any) -> None:
    """Raise a `ValueError` for an attention that keeps no weights, and for connectors that mix tokens over places."""
    implementation = model.config.text_config._attn_implementation
    if implementation != "eager":
        raise ValueError(
            f"The model's attention implementation is {implementation!r}, which keeps no weights. Load it with "
            'from_pretrained(..., attn_implementation="eager").'
        )
    for modality in MODALITIES.values():
        kind = getattr(model.config, modality.connector_attribute, None)
        if getattr(model.config, modality.config_field, None) is not None and kind == "gru":
            raise ValueError(
                f"The {modality.tower} connector is {kind!r}, whose tokens depend on all tokens before them, so that "
                "attention to them shows no place. Use the method 'integrated-gradients' or 'occlusion'."
            )


def sizes_of(media: MMMediaOutput | None) -> tuple[int, ...]:
    """Return the media tokens of each modality in a row."""
    if media is None:
        return (0,) * len(MODALITIES)
    if media.sizes is not None:
        return media.sizes
    return tuple(int((media.modality[0] == number).sum()) for number in range(len(MODALITIES)))


def shown_groups(groups: Sequence[CrossAttentionGroup], sizes: Sequence[int]) -> list[CrossAttentionGroup]:
    """Return the groups that have media to read."""
    return [group for group in groups if any(sizes[number] for number in group.modalities)]


def mean_weights(
    cross_attentions: Sequence[torch.Tensor], groups: Sequence[CrossAttentionGroup], sizes: Sequence[int]
) -> torch.Tensor:
    """
    Return the mean over blocks and heads: one (B, H, L, S) a block -> (B, L, S).

    Modalities that have separate cross-attention layers get the same share of a word each.

    Args:
        cross_attentions: as a forward records them, (B, H, L, S) with the media tokens of their group alone
        groups: of the model
        sizes: media tokens of each modality in a row
    """
    shown = shown_groups(groups, sizes)
    recorded = recording_order(shown, 1 + max(layer for group in shown for layer in group.layers))
    parts: dict[int, torch.Tensor] = {}
    for group in shown:
        own = [weights for weights, each in zip(cross_attentions, recorded, strict=True) if each is group]
        mean = torch.stack([weights.float().mean(1) for weights in own]).mean(0) / len(shown)  # (B, L, S of the group)
        columns = mean.split([sizes[number] for number in group.modalities], dim=-1)
        parts.update(zip(group.modalities, columns, strict=True))
    return torch.cat([parts[number] for number in sorted(parts)], dim=-1)


def item_columns(media: MMMediaOutput, modality: str) -> list[torch.Tensor]:
    """Return the real media tokens (M,) of each item of a modality, as indices among the S of a batch of one row."""
    number = list(MODALITIES).index(modality)
    items = media.position[0].masked_fill(~media.mask[0] | (media.modality[0] != number), -1)
    return [(items == item).nonzero().flatten() for item in range(int(media.count(number)[0]))]
