# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Keys and values of the media, computed once a generation."""

import torch
from transformers.cache_utils import Cache
from transformers.utils import is_torchdynamo_compiling

from .attention import KeysAndValues
from .masks import cross_attention_mask, visible_media


class CrossAttentionCache:
    """
    What a decoder needs of the media it has been shown: keys and values for each cross-attention block, which media
    tokens are real, and the text index of each one's placeholder.

    It rides on the text's cache object, whatever its class (dynamic, static, quantized, offloaded), instead of being
    layers of it: media neither grow, nor are cropped with rejected draft tokens, nor differ between the beams of a
    row, so every operation a cache has for its layers would be wrong or wasted on them. (A cache whose rows are put
    into another order by hand must be started anew.)

    Args:
        mask: (B, S) bool
        index: (B, S) text index of each media token's placeholder
    """

    def __init__(self, mask: torch.Tensor, index: torch.Tensor):
        self.mask = mask
        self.index = index
        self.layers: dict[int, KeysAndValues] = {}
        # Known without asking the device again: every media token is real and its placeholder is in the past.
        self.all_visible_from: int | None = None

    @staticmethod
    def of(cache: Cache | None, past_length: int | torch.Tensor) -> "CrossAttentionCache | None":
        """
        The memory of a cache. A cache that is emptied, to be used again, forgets its media, and one that is cropped
        those whose placeholder is gone.

        Args:
            past_length: text tokens in the cache; a tensor only for static caches, which cannot be cropped.
        """
        memory = getattr(cache, "cross_attention_cache", None)
        # What is compiled is decoding, which an uncompiled step with this check has gone before.
        if memory is None or is_torchdynamo_compiling():
            return memory
        if past_length == 0:
            cache.cross_attention_cache = None  # type: ignore[attr-defined]
            return None
        if isinstance(past_length, torch.Tensor):
            return memory
        if memory.all_visible_from is None or past_length < memory.all_visible_from:
            memory.mask = memory.mask & (memory.index < past_length)
            memory.all_visible_from = None
        return memory

    def attach_to(self, cache: Cache) -> None:
        cache.cross_attention_cache = self  # type: ignore[attr-defined]

    def extend(self, mask: torch.Tensor, index: torch.Tensor) -> "CrossAttentionCache":
        """A memory with more media behind those it has; their keys and values come with `update`."""
        if mask.shape[0] != self.mask.shape[0]:
            raise ValueError(
                f"The cache holds media of {self.mask.shape[0]} rows, but the new media are for {mask.shape[0]} rows. "
                "Start a new cache for another batch."
            )
        longer = CrossAttentionCache(torch.cat([self.mask, mask], dim=1), torch.cat([self.index, index], dim=1))
        longer.layers = dict(self.layers)
        return longer

    def update(self, layer_idx: int, new: KeysAndValues) -> KeysAndValues:
        """Appends keys and values (B, H, S_new, d) to a layer's and returns all of them, (B, H, S, d)."""
        if layer_idx in self.layers:
            keys, values = self.layers[layer_idx]
            new = torch.cat([keys, new[0]], dim=2), torch.cat([values, new[1]], dim=2)
        # They are read at every step to come: laid out head by head they are read twice as fast.
        self.layers[layer_idx] = new[0].contiguous(), new[1].contiguous()
        return self.layers[layer_idx]

    def mark_all_visible(self, text_length: int | torch.Tensor) -> None:
        """
        Asks the device once whether every later token will see all media, so that decoding need not mask.

        Args:
            text_length: text tokens up to and with those of this step
        """
        if bool((self.mask & (self.index < text_length)).all()):
            self.all_visible_from = int(text_length)

    def attention_mask(
        self, query_index: torch.Tensor, dtype: torch.dtype, boolean: bool, decoding: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """
        See [`masks.cross_attention_mask`]; (`None`, `None`) where the querying tokens all see everything.

        Args:
            decoding: whether the media were all there before the querying tokens
        """
        if decoding and self.all_visible_from is not None:
            return None, None
        return cross_attention_mask(visible_media(self.index, self.mask, query_index), dtype, boolean)
