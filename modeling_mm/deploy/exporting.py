# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Graphs for `torch.export`: one encodes media, one reads a prompt, one decodes a token.

```python
with torch.no_grad():
    media = torch.export.export(MediaEncoder(model, "image"), (pixel_values, image_mask))
    prompt = PromptReader(model, ["image"], sizes)  # `sizes` of what `encode_media` returns
    step = DecoderStep(model, ["image"])
    logits, *state = prompt(input_ids, attention_mask, *tensors)
    graph = torch.export.export(step, (token, mask, *state), dynamic_shapes=step.SHAPES)
```

[`deploy.export_onnx`] writes ONNX of all three, with which a program without torch generates.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers.cache_utils import Cache, DynamicCache

from ..cross_attention import CrossAttentionGroup
from ..media_cache import CrossAttentionCache, cached_media
from ..modalities import MODALITIES
from ..modeling_mm import MMForConditionalGeneration
from ..outputs import MMMediaOutput

# Shape legend: B rows, I images or windows a row, T frames, L tokens in the cache and those of the step, S media
# tokens a row, N decoder blocks, C cross-attention blocks of a group, H heads, d width of a head, D width, V words.

Tensors = tuple[torch.Tensor, ...]
ROWS, CACHED, LENGTH = Dim("rows"), Dim("cached"), Dim("length", min=2)


def check_modalities(modalities: Sequence[str]) -> None:
    for name in modalities:
        if name not in MODALITIES:
            raise ValueError(f"modality must be one of {', '.join(MODALITIES)}, got {name!r}.")


class MediaEncoder(nn.Module):
    """
    Encoders with their connectors: items in rows -> media tokens, as `encode_media` returns them.

    Its graph is for the number of rows and items that it was exported with; masked items have no influence.

    Args:
        model: put into evaluation mode
        *modalities: names in `MODALITIES`, such as `"image"`, in their order there

    Raises:
        ValueError: for an unknown modality, or one that the model has no encoder for.
    """

    def __init__(self, model: MMForConditionalGeneration, *modalities: str):
        super().__init__()
        check_modalities(modalities)
        self.model, self.names = model, list[str]()
        for name in modalities:
            tower, _ = model.model.parts_of(MODALITIES[name])
            self.names += [tower.main_input_name, MODALITIES[name].mask]
        self.eval()

    def forward(self, *items: torch.Tensor) -> Tensors:
        """
        Return states (B, S, D), mask (B, S), position (B, S) and modality (B, S) of an `MMMediaOutput`.

        Args:
            *items: for each modality its items, (B, I, 3, H, W), (B, I, n_mels, T) or (B, I, T), and the mask of
                images (B, I) or of frames of audio (B, I, T) that are real
        """
        return self.model.encode_media(**dict(zip(self.names, items, strict=True))).tensors


def groups_reading(model: MMForConditionalGeneration, modalities: Sequence[str]) -> list[CrossAttentionGroup]:
    """Return the groups of cross-attention layers that read some of these modalities, in the order of a cache."""
    check_modalities(modalities)
    numbers = {list(MODALITIES).index(name) for name in modalities}
    groups = [group for group in model.model.language_model.groups if numbers & {*group.modalities}]
    return sorted(groups, key=lambda group: group.prefix)


def state_of(cache: Cache) -> Tensors:
    """
    Return the tensors of the cache of a prompt with media that a step needs.

    Returns:
        keys and values of the text, (N, B, H, L - 1, d) each; for each group of layers that reads media, their keys
        and values, (C, B, H, S, d) each, and which media tokens are real, (B, S).

    Raises:
        ValueError: if the prompt had no media, or has media after its last token.
    """
    groups = [media for _, media in sorted(cached_media(cache).items())]
    if not groups:
        raise ValueError("This cache has seen no media. Export the step after a prompt that has some.")
    length = cache.get_seq_length()
    for media in () if torch.compiler.is_exporting() else groups:
        if bool((media.mask & (media.index >= length)).any()):
            raise ValueError(
                "The cache holds media whose placeholders are not in the text yet. Pass the whole prompt."
            )
    tensors = stacked((layer.keys, layer.values) for layer in cache.layers)
    for media in groups:
        tensors += [*stacked(media.layers[i] for i in sorted(media.layers)), media.mask]
    return tuple(tensors)


