# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
A prefix that many prompts share, such as an image behind long instructions, read once for all of them.

Shape legend: B rows, P tokens of the prefix, L tokens of a prompt behind it.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from .media_cache import CrossAttentionCache, SeenItems, cached_media


@dataclass
class SharedPrefix:
    """
    The keys and values of one row of text and its media; see [`MMForConditionalGeneration.read_prefix`].

    ```python
    prefix = model.read_prefix(**processor(text="<|image|>In a word: ", images=image, return_tensors="pt"))
    questions = processor.tokenizer(["Who?", "Where is it?"], return_tensors="pt", padding=True, padding_side="left")
    model.generate(**prefix.followed_by(**questions))
    ```

    Args:
        input_ids: (1, P)
        attention_mask: (1, P)
        cache: of these tokens and their media; it is not changed
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    cache: DynamicCache

    def followed_by(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        expand_size: int = 1,
        **others: Any,
    ) -> dict[str, Any]:
        """
        Return inputs of `generate`, or of one forward, for prompts behind the prefix.

        Args:
            input_ids: (B, L), padded on the left
            attention_mask: (B, L), 0 for padding
            expand_size: beams, or answers of a prompt (`num_return_sequences`), that `generate` will run
            **others: inputs without a meaning here, such as a tokenizer's `token_type_ids`; they are refused if they
                are media

        Raises:
            ValueError: for media, which belong into the prefix, and for prompts without a token.
        """
        rows, length = input_ids.shape
        if others.keys() - {"token_type_ids"}:
            raise ValueError(
                f"Prompts behind a shared prefix take input_ids and attention_mask, got {', '.join(sorted(others))}. "
                "Pass media to read_prefix."
            )
        if not length:
            raise ValueError(
                "The prompts behind a shared prefix have no token. Leave the last token out of the prefix."
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return {
            "input_ids": torch.cat([self.input_ids.expand(rows, -1), input_ids], dim=1),  # (B, P + L)
            "attention_mask": torch.cat([self.attention_mask.expand(rows, -1).to(mask), mask], dim=1),
            "past_key_values": repeat_cache(self.cache, rows * expand_size),
        }


def repeat_cache(cache: DynamicCache, rows: int) -> DynamicCache:
    """
    Return a cache of `rows` rows that all hold the one row of another, which stays as it is.

    Keys and values of media stay those of one row, which cross-attention reads for all.
    """
    repeated = DynamicCache()
    for number, layer in enumerate(cache.layers):
        repeated.update(*(each.expand(rows, -1, -1, -1) for each in (layer.keys, layer.values)), number)
    for prefix, media in cached_media(cache).items():
        copied: CrossAttentionCache = replace(media, layers=dict(media.layers))
        copied.put_on(repeated, prefix)
    if (items := SeenItems.of(cache)) is not None:
        items.put_on(repeated)
    return repeated
