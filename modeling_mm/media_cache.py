# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Keys and values of the media, computed once a generation."""

from dataclasses import dataclass, field

import torch
from transformers.cache_utils import Cache
from transformers.utils import is_torchdynamo_compiling

from .attention import KeysAndValues
from .masks import cross_attention_mask

# Shape legend: B rows, L text tokens, S media tokens, H heads, d their width. Media of one row for all have B = 1.

Masks = tuple[torch.Tensor | None, torch.Tensor | None]


NAME = "cross_attention_cache"


def cached_media(cache: Cache | None) -> "dict[str, CrossAttentionCache]":
    """Return the media on the cache of a text, by the prefix of the cross-attention that reads them."""
    found = {name: value for name, value in vars(cache).items() if name.endswith(NAME)} if cache is not None else {}
    return {name.removesuffix(NAME): value for name, value in found.items() if value is not None}


def has_cached_media(cache: Cache | None) -> bool:
    return bool(cached_media(cache))


ITEMS = "seen_media_items"


def text_length(cache: Cache | None) -> int | torch.Tensor:
    """Return the number of text tokens in a cache, as it is now: a static cache counts on in the same tensor."""
    length = 0 if cache is None else cache.get_seq_length()
    return length.clone() if isinstance(length, torch.Tensor) else length


@dataclass
class SeenItems:
    """
    Numbers of the items that are in the cache of a text, so that those of later steps count on.

    Stored as an attribute of that cache, as [`CrossAttentionCache`] is.

    Args:
        number: (B, S), of each media token's item among those of its modality in the row, -1 for padding
        modality: (B, S), its index in `MODALITIES`
        index: (B, S), text index of its placeholder
    """

    number: torch.Tensor
    modality: torch.Tensor
    index: torch.Tensor

    @staticmethod
    def of(cache: Cache | None) -> "SeenItems | None":
        return getattr(cache, ITEMS, None)

    @staticmethod
    def forget(cache: Cache | None) -> None:
        """Forget the items of a former text, if the cache has been emptied for another."""
        if SeenItems.of(cache) is not None:
            setattr(cache, ITEMS, None)

    def put_on(self, cache: Cache) -> None:
        """Keep these items on the cache, behind those that it has."""
        earlier = SeenItems.of(cache)
        if earlier is not None:
            rows = len(self.index)
            pairs = zip(vars(earlier).values(), vars(self).values(), strict=True)
            parts = [torch.cat([each.expand(rows, -1) for each in pair], dim=1) for pair in pairs]
            self = SeenItems(*parts)
        setattr(cache, ITEMS, self)

    def count(self, modality: int, past_length: int | torch.Tensor) -> torch.Tensor:
        """Return how many items of a modality have their placeholder in the first `past_length` tokens, (B,)."""
        counts = (self.modality == modality) & (self.index < past_length)
        return (self.number + 1).masked_fill(~counts, 0).amax(-1)


@dataclass
class CrossAttentionCache:
    """
    Keys and values of the media for each cross-attention block.

    Also which media tokens are real, and the text index of each one's placeholder.

    Stored as an attribute of the text's cache, so that it works with every cache class (dynamic, static, quantized,
    offloaded): `cross_attention_cache`, or `vision_cross_attention_cache` for a modality with separate cross-attention
    layers. It is not a layer of that cache, because the operations on layers would be wrong or wasted on media: they
    neither grow with the text, nor are cropped with rejected draft tokens, nor differ between the beams of a row.
    (Start a new cache if you reorder the rows of one by hand.)

    Args:
        mask: (B, S) bool
        index: (B, S) text index of each media token's placeholder
        layers: keys and values by index of the decoder block
        visible_from: text index behind the last placeholder, from which on all tokens have the masks `masks`
    """

    mask: torch.Tensor
    index: torch.Tensor
    layers: dict[int, KeysAndValues] = field(default_factory=dict)
    visible_from: int | torch.Tensor | None = None
    masks: Masks = (None, None)

    @staticmethod
    def of(cache: Cache | None, past_length: int | torch.Tensor, prefix: str = "") -> "CrossAttentionCache | None":
        """
        Return the media of a cache.

        Forget them if the cache has been emptied for another use, and those whose placeholder is gone if it has been
        cropped.

        Args:
            past_length: text tokens in the cache; a tensor only for static caches, which cannot be cropped.
            prefix: of the modality's own cross-attention, such as `"vision_"`
        """
        media = getattr(cache, prefix + NAME, None)
        # Compiled code decodes; this check has run in the uncompiled step before it.
        if media is None or is_torchdynamo_compiling():
            return media
        if past_length == 0:
            setattr(cache, prefix + NAME, None)
            return None
        if isinstance(past_length, int) and (media.visible_from is None or past_length < media.visible_from):
            media.mask = media.mask & (media.index < past_length)
            media.visible_from = None
        return media

    def put_on(self, cache: Cache, prefix: str = "") -> None:
        """Keep these media on the cache of the text that they belong to."""
        setattr(cache, prefix + NAME, self)

    def extend(self, mask: torch.Tensor, index: torch.Tensor) -> "CrossAttentionCache":
        """Return a cache with more media behind the present ones; `update` adds their keys and values."""
        if index.shape[0] != self.index.shape[0]:
            raise ValueError(
                f"The cache holds media of {self.index.shape[0]} rows, but the new media are for {index.shape[0]} "
                "rows. Start a new cache for another batch."
            )
        masks = (each.expand(index.shape[0], -1) for each in (self.mask, mask))
        longer = CrossAttentionCache(torch.cat(tuple(masks), dim=1), torch.cat([self.index, index], dim=1))
        longer.layers = dict(self.layers)
        return longer

    def update(self, layer_idx: int, new: KeysAndValues) -> KeysAndValues:
        """Append keys and values (B, H, S_new, d) to a layer's and return all of them, (B, H, S, d)."""
        if layer_idx in self.layers:
            rows = max(new[0].shape[0], self.layers[layer_idx][0].shape[0])
            pairs = zip(self.layers[layer_idx], new, strict=True)
            keys, values = (torch.cat([part.expand(rows, -1, -1, -1) for part in pair], dim=2) for pair in pairs)
            new = keys, values
        # Every later step reads them: contiguous by head they are read twice as fast.
        self.layers[layer_idx] = new[0].contiguous(), new[1].contiguous()
        return self.layers[layer_idx]

    def later_masks(self, text_length: int | torch.Tensor, dtype: torch.dtype, boolean: bool) -> Masks:
        """
        Return the masks (B, 1, 1, S) and (B, 1, 1) of tokens behind the first `text_length`.

        They are (`None`, `None`) if these tokens all see all media. Read from the device once, then kept: a decoding
        step computes no mask.
        """
        if self.visible_from is not None:
            return self.masks
        visible = self.mask & (self.index < text_length)  # (B, S)
        if is_torchdynamo_compiling():
            return cross_attention_mask(visible[:, None], dtype, boolean)
        self.masks = (None, None)
        if not bool(visible.all()):
            self.masks = cross_attention_mask(visible[:, None], dtype, boolean)
        self.visible_from = text_length
        return self.masks
