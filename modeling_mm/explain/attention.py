# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Which patches of a picture and which moments of a sound each word of an answer looked at.

The weights are those of the cross-attention blocks, averaged over heads and blocks: where the decoder read when it
was about to say the word. They tell where it looked, not that it was right to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..outputs import AUDIO, IMAGE, MMMediaOutput

# Shape legend: L answer tokens, W answer words, S media tokens, I images, A audio windows, M media tokens an item,
# h x w patches of an image.

MAX_SUMMARY_TOKENS = 16  # class and register tokens that an encoder may put before its patches


@dataclass(frozen=True)
class AnswerAttention:
    """
    Where each word of one answer looked.

    Args:
        words: W words; the last ends where the answer ends.
        patches: (W, I, h, w), or None without pictures. Weights; what fell on class tokens is not among them.
        moments: (W, T), the real moments of all windows in order, or None without sounds.
        seconds: length of the sound that the moments divide evenly; 0 without sounds.
        on_pictures, on_sounds: (W,) shares of a word's attention that fell on the pictures and on the sounds; sum 1.
    """

    words: list[str]
    patches: torch.Tensor | None
    moments: torch.Tensor | None
    seconds: float
    on_pictures: torch.Tensor
    on_sounds: torch.Tensor

    @property
    def answer(self) -> str:
        return " ".join(self.words)


@torch.no_grad()
def attend(
    model: Any,
    processor: Any,
    prompt: list[dict[str, Any]],
    max_new_tokens: int = 32,
    answer_ids: Sequence[int] | None = None,
) -> AnswerAttention:
    """
    Answers one prompt greedily, and says where each word of the answer looked.

    Args:
        model: an `MMForConditionalGeneration` that was loaded with `attn_implementation="eager"`, as the fused kernels
            keep no weights.
        processor: its `MMProcessor`.
        prompt: one conversation that ends with the user's turn, with at least one picture or sound.
        answer_ids: the tokens of an answer that the model has given already; then none is generated.

    Raises:
        ValueError: where there are no weights to be had, or media tokens that do not stand for places or moments.
    """
    check_explainable(model)
    inputs = processor.apply_chat_template(
        [prompt], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    ).to(model.device)
    text = {name: inputs.pop(name) for name in ("input_ids", "attention_mask")}
    if not inputs:
        raise ValueError("The prompt holds neither a picture nor a sound, so there is nothing to look at.")
    media = model.encode_media(**inputs)
    prompt_ids = text["input_ids"]  # (1, P)
    prompt_length = prompt_ids.shape[1]
    if answer_ids is None:
        sequence = model.generate(**text, media=media, max_new_tokens=max_new_tokens, do_sample=False)  # (1, P + L)
        answer_ids = sequence[0, prompt_length:].tolist()
    answer_ids = without_special_tokens(answer_ids, processor.tokenizer)
    words, spans = group_words(token_texts(answer_ids, processor.tokenizer))
    if not words:
        raise ValueError("The model answered with nothing, so that no word looked anywhere.")
    # Token t is chosen at position t - 1, where the answer's first token is still to come.
    read = torch.cat([prompt_ids, prompt_ids.new_tensor([answer_ids[:-1]])], dim=1)  # (1, P + L - 1)
    outputs = model(input_ids=read, media=media, output_attentions=True)
    weights = mean_weights(outputs.cross_attentions)[0, prompt_length - 1 :]  # (L, S)
    weights = torch.stack([weights[start:stop].mean(0) for start, stop in spans])  # (W, S)
    return AnswerAttention(
        words=words,
        patches=patches_of(weights, media, inputs.get("pixel_values")),
        moments=moments_of(weights, media),
        seconds=real_seconds(processor.feature_extractor, inputs.get("feature_attention_mask")),
        on_pictures=share_of(weights, media, IMAGE),
        on_sounds=share_of(weights, media, AUDIO),
    )


def check_explainable(model: Any) -> None:
    """
    Raises:
        ValueError: for an attention implementation that keeps no weights, and for connectors that mix their tokens
            over places, so that a media token stands for none.
    """
    implementation = model.config.text_config._attn_implementation
    if implementation != "eager":
        raise ValueError(
            f"The model's attention implementation is {implementation!r}, which keeps no weights. Load it with "
            'from_pretrained(..., attn_implementation="eager").'
        )
    for modality, mixing in (("vision", ("conv", "gru", "perceiver")), ("audio", ("gru", "perceiver"))):
        kind = getattr(model.config, f"{modality}_connector")
        if getattr(model.config, f"{modality}_config") is not None and kind in mixing:
            raise ValueError(f"The {modality} connector is {kind!r}, whose tokens do not stand for one place each.")


