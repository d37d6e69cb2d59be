# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Rows that are decoded together, each at its own place in its own answer; rows join and leave between two steps.

Text is padded on the left, so that all rows write their next token into the same column. The attention mask hides the
padding and counts the positions. Keys and values of media are padded on the right and masked.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from ..configuration_mm import HIDDEN
from ..masks import hide_placeholders
from ..media import join_modalities
from ..media_cache import CrossAttentionCache, cached_media
from ..modalities import MODALITIES
from ..outputs import MMMediaOutput
from .row import BatchRow

# Shape legend: B rows, L tokens of a prompt, K columns of the text's cache, S media tokens, V words, H heads, d width.


class RunningBatch:
    """
    Rows with their shared cache.

    Args:
        model: an `MMForConditionalGeneration`
    """

    def __init__(self, model: Any):
        self.model = model
        self.rows: list[BatchRow] = []
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)  # (B, K)
        self.cache: DynamicCache | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def prefill(self, rows: Sequence[BatchRow]) -> torch.Tensor:
        """
        Let rows join: run their prompts, whose media are encoded.

        Returns:
            the logits (B_new, V) of their first tokens.
        """
        prompts = [row.prompt[0] for row in rows]
        padding = self.model.config.text_config.pad_token_id or 0  # masked, so any id serves
        ids = pad_sequence(prompts, True, padding, "left").to(self.model.device)  # (B_new, L)
        mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], True, 0, "left").to(self.model.device)
        if self.model.config.placeholders == HIDDEN:
            mask = hide_placeholders(mask, [ids == token_id for token_id in self.model.config.placeholder_ids])
        cache = DynamicCache()
        logits = self.model(
            input_ids=ids,
            attention_mask=mask,
            media=stack_media([row.media() for row in rows]),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if self.cache is None:
            self.mask, self.cache = mask, cache
        else:
            columns = max(self.mask.shape[1], mask.shape[1])
            self.mask = torch.cat([pad(each, (columns - each.shape[1], 0)) for each in (self.mask, mask)])
            self.cache = join_caches(self.cache, cache, columns, (len(self.rows), len(rows)))
        self.rows = [*self.rows, *rows]
        return logits

    @torch.no_grad()
    def step(self) -> torch.Tensor:
        """
        Run each row's last token; return the logits (B, V) of the next ones.

        If all rows are inside blocks of the same modality, only its codes have logits.
        """
        ranges = {row.code_range() for row in self.rows}
        tokens = torch.tensor([[row.streamer.tokens[-1]] for row in self.rows], device=self.mask.device)
        self.mask = pad(self.mask, (0, 1), value=1)
        return self.model(
            input_ids=tokens,
            attention_mask=self.mask,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            token_range=ranges.pop() if len(ranges) == 1 else None,
        ).logits[:, -1]

    def keep(self, rows: Sequence[BatchRow]) -> None:
        """Let all rows but these leave, with the columns that only they needed."""
        if len(rows) == len(self.rows):
            return
        if not rows or self.cache is None:
            self.rows, self.cache, self.mask = [], None, self.mask[:0, :0]
            return
        index = torch.tensor([self.rows.index(row) for row in rows], device=self.mask.device)
        mask = self.mask[index]
        unused = int(mask.any(0).int().argmax())  # columns of padding on the left
        self.rows, self.mask = list(rows), mask[:, unused:]
        self.cache = select_rows(self.cache, index, unused)


def stack_media(media: Sequence[MMMediaOutput | None]) -> MMMediaOutput | None:
    """Stack media of one row each, padded to the most tokens of a row; None if no row has any."""
    some = next((each for each in media if each is not None), None)
    if some is None:
        return None
    none = some.map(lambda tensor: tensor[:, :0])
    none.sizes = (0,) * len(MODALITIES)
    rows = [none if each is None else each for each in media]
    sizes = [row.sizes or () for row in rows]
    parts = {}
    for number, name in enumerate(MODALITIES):  # each modality has its columns, the same in all rows
        spans = [slice(sum(row[:number]), sum(row[: number + 1])) for row in sizes]
        if any(row[number] for row in sizes):
            padding = (0.0, False, -1, number)  # of states, mask, position and modality
            parts[name] = tuple(
                pad_sequence([tensor[0, span] for tensor, span in zip(same, spans, strict=True)], True, value)
                for same, value in zip(zip(*(row.tensors for row in rows), strict=True), padding, strict=True)
            )
    return join_modalities(parts)


def join_caches(first: DynamicCache, second: DynamicCache, columns: int, rows: tuple[int, int]) -> DynamicCache:
    """Return one cache of the rows of two, whose text is padded on the left to `columns`."""
    joined = DynamicCache()
    for number, layers in enumerate(zip(first.layers, second.layers, strict=True)):
        keys, values = (
            torch.cat([pad(tensor, (0, 0, columns - tensor.shape[2], 0)) for tensor in pair])  # (B, H, K, d)
            for pair in zip(*((layer.keys, layer.values) for layer in layers), strict=True)
        )
        joined.update(keys, values, number)
    caches = [cached_media(cache) for cache in (first, second)]
    for prefix in {prefix for media in caches for prefix in media}:
        join_media([media.get(prefix) for media in caches], rows).put_on(joined, prefix)
    return joined


def join_media(parts: Sequence[CrossAttentionCache | None], rows: Sequence[int]) -> CrossAttentionCache:
    """Return the media of the rows of several caches, padded on the right; rows without any have masked zeros."""
    some = next(part for part in parts if part is not None)
    longest = max(part.mask.shape[1] for part in parts if part is not None)
    masks = [
        some.mask.new_zeros(count, longest) if part is None else pad(part.mask, (0, longest - part.mask.shape[1]))
        for part, count in zip(parts, rows, strict=True)
    ]
    # All placeholders are in the prompts, so that later tokens see all media: the index of none matters.
    joined = CrossAttentionCache(torch.cat(masks), torch.zeros_like(torch.cat(masks), dtype=torch.long))
    for layer, example in some.layers.items():
        keys, values = (
            torch.cat(
                [
                    example[which].new_zeros(count, *example[which].shape[1:2], longest, example[which].shape[3])
                    if part is None
                    else pad(part.layers[layer][which], (0, 0, 0, longest - part.mask.shape[1]))
                    for part, count in zip(parts, rows, strict=True)
                ]
            )
            for which in (0, 1)
        )
        joined.layers[layer] = keys, values
    return joined


def select_rows(cache: DynamicCache, index: torch.Tensor, unused: int) -> DynamicCache:
    """Return a cache of some rows, without the first `unused` columns of text and without media that none has."""
    selected = DynamicCache()
    for number, layer in enumerate(cache.layers):
        selected.update(layer.keys[index, :, unused:], layer.values[index, :, unused:], number)
    for prefix, media in cached_media(cache).items():
        mask = media.mask[index]
        if not bool(mask.any()):
            continue
        longest = mask.shape[1] - int(mask.any(0).flip(0).int().argmax())
        rest = CrossAttentionCache(mask[:, :longest], media.index[index, :longest] * 0)
        rest.layers = {
            number: (keys[index, :, :longest], values[index, :, :longest])
            for number, (keys, values) in media.layers.items()
        }
        rest.put_on(selected, prefix)
    return selected