def stacked(pairs: Any) -> list[torch.Tensor]:
    """Return keys and values of all layers, one tensor each."""
    keys, values = zip(*pairs, strict=True)
    return [torch.stack(keys), torch.stack(values)]


class PromptReader(nn.Module):
    """
    The prompt of one row, with its media: the logits of the next token, and what the steps behind it need.

    Its graph takes any number of tokens.

    Args:
        model: put into evaluation mode
        sizes: media tokens of each modality, as in `MMMediaOutput`
    """

    SHAPES = ({1: LENGTH}, {1: LENGTH}, None, None, None, None)

    def __init__(self, model: MMForConditionalGeneration, sizes: tuple[int, ...] | None):
        super().__init__()
        self.model, self.sizes = model, sizes
        self.eval()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        states: torch.Tensor,
        mask: torch.Tensor,
        position: torch.Tensor,
        modality: torch.Tensor,
    ) -> Tensors:
        """
        Return logits (B, V) and the tensors of [`state_of`].

        Args:
            input_ids, attention_mask: (B, L)
            states, mask, position, modality: as [`MediaEncoder`] returns them
        """
        media = MMMediaOutput(states, mask, position, modality, sizes=self.sizes)
        output = self.model(input_ids, attention_mask=attention_mask, media=media, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1], *state_of(output.past_key_values)


class DecoderStep(nn.Module):
    """
    One token a row, after a prompt given as tensors: the cache of its text and of its media.

    Its graph takes any number of rows, tokens and media tokens.

    Args:
        model: put into evaluation mode
        modalities: of the prompt's media, by default all of the model; those that share their cross-attention layers
            are read together
    """

    def __init__(self, model: MMForConditionalGeneration, modalities: Sequence[str] | None = None):
        super().__init__()
        self.model = model
        known = [modality.name for modality in model.config.modalities]
        self.groups = groups_reading(model, known if modalities is None else modalities)
        self.eval()

    @property
    def SHAPES(self) -> tuple[Any, ...]:
        """
        For `torch.export.export`: the sizes that vary are rows, tokens in the cache and media tokens of each group.

        They have names, so that a graph that fixes one of them is refused.
        """
        media = list[dict[int, Any]]()
        for number in range(len(self.groups)):
            tokens = Dim(f"media{number}")
            media += [{1: ROWS, 3: tokens}, {1: ROWS, 3: tokens}, {0: ROWS, 1: tokens}]
        return {0: ROWS}, {0: ROWS, 1: CACHED + 1}, *({1: ROWS, 3: CACHED},) * 2, tuple(media)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *media: torch.Tensor,
    ) -> Tensors:
        """
        Return logits (B, V), and keys and values of the text with this token, (N, B, H, L, d) each.

        Args:
            input_ids: (B, 1)
            attention_mask: (B, L)
            keys, values, *media: as [`state_of`] returns them
        """
        cache = DynamicCache(list(zip(keys.unbind(), values.unbind(), strict=True)))
        for number, group in enumerate(self.groups):
            media_keys, media_values, mask = media[3 * number : 3 * number + 3]
            shown = CrossAttentionCache(mask, torch.zeros_like(mask, dtype=torch.long))
            pairs = zip(media_keys.unbind(), media_values.unbind(), strict=True)
            shown.layers = dict(zip(sorted(group.layers), pairs, strict=True))
            shown.put_on(cache, group.prefix)
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        layers = output.past_key_values.layers
        return output.logits[:, -1], *stacked((layer.keys, layer.values) for layer in layers)
