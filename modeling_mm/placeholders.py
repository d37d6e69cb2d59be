# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Match media with the rows of text that they belong to, by the placeholders in the text. Pure functions of lists."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .modalities import MODALITIES, Modality

Rows = list[list[Any]]  # one list of items a row
Placeholder = tuple[int, int, str]  # start and end in the text, and the name of the modality


def as_list(value: Any) -> Any:
    """Return an array of objects, as `datasets` makes of lists in its numpy format, as a list."""
    return value.tolist() if isinstance(value, np.ndarray) and value.dtype.kind in "OU" else value


def as_number(value: Any) -> Any:
    """Return an array or tensor without axes, as `datasets` makes of numbers, as a number or text."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def find_placeholders(text: str) -> list[Placeholder]:
    """Return every placeholder of `text` in order; one that is marked as text of a message is none."""
    tokens = "|".join(f"(?P<{modality.name}>{re.escape(modality.token)})" for modality in MODALITIES.values())
    return [(found.start(), found.end(), str(found.lastgroup)) for found in re.finditer(tokens, text)]


def split_rows(media: Any, is_item: Callable[[Any], bool]) -> tuple[Rows, bool]:
    """
    Bring `media` into lists.

    Returns:
        One list for each row and True, or one list of all items, whose rows are not known yet, and False.
    """
    media = as_list(media)
    if media is None or is_item(media):
        return [[] if media is None else [media]], False
    items = list(map(as_list, media))
    if all(item is not None and is_item(item) for item in items):
        return [items], False
    return [[] if item is None else [item] if is_item(item) else list(item) for item in items], True


def is_no_list(value: Any) -> bool:
    return not isinstance(value, (list, tuple))


def items_of(modality: Modality) -> str:
    """Return the plural noun of a modality's items for messages: "images", "audio inputs"."""
    return modality.plural if modality.plural != modality.name else f"{modality.name} inputs"


def mismatch(modality: Modality, found: Any, given: Any) -> str:
    """Return the part of an error message that states which two numbers differ, in the words of transformers."""
    return (
        f"the number of {modality.token} tokens in the prompts should be the same as the number of "
        f"{items_of(modality)} passed, but the text has {found} and {given} {'was' if given == 1 else 'were'} given"
    )


def lay_out(
    text: Any, media: Mapping[str, Any], is_item: Mapping[str, Callable[[Any], bool]]
) -> tuple[list[str], list[list[Placeholder]], dict[str, Rows]]:
    """
    Bring text and media into rows.

    Args:
        text: a string, a list of strings, or None for placeholders alone: one row for each item or inner list.
        media: by modality a list of lists, one for each row; or a flat list, which is split by the placeholders.
        is_item: by modality, tells one item from a list of items; by default anything but a list is one.

    Returns:
        the texts, their placeholders, and by modality the items of each row.

    Raises:
        ValueError: if text and media do not fit together.
    """
    split = {name: split_rows(items, is_item.get(name, is_no_list)) for name, items in media.items()}
    if text is None:
        text = [""] * count_rows(split)
    text = [text] if isinstance(text, str) else list(text)
    for row, sample in enumerate(text):
        if not isinstance(sample, str):
            raise ValueError(
                f"`text` must be a string or a list of strings, but row {row} is of type {type(sample).__name__}"
            )
    if not text:
        raise ValueError("There is nothing to process: pass `text`, `images` or `audio`, with at least one row")
    placeholders = [find_placeholders(sample) for sample in text]
    rows = {}
    for name, modality in MODALITIES.items():
        counts = [sum(found == name for _, _, found in row) for row in placeholders]
        rows[name] = split_by_row(*split.get(name, ([[]], False)), counts, modality)
        for row, (count, items) in enumerate(zip(counts, rows[name], strict=True)):
            if count != len(items) and placeholders[row]:
                raise ValueError(
                    f"Row {row}: {mismatch(modality, count, len(items))}. Write one {modality.token} for each of its "
                    f"{items_of(modality)}, or no placeholder at all to have them put in front."
                )
    return text, placeholders, rows


def count_rows(split: Mapping[str, tuple[Rows, bool]]) -> int:
    """Return the number of rows of media without text."""
    sizes = {
        items_of(MODALITIES[name]): len(rows) if is_nested else len(rows[0])
        for name, (rows, is_nested) in split.items()
        if is_nested or rows[0]
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"Without `text` there is one row for each item or inner list, but there are {sizes}; nest all lists, one "
            "list a row, or pass `text`."
        )
    return next(iter(sizes.values()), 0)


def split_by_row(rows: Rows, is_nested: bool, counts: list[int], modality: Modality) -> Rows:
    """
    Give each row of text its media: nested rows as they are, a flat list by the placeholders, or one item a row.

    Args:
        rows, is_nested: as `split_rows` returns them.
        counts: placeholders of the modality in each row of text.

    Raises:
        ValueError: if the row of an item is not clear.
    """
    if is_nested:
        if len(rows) != len(counts):
            raise ValueError(
                f"`text` has {len(counts)} rows and the {items_of(modality)} are given for {len(rows)}; "
                f"{mismatch(modality, counts, list(map(len, rows)))}. Give one list for each text, [] for a text "
                "without."
            )
        return rows
    items = rows[0]
    if not items:
        return [[] for _ in counts]
    if len(counts) == 1:
        return [items]
    if sum(counts) == len(items):
        remaining = iter(items)
        return [[next(remaining) for _ in range(count)] for count in counts]
    if not any(counts) and len(items) == len(counts):
        return [[item] for item in items]
    raise ValueError(
        f"It is not clear which of the {len(counts)} rows of `text` the {items_of(modality)} belong to: "
        f"{mismatch(modality, counts, len(items))} in a flat list. Nest the list, one list for each text."
    )


def load_rows(rows: Rows, load: Callable[[Any], Any], modality: Modality) -> Rows:
    """Load every item; errors name its row and its index there."""
    loaded: Rows = []
    for row, items in enumerate(rows):
        loaded.append([])
        for index, item in enumerate(items):
            try:
                loaded[-1].append(load(item))
            except ValueError as error:
                raise ValueError(f"Row {row}, item {index} of its {items_of(modality)}: {error}") from error
    return loaded


def expand_placeholders(
    text: str, placeholders: Sequence[Placeholder], tokens: Mapping[str, Sequence[int]]
) -> tuple[str, list[dict[str, Any]]]:
    """
    Repeat each placeholder for the tokens of its item; in a text without any, put them in front.

    Args:
        placeholders: as `find_placeholders` returns them.
        tokens: by modality, the tokens of each item in order.

    Returns:
        The new text, and what was replaced: the span of characters before and after, as transformers reports them.
    """
    counts = {name: iter(numbers) for name, numbers in tokens.items()}
    found = placeholders or [(0, 0, name) for name in MODALITIES for _ in tokens.get(name, ())]
    parts, replacements, last, moved = [], [], 0, 0
    for start, end, name in found:
        new = MODALITIES[name].token * next(counts[name])
        span, new_span = (start, end), (start + moved, start + moved + len(new))
        replacements.append(
            {"type": name, "span": span, "new_span": new_span, "text": text[start:end], "replacement": new}
        )
        parts += [text[last:start], new]
        last, moved = end, moved + len(new) - (end - start)
    return "".join([*parts, text[last:]]), replacements
