# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Who sees what, as pure functions.

A text token at index t sees a media item if and only if that item's placeholder is at or before t. Indices count the
tokens of the padded row, so they hold under left and right padding alike.
"""

import torch

# Shape legend: B rows, L text tokens, S media tokens.


def placeholder_indices(is_placeholder: torch.Tensor) -> torch.Tensor:
    """
    Where the placeholders stand.

    Args:
        is_placeholder: (B, L) bool

    Returns:
        (B, L): entry k of a row is the index of its k-th placeholder; entries past the last placeholder are L.
    """
    length = is_placeholder.shape[1]
    ordinal = is_placeholder.cumsum(-1) - 1  # (B, L), which placeholder of its row each placeholder is
    indices = torch.arange(length, device=is_placeholder.device).expand_as(is_placeholder)
    table = torch.full_like(indices, length)
    # One column more than needed takes what is written for tokens that are no placeholders.
    table = torch.cat([table, table[:, :1]], dim=1)  # (B, L + 1)
    table = table.scatter(1, ordinal.masked_fill(~is_placeholder, length), indices)
    return table[:, :length]


def media_indices(is_placeholder: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """
    The text index of each media token's placeholder.

    Args:
        is_placeholder: (B, L) bool, placeholders of one modality
        position: (B, S) the number of each media token's item within its row and modality; -1 for padding

    Returns:
        (B, S), L for padding.
    """
    length = is_placeholder.shape[1]
    table = placeholder_indices(is_placeholder)  # (B, L)
    index = table.gather(1, position.clamp(min=0, max=length - 1))
    return index.masked_fill((position < 0) | (position >= length), length)


def check_placeholders(name: str, token_id: int | None, placeholders: list[int], items: list[int]) -> None:
    """
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


def visible_media(index: torch.Tensor, mask: torch.Tensor, query_index: torch.Tensor) -> torch.Tensor:
    """
    Args:
        index: (B, S) text index of each media token's placeholder
        mask: (B, S) bool, which media tokens are real
        query_index: (L,) text indices of the querying tokens

    Returns:
        (B, L, S) bool: which media token each text token sees.
    """
    return mask[:, None, :] & (index[:, None, :] <= query_index[None, :, None])


def cross_attention_mask(
    visible: torch.Tensor, dtype: torch.dtype, boolean: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Args:
        visible: (B, L, S) bool
        dtype: of the additive mask
        boolean: whether the attention function takes a boolean mask (sdpa) or one to be added to the scores

    Returns:
        the attention mask (B, 1, L, S), and which text tokens see anything at all (B, L, 1).

    A softmax over nothing is not a number, so a token that sees nothing is let attend to everything here; the second
    result says whose output must then be dropped.
    """
    sees = visible.any(-1, keepdim=True)  # (B, L, 1)
    allowed = (visible | ~sees)[:, None]  # (B, 1, L, S)
    if boolean:
        return allowed, sees
    blocked = torch.finfo(dtype).min
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, blocked), sees


def text_positions(attention_mask: torch.Tensor | None, length: int, past_length, device) -> torch.Tensor:
    """
    Position ids that count real tokens only, so that padding on either side does not move a row.

    Args:
        attention_mask: (B, past + L), or `None` where there is no padding
        length: L
        past_length: tokens in the cache, an integer or a scalar tensor

    Returns:
        (B, L) or (1, L)
    """
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return (torch.arange(length, device=device) + past_length)[None]


def check_positions(position_ids: torch.Tensor, num_positions: int) -> None:
    """
    Raises:
        ValueError: for the first row that is longer than the decoder's table of positions, or has a negative one.
    """
    lowest, longest = position_ids.amin(-1), position_ids.amax(-1)
    negative = (lowest < 0).nonzero().flatten().tolist()
    if negative:
        row = negative[0]
        raise ValueError(f"Row {row}: position_ids must not be negative, got {int(lowest[row])}.")
    too_long = (longest >= num_positions).nonzero().flatten().tolist()
    if too_long:
        row = too_long[0]
        raise ValueError(
            f"Row {row}: {int(longest[row]) + 1} text tokens, but the decoder has {num_positions} positions. Shorten "
            "the text, or use a decoder with more positions (text_position_encoding='sinusoidal' has no limit)."
        )
