# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
The image patches and audio moments that each word of an answer attended to.

The weights are those of the cross-attention blocks, averaged over heads and blocks, at the position that predicted the
word. They show where the decoder read, not that it was right to.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..cross_attention import CrossAttentionGroup, recording_order
from ..evaluation.answering import prompt_inputs
from ..modalities import MODALITIES
from ..outputs import MMMediaOutput
from ..utils.decoding import IncrementalDecoder

# Shape legend: L answer tokens, W answer words, S media tokens, I images, A audio windows, M media tokens an item,
# h x w patches of an image.

MAX_SUMMARY_TOKENS = 16  # class and register tokens that an encoder may put before its patches


@dataclass(frozen=True)
class AnswerAttention:
    """
    Attention of each word of one answer.

    Args:
        words: W words; the last ends where the answer ends.
        patches: (W, I, h, w) weights, without those on class tokens; None without images.
        moments: (W, T) weights of the real moments of all windows in order; None without audio.
        seconds: length of the audio that the moments divide evenly; 0 without audio.
        shares: (W,) for each modality, the part of a word's attention on it; they sum to 1.
    """

    words: list[str]
    patches: torch.Tensor | None
    moments: torch.Tensor | None
    seconds: float
    shares: dict[str, torch.Tensor]

    @property
    def answer(self) -> str:
        return " ".join(self.words)


@torch.no_grad()
def answer_attention(
    model: Any,
    processor: Any,
    prompt: list[dict[str, Any]],
    max_new_tokens: int = 32,
    answer_ids: Sequence[int] | None = None,
) -> AnswerAttention:
    """
    Answer one prompt greedily, and return the attention of each word of the answer.

    Args:
        model: an `MMForConditionalGeneration` loaded with `attn_implementation="eager"`, as the fused kernels keep no
            weights.
        processor: its `MMProcessor`.
        prompt: one conversation that ends with the user's turn, with at least one image or audio part.
        answer_ids: tokens of an answer that the model has given before; then none is generated.

    Raises:
        ValueError: if there are no weights, or if media tokens do not belong to one place or moment each.

    Example:
        >>> seen = answer_attention(model, processor, prompt)
        >>> seen.words, seen.patches.shape
        (['a', 'cat'], torch.Size([2, 1, 8, 8]))
    """
    check_explainable(model)
    inputs = {name: tensor.to(model.device) for name, tensor in prompt_inputs(processor, [prompt]).items()}
    text = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    if not inputs:
        raise ValueError("The prompt has no image and no audio to attend to. Add one, or read the answer alone.")
    media = model.encode_media(**inputs)
    prompt_ids = text["input_ids"]  # (1, P)
    prompt_length = prompt_ids.shape[1]
    if answer_ids is None:
        sequence = model.generate(**text, media=media, max_new_tokens=max_new_tokens, do_sample=False)  # (1, P + L)
        answer_ids = sequence[0, prompt_length:].tolist()
    answer_ids = without_special_tokens(answer_ids, processor.tokenizer)
    words, spans = group_words(token_texts(answer_ids, processor.tokenizer))
    if not words:
        raise ValueError("The answer is empty, so there is no word whose attention could be shown.")
    # Token t is predicted at position t - 1, so the last token is not read.
    read = torch.cat([prompt_ids, prompt_ids.new_tensor([answer_ids[:-1]])], dim=1)  # (1, P + L - 1)
    outputs = model(input_ids=read, media=media, output_attentions=True)
    groups = model.model.language_model.groups
    weights = mean_weights(outputs.cross_attentions, groups, media.sizes)[0, prompt_length - 1 :]  # (L, S)
    weights = torch.stack([weights[start:stop].mean(0) for start, stop in spans])  # (W, S)
    return AnswerAttention(
        words=words,
        patches=patches_of(weights, media, inputs.get("pixel_values")),
        moments=moments_of(weights, media),
        seconds=real_seconds(processor.feature_extractor, inputs.get(MODALITIES["audio"].mask)),
        shares={name: (weights * (media.modality[0] == number)).sum(-1) for number, name in enumerate(MODALITIES)},
    )


