# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Tags: what an item probably shows, among texts that are known before, as media tokens that a decoder can copy."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from .configuration_mm import MMConfig
from .modalities import MODALITIES

# Shape legend: N items, L encoder tokens, M media tokens an item, W the encoder's width, D the decoder's width,
# R tags, T text tokens of a tag, K tags that are shown.


class Tagger(nn.Module):
    """
    The likeliest tags of an item, added to its media tokens.

    Object tags serve [Oscar](https://arxiv.org/abs/2004.06165) and [Tag2Text](https://arxiv.org/abs/2303.05657) so.
    A linear classifier reads the mean of the encoder's tokens, as the heads of image and audio classifiers do, so that
    it can start as one of them. A tag that is shown is one media token for each of its T text tokens: the embedding of
    the text token plus that of the one before it with its halves swapped, both times the tag's probability. So an
    attention head that looks for the token just written finds the next one to write.

    Args:
        config: the joint config
        tower: prefix of the config's fields, such as `"vision"`
        width: W
    """

    ids: torch.Tensor

    def __init__(self, config: MMConfig, tower: str, width: int):
        super().__init__()
        count, length = getattr(config, f"{tower}_tags"), getattr(config, f"{tower}_tag_length")
        rank, self.choices = getattr(config, f"{tower}_tag_rank"), getattr(config, f"{tower}_tag_choices")
        self.width, self.dropout = width, config.connector_dropout
        self.reduce = nn.Identity() if rank is None else nn.Linear(width, rank, bias=False)
        self.score = nn.Linear(rank or width, count)
        self.places = nn.Embedding(self.choices * length, config.text_config.n_embd)
        self.register_buffer("ids", torch.zeros(count, length, dtype=torch.int32))

    def logits(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the logits of all tags, (N, R), of encoder tokens (N, L, W) with their mask (N, L)."""
        mean = states.masked_fill(~mask[..., None], 0.0).sum(1) / mask.sum(-1, keepdim=True).clamp(min=1)  # (N, W)
        return self.score(self.reduce(nn.functional.dropout(mean, self.dropout, self.training)))

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor, media: tuple[torch.Tensor, torch.Tensor], words: nn.Module
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Return media tokens and their mask with K·T more, (N, M + K·T, D) and (N, M + K·T).

        Args:
            states, mask: of the encoder, (N, L, W) and (N, L)
            media: the connector's tokens and their mask, (N, M, D) and (N, M)
            words: the decoder's embedding
        """
        chances, best = self.logits(states, mask).float().softmax(-1).topk(self.choices)  # (N, K)
        embedded = words(self.ids[best]).to(media[0])  # (N, K, T, D)
        embedded = nn.functional.layer_norm(embedded, embedded.shape[-1:])
        before = nn.functional.pad(embedded[:, :, :-1], (0, 0, 1, 0)).roll(embedded.shape[-1] // 2, -1)
        tags = chances[..., None, None].to(embedded) * (embedded + before)
        places = torch.arange(self.places.num_embeddings, device=tags.device)
        tags = tags.flatten(1, 2) + self.places(places)  # (N, K * T, D)
        present = mask.any(-1, keepdim=True).expand(-1, tags.shape[1])  # (N, K * T)
        tags = tags.masked_fill(~present[..., None], 0.0)
        return torch.cat([media[0], tags], dim=1), torch.cat([media[1], present], dim=1)


def build_tagger(config: MMConfig, tower: str, width: int) -> Tagger | None:
    """Return the tagger of a modality, `None` for one without tags."""
    return None if getattr(config, f"{tower}_tags") is None else Tagger(config, tower, width)


@torch.no_grad()
def set_tags(
    model: PreTrainedModel,
    name: str,
    tokenizer: Any,
    texts: Sequence[str],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> None:
    """
    Write the texts of the tags of a modality into a model, in place, and start their classifier.

    Args:
        model: any of our models whose config has tags for the modality, such as `vision_tags=1000`
        name: of the modality, such as `"image"`
        tokenizer: a tokenizer or processor of the model
        texts: the R tags, as the decoder is to write them, so with the space that an answer begins with, if it does.
            What is longer than `tag_length` text tokens is cut.
        weight, bias: (R, W) and (R,) of a classifier of the mean of the encoder's tokens, such as the encoder's head
            from its pretraining. With `tag_rank`, of which the classifier is the product of two matrices, they are met
            as nearly as singular values allow. Without them the classifier stays as it is.

    Raises:
        ValueError: for a modality without tags, for another number of texts than of tags, for a text without tokens,
            for a weight or bias of another shape, and for a model whose answers have no end.
    """
    modality = MODALITIES[name]
    tagger = getattr(getattr(model.base_model, modality.connector_attribute, None), "tagger", None)
    if tagger is None:
        raise ValueError(
            f"The model has no tags of {modality.plural}. Make it with {modality.tower}_tags={len(texts)}."
        )
    count, length = tagger.ids.shape
    if len(texts) != count:
        raise ValueError(
            f"{modality.tower}_tags is {count}, but {len(texts)} texts were given. Give a text for each tag."
        )
    ids = getattr(tokenizer, "tokenizer", tokenizer)(list(texts), add_special_tokens=False)["input_ids"]
    if not all(ids):
        number = list(map(bool, ids)).index(False)
        raise ValueError(f"Tag {number}, {texts[number]!r}, has no tokens. Give it a text.")
    if weight is not None and weight.shape != (count, tagger.width):
        raise ValueError(f"weight must have shape {(count, tagger.width)}, got {tuple(weight.shape)}.")
    if bias is not None and bias.shape != (count,):
        raise ValueError(f"bias must have shape {(count,)}, got {tuple(bias.shape)}.")
    if (end := end_of_text(model)) is None:
        raise ValueError("The model has no token at which answers end. Set eos_token_id of its generation_config.")
    tagger.ids.copy_(torch.tensor([[*each, *[end] * length][:length] for each in ids]))
    if weight is not None:
        start_classifier(tagger, weight)
    if bias is not None:
        tagger.score.bias.copy_(bias)


def end_of_text(model: PreTrainedModel) -> int | None:
    """Return the token at which the answers of a model end, `None` if it has no such token."""
    settings = getattr(model, "generation_config", None)
    ends = getattr(settings, "eos_token_id", None)
    ends = model.config.text_config.eos_token_id if ends is None else ends
    return ends[0] if isinstance(ends, list) else ends


def start_classifier(tagger: Tagger, weight: torch.Tensor) -> None:
    """Copy a classifier's weight (R, W), or its best approximation of the tagger's rank."""
    reduce, score = tagger.reduce, tagger.score
    if not isinstance(reduce, nn.Linear):
        score.weight.copy_(weight)
        return
    left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
    rank = min(reduce.out_features, len(values))
    root = values[:rank].sqrt()
    for linear in (reduce, score):
        linear.weight.zero_()  # of rows and columns beyond the weight's rank
    reduce.weight[:rank] = (root[:, None] * right[:rank]).to(reduce.weight)
    score.weight[:, :rank] = (left[:, :rank] * root).to(score.weight)
