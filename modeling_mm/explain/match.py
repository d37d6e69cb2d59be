# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Matches of two rows: the places and words of each side that make their embeddings similar.

A side is a text, images, audio, or a mix of them in one row. Each side is explained by its similarity to the other's
embedding, which stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..chat import collect_sources, normalize_messages
from ..data.chat_row import media_kinds
from ..media import placeholder_prompt
from ..modalities import MODALITIES, media_inputs
from ..retrieval import last_states, with_prompt
from ..video_parts import VideoReader, expand_chats
from .contributions import Contributions, modality_contributions
from .explanation import Explanation, check_method, explain_target
from .figure import Band, read_band
from .target import Media, Target, real_seconds, text_words

# Shape legend: B rows, L text tokens, D the decoder's width, P the size of an embedding.

Parts = Sequence[dict[str, Any]]  # of a message
Content = str | Parts
NAME_LENGTH = 60  # characters


@dataclass(frozen=True)
class MatchSide(Target):
    """
    One row of a match, whose only score is the cosine of its embedding and the other row's.

    Args:
        model: an `MMForRetrieval` or another model with `embed`, in evaluation
        words: the name of the other side
        other: the other side's embedding, (P,)
    """

    other: torch.Tensor = field(kw_only=True)

    @property
    def measure(self) -> str:
        return "the similarity"

    @property
    def reader(self) -> Any:
        return self.model.model

    @property
    def positions(self) -> list[list[int]]:
        """Index of the last real token, whose state is the embedding's."""
        return [[int(self.text["attention_mask"][0].nonzero()[-1])]]

    def read(self, outputs: Any, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the cosine (B, 1) of each row and the other side, 0 for a row with nothing left to read."""
        mask = self.text["attention_mask"] if attention_mask is None else attention_mask
        is_real = mask.bool().expand(len(outputs.last_hidden_state), -1)  # (B, L)
        embeds = self.model.project(last_states(outputs.last_hidden_state, is_real)).float()  # (B, P)
        return (embeds @ self.other).masked_fill(~is_real.any(-1), 0.0)[:, None]

    def read_for_gradient(self, outputs: Any) -> torch.Tensor:
        """
        Return the part (1, 1) of the embedding along the other, before its length is made 1.

        The gradient of a cosine near 1 is nearly zero, whatever made it so.
        """
        is_real = self.text["attention_mask"].bool()
        state = last_states(outputs.last_hidden_state, is_real)  # (1, D)
        return (self.model.embedding_projection(state).float() @ self.other)[:, None]

    def probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores: a cosine is followed as it is."""
        return scores


@dataclass(frozen=True)
class Match:
    """
    Explanation of the similarity of two rows.

    Args:
        similarity: cosine of their embeddings
        rows: the parts of each
        sides: explanation of each, whose only word is the name of the other
        contributions: of the modalities of each
    """

    similarity: float
    rows: tuple[Parts, Parts]
    sides: tuple[Explanation, Explanation]
    contributions: tuple[Contributions, Contributions]

    @property
    def bands(self) -> list[Band]:
        """Both sides as [`draw`] and [`write_page`] take them."""
        found = []
        for parts, side, contributions in zip(self.rows, self.sides, self.contributions, strict=True):
            band = read_band([{"role": "user", "content": parts}], side)
            found.append(replace(band, question=name_of(parts), contributions=contributions))
        return found


def explain_match(model: Any, processor: Any, one: Content, other: Content, method: str = "occlusion") -> Match:
    """
    Return where in the images and audio, and at which words, of two rows their similarity comes from.

    Args:
        model: an `MMForRetrieval`. The methods by attention need it loaded with `attn_implementation="eager"`.
        processor: its `MMProcessor`
        one: a text, or the parts of a message: texts, images, audio, or a mix of them as one row
        other: what `one` is compared with, likewise
        method: one of `METHODS`. `attention` shows no words. `gradient-attention` underrates the last word, as its
            token is the one that is read, of which the most passes beside attention.

    Raises:
        ValueError: for an unknown method, a model that does not embed, and a row with nothing in it.

    Example:
        >>> match = explain_match(model, processor, [{"type": "image", "path": "cat.png"}], "a cat")
        >>> match.similarity, match.sides[0].patches.shape, match.sides[1].prompt_words
        (0.61, torch.Size([1, 1, 8, 8]), ['a', 'cat'])
    """
    check_method(model, method)
    rows = parts_of(processor, one), parts_of(processor, other)
    sides = make_match(model, processor, *rows)
    similarity = sides[0].scores_in_chunks(sides[0].media).item()
    first, second = (explain_target(side, method) for side in sides)
    contributions = modality_contributions(sides[0]), modality_contributions(sides[1])
    return Match(similarity, rows, (first, second), contributions)


@torch.no_grad()
def make_match(model: Any, processor: Any, one: Content, other: Content) -> tuple[MatchSide, MatchSide]:
    """
    Return both sides of a match as targets.

    Raises:
        ValueError: for a model that does not embed, and a row with nothing in it.
    """
    if not hasattr(model, "embed"):
        raise ValueError(
            f"A match needs a model that embeds, MMForRetrieval, got a {type(model).__name__}. Load the weights with "
            "that class, or train one."
        )
    model.eval()
    contents = [parts_of(processor, content) for content in (one, other)]
    rows = [row_inputs(model, processor, parts) for parts in contents]
    embeds = [model.embed(**rows[number][0], **rows[number][1])[0].float() for number in (0, 1)]  # (P,) each
    sides = []
    for number, (text, media) in enumerate(rows):
        if not text:
            text = media_prompt(model, media)
        words, spans = text_words(text["input_ids"][0].tolist(), processor.tokenizer)
        seconds = real_seconds(getattr(processor, "feature_extractor", None), media.get(MODALITIES["audio"].mask))
        about = {"prompt_words": words, "prompt_spans": spans, "seconds": seconds, "other": embeds[1 - number]}
        sides.append(MatchSide(model, text, media, [name_of(contents[1 - number])], **about))
    return sides[0], sides[1]


def parts_of(processor: Any, content: Content) -> Parts:
    """
    Return the parts of a row, with videos as images and audio.

    Raises:
        ValueError: for a part of another type than text, image, audio and video.
    """
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    turns = normalize_messages([{"role": "user", "content": parts}])
    for part in turns[0]["content"]:
        kind = part.get("type") if isinstance(part, dict) else None
        is_known = isinstance(part.get("text"), str) if kind == "text" else kind in media_kinds()
        if not is_known:
            kinds = ", ".join(media_kinds())
            raise ValueError(f"A row of the match has the part {part!r}. Expected a text, or one of type {kinds}.")
    (turn,) = expand_chats([turns], VideoReader.of(processor))[0]
    return turn["content"]


def row_inputs(model: Any, processor: Any, parts: Parts) -> tuple[Media, Media]:
    """
    Return the text and the media of a row as an index embeds it: media alone have no text.

    Raises:
        ValueError: for a row with nothing in it.
    """
    turn = {"role": "user", "content": parts}
    sources = {modality.plural: [collect_sources([turn], name)] for name, modality in MODALITIES.items()}
    sources = {name: rows for name, rows in sources.items() if rows[0]}
    has_text = any(part["type"] == "text" and part["text"].strip() for part in parts)
    if not has_text and not sources:
        raise ValueError("A row of the match has nothing in it, neither a text nor media. Give it one of them.")
    text = "".join(part["text"] if part["type"] == "text" else MODALITIES[part["type"]].token for part in parts)
    encoded = processor(text=[text], **sources, return_tensors="pt")
    inputs = {name: tensor.to(model.device) for name, tensor in encoded.items()}
    media = {name: inputs.pop(name) for name in media_inputs() if name in inputs}
    if not has_text:
        return {}, media
    ids, mask = with_prompt(inputs["input_ids"], inputs["attention_mask"], model.config)
    assert ids is not None and mask is not None
    return {"input_ids": ids, "attention_mask": mask}, media


def media_prompt(model: Any, media: Media) -> Media:
    """Return the text that media alone start from."""
    ids, mask = placeholder_prompt(model.model.encode_media(**media), model.config)
    return {"input_ids": ids, "attention_mask": mask}


def name_of(parts: Parts) -> str:
    """Return the kinds of media of a row and its text, as a name that is short enough to show."""
    kinds = [part["type"] for part in parts if part["type"] != "text"]
    text = " ".join(" ".join(part["text"] for part in parts if part["type"] == "text").split())
    name = " + ".join([*kinds, text] if text else kinds)
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1].rstrip() + "\u2026"
