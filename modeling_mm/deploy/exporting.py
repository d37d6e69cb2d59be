# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Graphs for `torch.export`: one encodes media, one decodes a token.

```python
cache = model(**inputs, use_cache=True).past_key_values  # the prompt, in Python
step = DecoderStep(model)
graph = torch.export.export(step, (input_ids, attention_mask, *step.state_of(cache)), dynamic_shapes=step.SHAPES)
```

torch's exporter makes ONNX of both and needs onnxscript: `torch.onnx.export(graph, f="step.onnx", dynamo=True)`.
"""

import torch
from torch import nn
from torch.export import Dim
from transformers.cache_utils import Cache, DynamicCache

from ..media_cache import CrossAttentionCache, cached_media
from ..modalities import MODALITIES
from ..modeling_mm import MMForConditionalGeneration

# Shape legend: B rows, I images or windows a row, T frames, L tokens in the cache and those of the step, S media
# tokens a row, N decoder blocks, C cross-attention blocks, H heads, d width of a head, D width, V vocabulary.

Tensors = tuple[torch.Tensor, ...]
ROWS, CACHED, MEDIA = Dim("rows"), Dim("cached"), Dim("media")


class MediaEncoder(nn.Module):
    """
    An encoder with its connector: items in rows -> media tokens, as `encode_media` returns them.

    Its graph is for the number of rows and items that it was exported with; masked items have no influence.

    Args:
        model: put into evaluation mode
        modality: a name in `MODALITIES`, such as `"image"`

    Raises:
        ValueError: for an unknown modality, or one that the model has no encoder for.
    """

    def __init__(self, model: MMForConditionalGeneration, modality: str):
        super().__init__()
        if modality not in MODALITIES:
            raise ValueError(f"modality must be one of {', '.join(MODALITIES)}, got {modality!r}.")
        self.model = model
        tower, _ = model.model.parts_of(MODALITIES[modality])
        self.names = (tower.main_input_name, MODALITIES[modality].mask)
        self.eval()

    def forward(self, items: torch.Tensor, mask: torch.Tensor) -> Tensors:
        """
        Return states (B, S, D), mask (B, S), position (B, S) and modality (B, S) of an `MMMediaOutput`.

        Args:
            items: (B, I, 3, H, W), (B, I, n_mels, T) or (B, I, T)
            mask: which images (B, I) or which frames of audio (B, I, T) are real
        """
        return self.model.encode_media(**dict(zip(self.names, (items, mask), strict=True))).tensors


class DecoderStep(nn.Module):
    """
    One token a row, after a prompt given as tensors: the cache of its text and of its media.

    Its graph takes any number of rows, tokens and media tokens.

    Args:
        model: put into evaluation mode
    """

    # For `torch.export.export`: the sizes that vary are rows, tokens in the cache and media tokens. They have names,
    # so that a graph that fixes one of them is refused.
    SHAPES = (
        {0: ROWS},
        {0: ROWS, 1: CACHED + 1},
        *({1: ROWS, 3: CACHED},) * 2,
        *({1: ROWS, 3: MEDIA},) * 2,
        {0: ROWS, 1: MEDIA},
    )

    def __init__(self, model: MMForConditionalGeneration):
        super().__init__()
        self.model = model
        groups = model.model.language_model.groups
        if len(groups) > 1:
            raise ValueError(
                "The step is exported for models whose modalities share their cross-attention; this one has layers "
                f"for {' and '.join(group.name for group in groups)} apart."
            )
        self.prefix, self.blocks = groups[0].prefix, sorted(groups[0].layers)
        self.eval()

    @staticmethod
    def state_of(cache: Cache) -> Tensors:
        """
        Return the tensors that the step needs of the cache of a prompt with media.

        Returns:
            keys and values of the text, (N, B, H, L - 1, d) each, and of the media, (C, B, H, S, d) each; which media
            tokens are real, (B, S).

        Raises:
            ValueError: if the prompt had no media, or has media after its last token.
        """
        media = next(iter(cached_media(cache).values()), None)
        if media is None:
            raise ValueError("This cache has seen no media. Export the step after a prompt that has some.")
        if bool((media.mask & (media.index >= cache.get_seq_length())).any()):
            raise ValueError(
                "The cache holds media whose placeholders are not in the text yet. Pass the whole prompt."
            )
        keys, values = zip(*((layer.keys, layer.values) for layer in cache.layers), strict=True)
        media_keys, media_values = zip(*(media.layers[i] for i in sorted(media.layers)), strict=True)
        return *map(torch.stack, (keys, values, media_keys, media_values)), media.mask

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        media_keys: torch.Tensor,
        media_values: torch.Tensor,
        media_mask: torch.Tensor,
    ) -> Tensors:
        """
        Return logits (B, V), and keys and values of the text with this token, (N, B, H, L, d) each.

        Args:
            input_ids: (B, 1)
            attention_mask: (B, L)
            keys, values, media_keys, media_values, media_mask: as `state_of` returns them
        """
        cache = DynamicCache(list(zip(keys.unbind(), values.unbind(), strict=True)))
        media = CrossAttentionCache(media_mask, torch.zeros_like(media_mask, dtype=torch.long))
        pairs = zip(media_keys.unbind(), media_values.unbind(), strict=True)
        media.layers = dict(zip(self.blocks, pairs, strict=True))
        media.put_on(cache, self.prefix)
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        layers = output.past_key_values.layers
        keys, values = (torch.stack([getattr(layer, name) for layer in layers]) for name in ("keys", "values"))
        return output.logits[:, -1], keys, values
