# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Which media belong to which row of text, and how rows of unequal numbers of them become tensors. Pure functions."""

import re
from collections.abc import Callable
from typing import Any

import torch

from .audio import is_sound
from .configuration_mm import AUDIO_TOKEN, IMAGE_TOKEN
from .images import is_picture

Rows = list[list[Any]]

# A character that transformers puts before a control token which a user wrote; such a token is plain text.
MARK = "\U000f0000"


def count_placeholders(text: str, token: str) -> int:
    """How often `token` stands in `text`, those that a user wrote into a sanitised chat aside."""
    return len(re.findall(f"(?<!{MARK}){re.escape(token)}", text))


def split_rows(media: Any, is_item: Callable[[Any], bool]) -> tuple[Rows, bool]:
    """
    Bring `media` into lists.

    Returns:
        Either one list for each row and True, or a single list of items whose rows are not known yet and False.
    """
    if media is None or is_item(media):
        return [[] if media is None else [media]], False
    items = list(media)
    if all(item is not None and is_item(item) for item in items):
        return [items], False
    return [[] if item is None else [item] if is_item(item) else list(item) for item in items], True


def mismatch(token: str, kind: str, found: Any, given: Any) -> str:
    """The part of an error message that says which two numbers differ."""
    return (
        f"the number of {token} tokens in the prompts should be the same as the number of {kind} passed, but the text "
        f"has {found} and {given} {'was' if given == 1 else 'were'} given"
    )


def split_by_row(media: Any, text: list[str], token: str, kind: str, is_item: Callable[[Any], bool]) -> Rows:
    """
    Give each row of `text` its media.

    A nested list is taken as it is. A flat one is dealt out by the placeholders in the rows, or one a row where
    there are none and the numbers agree.

    Raises:
        ValueError: where it cannot be told which row an item belongs to.
    """
    rows, is_nested = split_rows(media, is_item)
    counts = [count_placeholders(sample, token) for sample in text]
    if is_nested:
        if len(rows) != len(text):
            raise ValueError(
                f"`text` has {len(text)} rows and the {kind} are given for {len(rows)}; "
                f"{mismatch(token, kind, counts, list(map(len, rows)))}. Give one list for each text, [] where it has "
                "none."
            )
        return rows
    items = rows[0]
    if not items:
        return [[] for _ in text]
    if len(text) == 1:
        return [items]
    if sum(counts) == len(items):
        remaining = iter(items)
        return [[next(remaining) for _ in range(count)] for count in counts]
    if not any(counts) and len(items) == len(text):
        return [[item] for item in items]
    raise ValueError(
        f"It is not clear which of the {len(text)} rows of `text` the {kind} belong to: "
        f"{mismatch(token, kind, counts, len(items))} in a flat list. Nest the list, one list for each text."
    )


def make_placeholder_rows(images: Any, audio: Any) -> list[str]:
    """Empty texts for media that come without any: one a row of a nested list, one an item of a flat list."""
    sizes = {}
    for kind, media, is_item in (("images", images, is_picture), ("audio inputs", audio, is_sound)):
        rows, is_nested = split_rows(media, is_item)
        if media is not None and (is_nested or rows[0]):
            sizes[kind] = len(rows) if is_nested else len(rows[0])
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"Without `text` there is one row for each item or inner list, but there are {sizes}; nest both lists, "
            "one list a row, or pass `text`."
        )
    return [""] * next(iter(sizes.values()), 0)


def place_placeholders(text: str, images: int, audio: int) -> str:
    """Put a placeholder for each item in front of a text that has none, images first."""
    if count_placeholders(text, IMAGE_TOKEN) or count_placeholders(text, AUDIO_TOKEN):
        return text
    return IMAGE_TOKEN * images + AUDIO_TOKEN * audio + text


def check_counts(text: list[str], media: Rows, token: str, kind: str) -> None:
    """Raise a `ValueError` that names the first row whose placeholders and media differ in number."""
    for row, (sample, items) in enumerate(zip(text, media, strict=True)):
        found = count_placeholders(sample, token)
        if found != len(items):
            raise ValueError(
                f"Row {row}: {mismatch(token, kind, found, len(items))}. Write one {token} for each of its {kind}, or "
                "no placeholder at all to have them put in front."
            )


def load_rows(media: Rows, load: Callable[[Any], Any], kind: str) -> Rows:
    """Load every item; errors name its row and its place there."""
    loaded: Rows = []
    for row, items in enumerate(media):
        loaded.append([])
        for index, item in enumerate(items):
            try:
                loaded[-1].append(load(item))
            except ValueError as error:
                raise ValueError(f"Row {row}, item {index} of its {kind}: {error}") from error
    return loaded


def pad_rows(items: torch.Tensor, counts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Deal items out to rows, padded with zeros.

    Args:
        items: (items, ...), row after row.
        counts: how many belong to each of the B rows.

    Returns:
        (B, max(counts), ...) and the mask of real items (B, max(counts)).
    """
    mask = torch.arange(max(counts), device=items.device) < torch.tensor(counts, device=items.device)[:, None]
    padded = items.new_zeros((*mask.shape, *items.shape[1:]))
    padded[mask] = items
    return padded, mask


def convert(tensor: torch.Tensor, return_tensors: Any) -> Any:
    """A tensor as the caller asked for it: a tensor, an array, or a list of one array a row."""
    if return_tensors is None:
        return list(tensor.cpu().numpy())
    return tensor if getattr(return_tensors, "value", return_tensors) == "pt" else tensor.cpu().numpy()
