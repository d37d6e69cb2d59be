# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Targets of explanations: the words of an answer, or a class, as scores that follow from media and text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ..evaluation import is_classifier, labels_of, prompt_inputs
from ..modalities import MODALITIES, media_inputs
from .words import group_words, token_texts, without_special_tokens

# Shape legend: B rows, L text tokens, P of them of the prompt, W words, V the vocabulary, C classes.

Media = Mapping[str, torch.Tensor]
CHUNK = 16  # rows of a forward


@dataclass(frozen=True)
class Target:
    """
    Words of an answer, or a class, of one example. Of a match there is [`MatchSide`].

    Args:
        model: an `MMForConditionalGeneration` or an `MMForSequenceClassification`, in evaluation
        text: `input_ids` (1, L) and `attention_mask` (1, L): the prompt, and behind it all tokens of the answer but
            the last
        media: the model's media inputs, of one row
        words: W words of the answer, or the name of the class
        prompt_words: words of the prompt's text
        prompt_spans: the tokens of each of them, as indices (start, stop) among the L
        seconds: length of the audio
        answer_ids: tokens of the answer; none for a class
        spans: the tokens of each word, as indices (start, stop) among those of the answer
        label: number of the class
    """

    model: Any
    text: Media
    media: Media
    words: list[str]
    prompt_words: list[str] = field(default_factory=list)
    prompt_spans: list[tuple[int, int]] = field(default_factory=list)
    seconds: float = 0.0
    answer_ids: Sequence[int] = ()
    spans: Sequence[tuple[int, int]] = ()
    label: int | None = None

    @property
    def length(self) -> int:
        """Number of text tokens that the model reads, L."""
        return self.text["input_ids"].shape[1]

    @cached_property
    def position_ids(self) -> torch.Tensor:
        """Positions (1, L) of the text; they stay the same if words are masked."""
        return (self.text["attention_mask"].cumsum(-1) - 1).clamp(min=0)

    @property
    def measure(self) -> str:
        """Name of what [`probabilities`] returns."""
        return "the probability of a word" if self.label is None else "the class"

    @property
    def reader(self) -> Any:
        """Model whose outputs the scores are read from."""
        return self.model

    @property
    def positions(self) -> list[list[int]]:
        """Indices among the L at which the tokens of each word are predicted; of a class that of its score."""
        if self.label is not None:
            return [[self.length - 1]]
        first = self.length - len(self.answer_ids)
        return [list(range(first + start, first + stop)) for start, stop in self.spans]

    def forward(self, media: Media, /, **options: Any) -> Any:
        """Run the model on one row of text for each row of media inputs; `options` replace and add arguments."""
        given = [tensor for tensor in (*media.values(), *options.values()) if isinstance(tensor, torch.Tensor)]
        rows = given[0].shape[0] if given else 1
        text: dict[str, Any] = {**self.text, "position_ids": self.position_ids}
        if "inputs_embeds" in options:
            del text["input_ids"]
        inputs = {name: tensor.expand(rows, -1) for name, tensor in text.items()}
        return self.reader(**{**inputs, **media, **options}, use_cache=False)

    def read(self, outputs: Any, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Return the scores (B, W) in the outputs of [`forward`].

        Args:
            attention_mask: (B, L), the text that was read; by default all of it
        """
        return self.read_scores(outputs.logits)

    def read_for_gradient(self, outputs: Any) -> torch.Tensor:
        """Return scores (1, W) whose gradient at this one place tells what raises those of [`read`]."""
        return self.read(outputs)

    def read_scores(self, logits: torch.Tensor) -> torch.Tensor:
        """
        Return the scores (B, W) in logits (B, L, V) or (B, C).

        A word's is the mean log-probability of its tokens, a class's its log-probability, a regression's its value.
        """
        logits = logits.float()
        if self.label is not None:
            return class_scores(logits, problem_of(self.model))[:, self.label, None]
        chosen = torch.tensor(list(self.answer_ids), device=logits.device)
        logits = logits[:, -len(chosen) :].log_softmax(-1)
        tokens = logits.gather(-1, chosen.expand(len(logits), -1)[..., None])[..., 0]  # (B, tokens of the answer)
        return torch.stack([tokens[:, start:stop].mean(-1) for start, stop in self.spans], dim=1)

    def scores(self, media: Media, /, **options: Any) -> torch.Tensor:
        """Return the scores of all words for each row of media inputs, (B, W)."""
        return self.read(self.forward(media, **options), options.get("attention_mask"))

    @torch.no_grad()
    def scores_in_chunks(self, media: Media, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Return the scores (B, W) for rows of media inputs, a few rows at a time.

        Args:
            attention_mask: (B, L), the text that each row reads; by default all of it
        """
        rows = next(
            (tensor.shape[0] for tensor in media.values()), 1 if attention_mask is None else len(attention_mask)
        )
        found = []
        for start in range(0, rows, CHUNK):
            some = {name: tensor[start : start + CHUNK] for name, tensor in media.items()}
            masks = {} if attention_mask is None else {"attention_mask": attention_mask[start : start + CHUNK]}
            found.append(self.scores(some, **masks))
        return torch.cat(found)

    def without_words(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return attention masks (B, L) that hide some words of the prompt, as (B, words of the prompt) tells."""
        masks = self.text["attention_mask"].repeat(len(hidden), 1)
        for number, (start, stop) in enumerate(self.prompt_spans):
            masks[hidden[:, number], start:stop] = 0
        return masks

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """Return scores as probabilities, of a word the geometric mean over its tokens; a regression's stay values."""
        is_value = self.label is not None and problem_of(self.model) == "regression"
        return scores if is_value else scores.exp()


def problem_of(model: Any) -> str:
    """Return the problem type of a classifier."""
    regresses = model.config.num_labels == 1
    return model.config.problem_type or ("regression" if regresses else "single_label_classification")


def class_scores(logits: torch.Tensor, problem: str) -> torch.Tensor:
    """Return log-probabilities of classes, (B, C), or the values of a regression as they are."""
    if problem == "regression":
        return logits
    is_multi = problem == "multi_label_classification"
    return torch.nn.functional.logsigmoid(logits) if is_multi else logits.log_softmax(-1)


@torch.no_grad()
def make_target(
    model: Any,
    processor: Any,
    prompt: list[dict[str, Any]],
    label: int | str | None = None,
    answer_ids: Sequence[int] | None = None,
    max_new_tokens: int = 32,
) -> Target:
    """
    Return the words of a model's answer to a prompt, or of a classifier a class.

    Args:
        prompt: one conversation that ends with the user's turn, with at least one image or audio part
        label: number or name of a class; by default the likeliest
        answer_ids: tokens of an answer; by default the model answers greedily

    Raises:
        ValueError: for a prompt without media, an empty answer, a class that the model does not have, and a class of
            a model that writes.
    """
    if hasattr(model, "embed"):
        raise ValueError(
            f"A {type(model).__name__} embeds rows and gives no answer to a prompt. Explain a match of two rows with "
            "explain_match or make_match."
        )
    classifies = is_classifier(model)
    if label is not None and not classifies:
        raise ValueError(f"label is {label!r}, but {type(model).__name__} writes answers. Leave label out.")
    number = find_label(model, label) if label is not None else None
    model.eval()
    inputs = {name: tensor.to(model.device) for name, tensor in prompt_inputs(processor, [prompt]).items()}
    media = {name: inputs.pop(name) for name in media_inputs() if name in inputs}
    if not media:
        raise ValueError("The prompt has no image and no audio to attend to. Add one, or read the answer alone.")
    ids = inputs["input_ids"]
    # The first word, or the class, is predicted at the last token.
    words, spans = text_words(ids[0, :-1].tolist(), processor.tokenizer)
    seconds = real_seconds(getattr(processor, "feature_extractor", None), media.get(MODALITIES["audio"].mask))
    if classifies:
        if number is None:
            number = int(model(**inputs, **media).logits[0].argmax())
        return Target(model, inputs, media, [labels_of(model)[number]], words, spans, seconds, label=number)
    if answer_ids is None:
        sequence = model.generate(**inputs, **media, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
        answer_ids = sequence[0, ids.shape[1] :].tolist()
    answer_ids = without_special_tokens(answer_ids, processor.tokenizer)
    answered, answer_spans = group_words(token_texts(answer_ids, processor.tokenizer))
    if not answered:
        raise ValueError("The answer is empty, so there is no word whose attention could be shown.")
    # Token t is predicted at position t - 1, so the last token is not read.
    more = ids.new_tensor([answer_ids[:-1]])
    mask = inputs["attention_mask"]
    text = {
        "input_ids": torch.cat([ids, more], dim=1),
        "attention_mask": torch.cat([mask, mask.new_ones(more.shape)], dim=1),
    }
    return Target(model, text, media, answered, words, spans, seconds, answer_ids, answer_spans)


def find_label(model: Any, label: int | str) -> int:
    """
    Return the number of a class that is given by its number or name.

    Raises:
        ValueError: for a class that the model does not have.
    """
    labels = labels_of(model)
    if isinstance(label, str) and label in labels:
        return labels.index(label)
    if isinstance(label, int) and 0 <= label < len(labels):
        return label
    raise ValueError(
        f"The label {label!r} is out of range: the model has {len(labels)} classes, 0 to {len(labels) - 1}: "
        f"{', '.join(labels)}. Give one of these numbers or names."
    )


def text_words(ids: Sequence[int], tokenizer: Any) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the words of a text, without special tokens, and the tokens (start, stop) of each."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    words: list[str] = []
    spans: list[tuple[int, int]] = []
    start = 0
    for stop in range(len(ids) + 1):
        if stop == len(ids) or ids[stop] in special:
            some, pieces = group_words(token_texts(ids[start:stop], tokenizer))
            words += some
            spans += [(start + first, start + last) for first, last in pieces]
            start = stop + 1
    return words, spans


def real_seconds(feature_extractor: Any, frame_mask: torch.Tensor | None) -> float:
    """Return the length of a row's audio without its padding; the mask is (1, A, T)."""
    if frame_mask is None:
        return 0.0
    if not hasattr(feature_extractor, "hop_length") and hasattr(feature_extractor, "num_mel_bins"):
        raise ValueError("Tokens of a spectrogram transformer are patches of time and frequency, not moments.")
    hop = getattr(feature_extractor, "hop_length", 1)  # a frame of a raw wave is one sample
    return int(frame_mask.sum()) * hop / feature_extractor.sampling_rate