def check_explainable(model: Any) -> None:
    """Raise a `ValueError` for an attention that keeps no weights, and for connectors that mix tokens over places."""
    implementation = model.config.text_config._attn_implementation
    if implementation != "eager":
        raise ValueError(
            f"The model's attention implementation is {implementation!r}, which keeps no weights. Load it with "
            'from_pretrained(..., attn_implementation="eager").'
        )
    for modality in MODALITIES.values():
        # Neighbors in the sequence of a convolution are moments of audio, but no neighbors in an image.
        mixing = ("gru", "perceiver") if modality.has_frames else ("conv", "gru", "perceiver")
        kind = getattr(model.config, modality.connector_attribute)
        if getattr(model.config, modality.config_field) is not None and kind in mixing:
            raise ValueError(
                f"The {modality.tower} connector is {kind!r}, whose tokens do not belong to one place each."
            )


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
    shown = [group for group in groups if any(sizes[number] for number in group.modalities)]
    recorded = recording_order(shown, 1 + max(layer for group in shown for layer in group.layers))
    parts: dict[int, torch.Tensor] = {}
    for group in shown:
        own = [weights for weights, each in zip(cross_attentions, recorded, strict=True) if each is group]
        mean = torch.stack([weights.float().mean(1) for weights in own]).mean(0) / len(shown)  # (B, L, S of the group)
        columns = mean.split([sizes[number] for number in group.modalities], dim=-1)
        parts.update(zip(group.modalities, columns, strict=True))
    return torch.cat([parts[number] for number in sorted(parts)], dim=-1)


def without_special_tokens(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Return the ids up to the first special token, which ends an answer."""
    special = set(tokenizer.all_special_ids)
    return list(itertools.takewhile(lambda token: token not in special, ids))


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text that each token completes; joined they are the whole text."""
    decoder = IncrementalDecoder(tokenizer)
    texts = [decoder.add(token) for token in ids]
    return [*texts[:-1], texts[-1] + decoder.finish()] if texts else []


def group_words(texts: Sequence[str]) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the words, which white space separates, and the tokens (start, stop) of each."""
    starts = [i for i, text in enumerate(texts) if i == 0 or text[:1].isspace()]
    spans = list(zip(starts, [*starts[1:], len(texts)], strict=False))
    words = [("".join(texts[start:stop]).strip(), (start, stop)) for start, stop in spans]
    return [word for word, _ in words if word], [span for word, span in words if word]


def item_columns(media: MMMediaOutput, modality: str) -> list[torch.Tensor]:
    """Return the real media tokens (M,) of each item of a modality, as indices among the S of a batch of one row."""
    number = list(MODALITIES).index(modality)
    items = media.position[0].masked_fill(~media.mask[0] | (media.modality[0] != number), -1)
    return [(items == item).nonzero().flatten() for item in range(int(media.count(number)[0]))]


def patches_of(weights: torch.Tensor, media: MMMediaOutput, pixel_values: torch.Tensor | None) -> torch.Tensor | None:
    """Return the weights of all patches, (W, S) -> (W, I, h, w); the pixels (1, I, 3, H, W) tell the grid."""
    columns = item_columns(media, "image")
    if not columns:
        return None
    leading, rows, width = patch_grid(len(columns[0]), *pixel_values.shape[-2:])
    images = [weights[:, index[leading:]].unflatten(1, (rows, width)) for index in columns]  # (W, h, w) each
    return torch.stack(images, dim=1)


def patch_grid(num_tokens: int, height: int, width: int) -> tuple[int, int, int]:
    """
    Return the number of summary tokens before an image's patches, and the rows and columns of these.

    Raises:
        ValueError: if no grid of the image's proportions has that many patches.
    """
    for leading in range(min(MAX_SUMMARY_TOKENS, num_tokens - 1) + 1):
        patches = num_tokens - leading
        rows = round(math.sqrt(patches * height / width))
        if rows and patches % rows == 0 and rows * width == patches // rows * height:
            return leading, rows, patches // rows
    raise ValueError(
        f"{num_tokens} tokens do not form a grid with the proportions of an image of {height}x{width} pixels."
    )


def moments_of(weights: torch.Tensor, media: MMMediaOutput) -> torch.Tensor | None:
    """Return the weights of the real moments of all windows in order, (W, S) -> (W, T)."""
    columns = item_columns(media, "audio")
    return weights[:, torch.cat(columns)] if columns else None


def real_seconds(feature_extractor: Any, frame_mask: torch.Tensor | None) -> float:
    """Return the length of a row's audio without its padding; the mask is (1, A, T)."""
    if frame_mask is None:
        return 0.0
    if not hasattr(feature_extractor, "hop_length") and hasattr(feature_extractor, "num_mel_bins"):
        raise ValueError("Tokens of a spectrogram transformer are patches of time and frequency, not moments.")
    hop = getattr(feature_extractor, "hop_length", 1)  # a frame of a raw wave is one sample
    return int(frame_mask.sum()) * hop / feature_extractor.sampling_rate
