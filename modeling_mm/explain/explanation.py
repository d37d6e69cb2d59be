# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Explanations of answers and classes, by any of the methods."""

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..utils.spelling import suggestion
from .attention import attention_relevance, check_explainable, gradient_relevance
from .perturbation import Steps, finish, integrate, integrated_gradients, occlude, occlusion
from .places import SHOWN, Places, places_of
from .target import Target, make_target

# Shape legend: L text tokens, W words, N words of the prompt, I images, h x w patches, T moments, K places.

Relevance = tuple[torch.Tensor, torch.Tensor | None]  # of places (W, K) and of text tokens (W, L)

# Each returns signed relevance; that of attention is never negative.
METHODS: dict[str, Callable[[Target, Places], Relevance]] = {
    "attention": attention_relevance,
    "gradient-attention": gradient_relevance,
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
}
# Those that take more than a forward or two, in steps.
STEPPED: dict[str, Callable[[Target, Places], Steps]] = {"integrated-gradients": integrate, "occlusion": occlude}
NEED_WEIGHTS = ("attention", "gradient-attention")


@dataclass(frozen=True)
class Explanation:
    """
    Relevance of places for each word of one answer, or for a class.

    Args:
        words: W words; the last ends where the answer ends. Of a class its name.
        patches: (W, I, h, w) weights, without those on class tokens; None without images.
        moments: (W, T) weights of the real moments of all windows in order; None without audio.
        seconds: length of the audio that the moments divide evenly; 0 without audio.
        shares: (W,) for each modality, the part of a word's weight on it; they sum to 1.
        method: one of `METHODS`
        prompt_words: N words of the prompt
        text: (W, N) weights of these words; they sum to 1. None for a method that has none.
    """

    words: list[str]
    patches: torch.Tensor | None
    moments: torch.Tensor | None
    seconds: float
    shares: dict[str, torch.Tensor]
    method: str = "attention"
    prompt_words: Sequence[str] = ()
    text: torch.Tensor | None = None

    @property
    def answer(self) -> str:
        return " ".join(self.words)


def explain(
    model: Any,
    processor: Any,
    prompt: list[dict[str, Any]],
    method: str = "attention",
    label: int | str | None = None,
    answer_ids: Sequence[int] | None = None,
    max_new_tokens: int = 32,
) -> Explanation:
    """
    Answer or classify one prompt, and return where in which image and when in which audio each word comes from.

    Args:
        model: an `MMForConditionalGeneration` or an `MMForSequenceClassification`. The methods by attention need it
            loaded with `attn_implementation="eager"`, as the fused kernels keep no weights.
        processor: its `MMProcessor`.
        prompt: one conversation that ends with the user's turn, with at least one image or audio part.
        method: one of `METHODS`: `attention`, `gradient-attention`, `integrated-gradients`, `occlusion`.
        label: number or name of the class of a classifier; by default the likeliest.
        answer_ids: tokens of an answer that the model has given before; then none is generated.
        max_new_tokens: tokens of an answer that is generated.

    Raises:
        ValueError: for an unknown method, a prompt without media, an empty answer, a class that the model does not
            have, an attention implementation without weights, and media whose tokens are not places.

    Example:
        >>> seen = explain(model, processor, prompt, method="occlusion")
        >>> seen.words, seen.patches.shape
        (['a', 'cat'], torch.Size([2, 1, 8, 8]))
    """
    check_method(model, method)
    target = make_target(model, processor, prompt, label, answer_ids, max_new_tokens)
    return explain_target(target, method)


def answer_attention(
    model: Any,
    processor: Any,
    prompt: list[dict[str, Any]],
    max_new_tokens: int = 32,
    answer_ids: Sequence[int] | None = None,
) -> Explanation:
    """Return the attention of each word of an answer: [`explain`] by `attention`."""
    return explain(model, processor, prompt, answer_ids=answer_ids, max_new_tokens=max_new_tokens)


def check_method(model: Any, method: str) -> None:
    """Raise a `ValueError` for an unknown method, and for one that this model does not allow."""
    check_name(method, METHODS)
    if method in NEED_WEIGHTS:
        check_explainable(model)


def check_name(method: str, known: Collection[str]) -> None:
    """Raise a `ValueError` for a method that is not among the known ones."""
    if method not in known:
        raise ValueError(
            f"There is no method {method!r} of explaining.{suggestion(method, known)} Use one of {', '.join(known)}."
        )


def explain_target(target: Target, method: str, places: Places | None = None) -> Explanation:
    """Explain a target whose media are prepared; see [`explanation_steps`]."""
    return finish(explanation_steps(target, method, places))


def explanation_steps(
    target: Target, method: str, places: Places | None = None
) -> Generator[float, None, Explanation]:
    """
    Explain a target whose media are prepared, in steps that yield the share of the work that is done.

    Negative relevance, of places that lower the score, is left out. Weights are scaled so that those of a word sum
    to 1 over all places, but for `attention`, of which class tokens keep their part.

    Raises:
        ValueError: for media without places, those of modalities that a user has registered.
    """
    places = places_of(target.model, target.media) if places is None else places
    if target.media and not places.count:
        raise ValueError(
            "The prompt has neither an image nor audio, so there is no place to show. For other modalities use "
            "modality_contributions, which tells what each adds."
        )
    steps = STEPPED.get(method)
    relevance, text = METHODS[method](target, places) if steps is None else (yield from steps(target, places))
    weights = relevance.detach().float().clamp(min=0).cpu()
    if method != "attention":
        weights = normalized(weights)
    patches, moments = places.split(weights)
    totals = normalized(
        torch.stack([weights[:, : places.patches].sum(-1), weights[:, places.patches :].sum(-1)], dim=1)
    )
    return Explanation(
        words=target.words,
        patches=patches,
        moments=moments,
        seconds=target.seconds,
        shares=dict(zip(SHOWN, totals.T, strict=True)),
        method=method,
        prompt_words=target.prompt_words,
        text=None if text is None else prompt_weights(text.detach().float().cpu(), target),
    )


def normalized(weights: torch.Tensor) -> torch.Tensor:
    """Return weights (W, K) that sum to 1 for each word; zeros stay."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def prompt_weights(tokens: torch.Tensor, target: Target) -> torch.Tensor:
    """Return weights (W, N) of the words of the prompt from the relevance of its tokens (W, L)."""
    if not target.prompt_spans:
        return tokens.new_zeros(len(tokens), 0)
    words = torch.stack([tokens[:, start:stop].sum(-1) for start, stop in target.prompt_spans], dim=1)
    return normalized(words.clamp(min=0))
