# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Masks and positions, as pure functions.

A text token at index t sees a media item if and only if that item's placeholder is at or before t. Indices count the
tokens of the padded row, so they hold under left and right padding alike.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from .device_reads import read_once

# Shape legend: B rows, L text tokens, S media tokens.


def wrong_rows(text: int, media: int) -> ValueError:
    """Return the error for media of another number of rows than the text."""
    return ValueError(
        f"The text has {text} rows, the media have {media}. Media are batch-first: give each row its items, padded to "
        "the same number, and mask those that are not real."
    )


def check_placeholders(name: str, token_id: int | None, placeholders: list[int], items: list[int]) -> None:
    """
    Check that each row has as many placeholders as media items.

    Raises:
        ValueError: for the first row whose number of placeholders differs from its number of media items.
    """
    for row, (expected, got) in enumerate(zip(items, placeholders, strict=True)):
        if expected != got:
            raise ValueError(
                f"Row {row}: {got} {name} placeholder token(s) (id {token_id}) in the text for {expected} {name}(s). "
                f"Put one {name} placeholder into input_ids for each {name}, where it belongs in the text, as "
                "MMProcessor does. If the counts should agree, check that model and tokenizer were joined with the "
                f"same {name}_token_id."
            )


def hide_placeholders(mask: torch.Tensor, found: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return an attention mask (B, L) with 0 at placeholders, each modality's (B, L) bool in `found`."""
    for is_placeholder in found:
        mask = mask.masked_fill(is_placeholder, 0)
    return mask


def check_hidden(name: str, visible: list[int]) -> None:
    """
    Check that hidden placeholders are masked.

    Args:
        name: of the modality
        visible: placeholders of each row that the attention mask does not hide

    Raises:
        ValueError: for the first row with a placeholder that the text would read.
    """
    for row, number in enumerate(visible):
        if number:
            raise ValueError(
                f"Row {row}: {number} {name} placeholder(s) with 1 in the attention mask, or without one, but this "
                "model's placeholders are hidden (config.placeholders). Pass the attention_mask that a processor made "
                "with placeholders='hidden' returns: it is 0 at every placeholder."
            )


def mask_of_padding(items: torch.Tensor, counts: list[int]) -> torch.Tensor | None:
    """
    Return which items are real if their padding is inferred from zeros alone, (B, I) bool.

    Args:
        items: (B, I, ...)
        counts: placeholders of each row

    Returns:
        `None` if nothing is padding: each row has as many placeholders as items, or an item beyond them is not zero.
    """
    rows, slots = items.shape[:2]
    if len(counts) != rows or max(counts) > slots or min(counts) == slots:
        return None
    present = torch.arange(slots, device=items.device) < torch.tensor(counts, device=items.device)[:, None]
    return None if bool(items[~present].any()) else present


def cross_attention_mask(
    visible: torch.Tensor, dtype: torch.dtype, boolean: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the mask of cross-attention, and which tokens see media.

    Args:
        visible: (B, L, S) bool, which media token each text token sees
        dtype: of the additive mask
        boolean: whether the attention function takes a boolean mask (sdpa) or one to be added to the scores

    Returns:
        the attention mask (B, 1, L, S), and which text tokens see any media (B, L, 1).

    A softmax over nothing is not a number, so the mask lets a token that sees no media attend to all of them. The
    second result selects the tokens whose output must then be dropped.
    """
    has_media = visible.any(-1, keepdim=True)  # (B, L, 1)
    allowed = (visible | ~has_media)[:, None]  # (B, 1, L, S)
    if boolean:
        return allowed, has_media
    blocked = torch.finfo(dtype).min
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, blocked), has_media


def mask_tokens_without_media(branch: torch.Tensor, has_media: torch.Tensor | None) -> torch.Tensor:
    """Zero out tokens that see no media, (B, L, D); `has_media` is `None` if all tokens see media."""
    return branch if has_media is None else branch.masked_fill(~has_media, 0.0)


def text_positions(
    attention_mask: torch.Tensor | None, length: int, past_length: int | torch.Tensor, device: torch.device
) -> torch.Tensor:
    """
    Return position ids that count real tokens only, so that padding on either side does not move a row.

    Args:
        attention_mask: (B, past + L), or `None` without padding
        length: L
        past_length: tokens in the cache, an integer or a scalar tensor

    Returns:
        (B, L) or (1, L)
    """
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return (torch.arange(length, device=device) + past_length)[None]


def first_visible(attention_mask: torch.Tensor) -> int | None:
    """
    Return the index from which on every token of every row is visible, if those before it are hidden in all rows.

    So it is behind hidden placeholders, without other padding. A decoding step then needs no mask: it leaves the first
    keys out.

    Args:
        attention_mask: (B, L)

    Returns:
        `None` if rows differ, hide others than the first, or hide all.
    """
    rows, length = attention_mask.shape
    hidden, rest = divmod(attention_mask.numel() - int(torch.count_nonzero(attention_mask)), rows)
    if rest or hidden == length or (hidden and not bool(attention_mask[:, hidden:].all())):
        return None
    return hidden


def check_positions(position_ids: torch.Tensor, num_positions: int) -> None:
    """
    Check position ids against the decoder's table.

    Raises:
        ValueError: for the first row that is longer than the decoder's table of positions, or has a negative one.
    """
    ranges = torch.stack([position_ids.amin(-1), position_ids.amax(-1)], dim=1)
    for row, (lowest, highest) in enumerate(read_once("range", ranges, position_ids)):
        if lowest < 0:
            raise ValueError(f"Row {row}: position_ids must not be negative, got {lowest}.")
        if highest >= num_positions:
            raise ValueError(
                f"Row {row}: {highest + 1} text tokens, but the decoder has {num_positions} positions. Shorten the "
                "text, or use a decoder with more positions (text_position_encoding='sinusoidal' has no limit)."
            )


def check_continuous(position_ids: torch.Tensor) -> None:
    """
    Refuse positions that jump, because it is not known if the tokens behind see the media before.

    Raises:
        ValueError: for the first row whose positions neither count on nor start again at 0.
    """
    jumps = (position_ids.diff(dim=-1) != 1) & (position_ids[:, 1:] != 0)
    found = read_once("jumps", jumps.any(-1), position_ids)
    if True in found:
        raise ValueError(
            f"Row {found.index(True)}: position_ids neither count on nor start again at 0, so it is not known which "
            "tokens see the row's media. Start each packed example at 0. If the positions skip padding, pass the "
            "attention_mask."
        )


def packed_examples(position_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """
    Return the number of the packed example that each token belongs to, (B, L), from positions that start again at 0.

    Masked tokens at 0, such as hidden placeholders, belong to the next real token's example if that starts one.

    Args:
        position_ids: (B, L)
        attention_mask: (B, L), or `None` without padding

    Returns:
        `None` if no row holds several examples
    """
    starts = position_ids == 0
    real = torch.ones_like(starts) if attention_mask is None else attention_mask.bool()
    is_packed = (starts & real).sum(-1, keepdim=True) > 1  # (B, 1)
    read_from = [position_ids] if attention_mask is None else [position_ids, attention_mask]
    if not read_once("packed", is_packed.any(), *read_from):
        return None
    hidden, starts = starts & ~real, starts & real
    index = torch.arange(starts.shape[1], device=starts.device).masked_fill(hidden, starts.shape[1])
    following = index.flip(-1).cummin(-1).values.flip(-1)  # index of the first other token from here on
    leads = hidden & nn.functional.pad(starts, (0, 1)).gather(1, following)
    goes_on = nn.functional.pad(leads[:, :-1], (1, 0))
    return ((starts | leads) & ~goes_on & is_packed).cumsum(-1)


def same_example(examples: torch.Tensor) -> Callable[..., torch.Tensor]:
    """Return a mask function of transformers: a token attends to those of its packed example, (B, L)."""

    def mask(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return examples[batch, query] == examples[batch, key]

    return mask
