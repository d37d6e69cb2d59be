# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
The model as graphs of tensors, for `torch.export`: what encodes the media, and what decodes one token.

```python
cache = model(**inputs, use_cache=True).past_key_values  # the prompt, in Python
step = DecoderStep(model)
graph = torch.export.export(step, (input_ids, attention_mask, *step.state_of(cache)), dynamic_shapes=step.SHAPES)
```

ONNX of both is torch's own exporter's, which needs onnxscript: `torch.onnx.export(graph, f="step.onnx", dynamo=True)`.
"""

from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers.cache_utils import Cache, DynamicCache

from ..media_cache import CrossAttentionCache
from ..modeling_mm import MMForConditionalGeneration

# Shape legend: B rows, I images or windows a row, T frames, L tokens in the cache and those of the step, S media
# tokens a row, N decoder blocks, C cross-attention blocks, H heads, d width of a head, D width, V vocabulary.

Tensors = tuple[torch.Tensor, ...]
ROWS, CACHED, MEDIA = Dim("rows"), Dim("cached"), Dim("media")
# Modality -> its part of the model, its items, and the input that says which of them are real.
INPUTS = {"image": ("vision", "images", "image_mask"), "audio": ("audio", "audio", "feature_attention_mask")}


class MediaEncoder(nn.Module):
    """
    An encoder with its connector: pictures or windows of sound in rows -> media tokens, as `encode_media` gives them.
    Its graph is for the number of rows and items that it was exported with; what is masked has no part.

    Args:
        model: it is put into evaluation mode
        modality: `"image"` or `"audio"`
    """

    def __init__(self, model: MMForConditionalGeneration, modality: str):
        super().__init__()
        if modality not in INPUTS:
            raise ValueError(f"modality must be one of {', '.join(INPUTS)}, got {modality!r}.")
        self.model = model
        part, what, mask = INPUTS[modality]
        tower = getattr(model.model, f"{part}_tower")
        model.model.require(tower, what, f"{part}_config")
        self.names = (tower.main_input_name, mask)
        self.eval()

    def forward(self, items: torch.Tensor, mask: torch.Tensor) -> Tensors:
        """
        Args:
            items: (B, I, 3, H, W), (B, I, n_mels, T) or (B, I, T)
            mask: (B, I) of pictures, (B, I, T) of sounds: what is real

        Returns:
            states (B, S, D), mask (B, S), position (B, S) and modality (B, S) of an `MMMediaOutput`.
        """
        return self.model.encode_media(**dict(zip(self.names, (items, mask), strict=True))).to_tuple()


class DecoderStep(nn.Module):
    """
    One token a row, with what came before as tensors: the cache of the text, and the media that it has been shown.
    Its graph takes any number of rows, tokens and media tokens.

    Args:
        model: it is put into evaluation mode
    """

    # How `torch.export.export` is told which sizes are open: rows, tokens in the cache, media tokens. By name, so that
    # a graph in which one of them were fixed is refused.
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
        self.blocks = sorted(map(int, model.model.language_model.cross_blocks))
        self.eval()

    @staticmethod
    def state_of(cache: Cache) -> Tensors:
        """
        What the step needs of a cache that holds a prompt with media: keys and values of the text (N, B, H, L - 1, d)
        each, of the media (C, B, H, S, d) each, and which media tokens are real (B, S).

        Raises:
            ValueError: where the prompt had no media, or has some that its last token does not see.
        """
        memory: Any = getattr(cache, "cross_attention_cache", None)
        if memory is None:
            raise ValueError("This cache has seen no media: a step with media is exported from a prompt with some.")
        if bool((memory.mask & (memory.index >= cache.get_seq_length())).any()):
            raise ValueError(
                "The cache holds media whose placeholders are not in the text yet; pass the whole prompt."
            )
        keys, values = zip(*((layer.keys, layer.values) for layer in cache.layers), strict=True)
        media_keys, media_values = zip(*(memory.layers[i] for i in sorted(memory.layers)), strict=True)
        return *(torch.stack(each) for each in (keys, values, media_keys, media_values)), memory.mask

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
        Args:
            input_ids: (B, 1)
            attention_mask: (B, L)
            keys, values, media_keys, media_values, media_mask: as `state_of` gives them

        Returns:
            logits (B, V), and keys and values of the text with this token, (N, B, H, L, d) each.
        """
        cache = DynamicCache(list(zip(keys.unbind(), values.unbind(), strict=True)))
        memory = CrossAttentionCache(media_mask, torch.zeros_like(media_mask, dtype=torch.long))
        memory.layers = dict(
            zip(self.blocks, zip(media_keys.unbind(), media_values.unbind(), strict=True), strict=True)
        )
        memory.attach_to(cache)
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        layers = output.past_key_values.layers
        stacked = (torch.stack([getattr(layer, name) for layer in layers]) for name in ("keys", "values"))
        return output.logits[:, -1], *stacked