def mean_weights(cross_attentions: Sequence[torch.Tensor]) -> torch.Tensor:
    """One (B, H, L, S) a block -> (B, L, S), the mean over blocks and heads."""
    return torch.stack([weights.float().mean(1) for weights in cross_attentions]).mean(0)


def without_special_tokens(ids: Sequence[int], tokenizer: Any) -> list[int]:
    """The ids up to the first special token, which ends an answer."""
    special = set(tokenizer.all_special_ids)
    end = next((position for position, token_id in enumerate(ids) if token_id in special), len(ids))
    return list(ids[:end])


def token_texts(ids: list[int], tokenizer: Any) -> list[str]:
    """
    What each token adds to the text; joined they are the text.

    A token that ends within a character, as byte-level tokens may, adds nothing yet; the next one adds it all.
    """
    texts, so_far = [], ""
    for stop in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:stop], clean_up_tokenization_spaces=False)
        complete = stop == len(ids) or not text.endswith("\ufffd")
        texts.append(text[len(so_far) :] if complete else "")
        so_far = text if complete else so_far
    return texts


def group_words(texts: Sequence[str]) -> tuple[list[str], list[tuple[int, int]]]:
    """
    Tokens to words: a word starts at the first token, and at each one with white space in front.

    Returns:
        the words, stripped, and the tokens (start, stop) of each.
    """
    starts = [i for i, text in enumerate(texts) if i == 0 or text[:1].isspace()]
    stops = [*starts[1:], len(texts)][: len(starts)]
    spans = list(zip(starts, stops, strict=True))
    words = ["".join(texts[start:stop]).strip() for start, stop in spans]
    kept = [i for i, word in enumerate(words) if word]
    return [words[i] for i in kept], [spans[i] for i in kept]


def share_of(weights: torch.Tensor, media: MMMediaOutput, modality: int) -> torch.Tensor:
    """(W, S) -> (W,), the part of each word's attention that fell on one modality."""
    return (weights * (media.modality[0] == modality)).sum(-1)


def item_columns(media: MMMediaOutput, modality: int) -> list[torch.Tensor]:
    """The real media tokens (M,) of each item of a modality, as indices among the S of a batch of one row."""
    of_modality = media.mask[0] & (media.modality[0] == modality)
    numbers = media.position[0].masked_fill(~of_modality, -1)
    return [(numbers == number).nonzero().flatten() for number in range(int(media.count(modality)[0]))]


def patches_of(weights: torch.Tensor, media: MMMediaOutput, pixel_values: torch.Tensor | None) -> torch.Tensor | None:
    """
    Args:
        weights: (W, S)
        pixel_values: (1, I, 3, H, W) pixels, for the shape of the grid

    Returns:
        (W, I, h, w)
    """
    columns = item_columns(media, IMAGE)
    if not columns:
        return None
    leading, rows, width = patch_grid(len(columns[0]), *pixel_values.shape[-2:])
    pictures = [weights[:, index[leading:]].unflatten(1, (rows, width)) for index in columns]  # (W, h, w) each
    return torch.stack(pictures, dim=1)


def patch_grid(num_tokens: int, height: int, width: int) -> tuple[int, int, int]:
    """
    How an image's tokens lie on it: how many summary tokens come first, then the rows and columns of its patches.

    Raises:
        ValueError: where no grid of the picture's proportions has that many patches.
    """
    for leading in range(min(MAX_SUMMARY_TOKENS, num_tokens - 1) + 1):
        patches = num_tokens - leading
        rows = round(math.sqrt(patches * height / width))
        if rows and patches % rows == 0 and rows * width == patches // rows * height:
            return leading, rows, patches // rows
    raise ValueError(
        f"{num_tokens} tokens do not lie on a grid with the proportions of a picture of {height}x{width} pixels."
    )


def moments_of(weights: torch.Tensor, media: MMMediaOutput) -> torch.Tensor | None:
    """(W, S) -> (W, T), the real moments of all windows in order."""
    columns = item_columns(media, AUDIO)
    return weights[:, torch.cat(columns)] if columns else None


def real_seconds(feature_extractor: Any, feature_attention_mask: torch.Tensor | None) -> float:
    """How long the sounds of a row are without their padding; the mask is (1, A, T)."""
    if feature_attention_mask is None:
        return 0.0
    if not hasattr(feature_extractor, "hop_length") and hasattr(feature_extractor, "num_mel_bins"):
        raise ValueError("A spectrogram transformer's tokens are patches of time and frequency, not moments.")
    hop = getattr(feature_extractor, "hop_length", 1)  # a raw wave's frame is one sample
    return int(feature_attention_mask.sum()) * hop / feature_extractor.sampling_rate
