# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Control tokens that people write into their messages: they are encoded as the plain text that they are.

A chat template writes control tokens (`<|user|>`, `<|image|>`, ...) between the texts of a conversation. `mark` puts a
private character inside those that stand in a text, so that no tokenizer finds them in the rendered conversation, and
`encode` gives them the tokens of plain text, without the mark.
"""

import re
import threading
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

from transformers.tokenization_utils_base import BatchEncoding
from transformers.utils import logging

from .modalities import MODALITIES

logger = logging.get_logger(__name__)

MARK = "\U000f0000"  # not assigned, and private: no text has a reason to hold it
# Options of a tokenizer that come after the tokens of each row.
FINISHING = ("padding", "max_length", "pad_to_multiple_of", "padding_side", "return_attention_mask", "return_tensors")
# What a spliced token has in the other lists of its row.
FILLING = {"attention_mask": 1, "token_type_ids": 0, "special_tokens_mask": 0}
# A call sets padding, truncation and the search for special tokens on the one tokenizer that all threads share.
TOKENIZER_LOCK = threading.Lock()

# Placeholders of other models: LLaVA, Qwen, Phi, Pixtral, Gemma, Llama, InternVL, Idefics, Granite, Voxtral.
OTHER_PLACEHOLDERS = re.compile(
    r"<(?:image|img|audio|speech|video)>|<(?:IMG|IMAGE|AUDIO|VIDEO)(?:_CONTEXT)?>|\[(?:IMG|AUDIO|IMAGE)\]"
    r"|<\|(?:AUDIO|IMAGE|VIDEO|video|image_pad|video_pad|vision_start|vision_end|audio_bos|audio_eos|audio_pad"
    r"|image_\d+|audio_\d+|begin_of_image)\|>|<(?:start_of_image|start_of_audio|image_soft_token|audio_soft_token"
    r"|fake_token_around_image|image_placeholder|begin_of_image)>"
)

# Of Whisper, whose tokenizers do not have them as special tokens.
TIMESTAMP = re.compile(r"<\|\d+\.\d\d\|>")

Offsets = list[tuple[int, int]]

NOTED: WeakKeyDictionary[Any, tuple[tuple[Any, ...], dict[str, tuple[str, ...]]]] = WeakKeyDictionary()


def control_tokens(tokenizer: Any, template: str = "") -> tuple[str, ...]:
    """
    Return the special tokens of a tokenizer, timestamps, and its other added tokens that a chat template writes.

    They are noted until the tokenizer has more tokens or other special ones, as a codec adds thousands of tokens and
    each chat would wait for all of them.
    """
    state = (len(tokenizer), tuple(tokenizer.all_special_tokens))
    known, by_template = NOTED.get(tokenizer, (None, {}))
    if known != state:
        by_template = {}
        NOTED[tokenizer] = (state, by_template)
    if template not in by_template:
        by_template[template] = find_control_tokens(tokenizer, template)
    return by_template[template]


def find_control_tokens(tokenizer: Any, template: str) -> tuple[str, ...]:
    """Return what `control_tokens` notes."""
    added = tokenizer.added_tokens_decoder.values()
    tokens = [
        token.content
        for token in added
        if token.special or token.content in template or TIMESTAMP.fullmatch(token.content)
    ]
    return tuple(token for token in tokens if len(token) > 1 and not token.isspace())


@lru_cache
def pattern_of(tokens: tuple[str, ...]) -> re.Pattern:
    """Return the pattern of any of some tokens, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


@lru_cache
def beginnings_of(tokens: tuple[str, ...]) -> tuple[dict[str, set[str]], int]:
    """Return the characters that continue each beginning of some tokens, and the length of the longest beginning."""
    beginnings: dict[str, set[str]] = {}
    for token in tokens:
        for length in range(1, len(token)):
            beginnings.setdefault(token[:length], set()).add(token[length])
    return beginnings, max(map(len, beginnings), default=0)


# ---- Marks ----------------------------------------------------------------------------------------------------------


def mark(value: Any, tokens: tuple[str, ...], kept: Sequence[str] = ()) -> Any:
    """
    Return texts, lists and dicts with every control token in their strings marked; other values are the same objects.

    A token that is cut between two strings is marked too, as a template may join them.

    Args:
        tokens: as `control_tokens` returns them.
        kept: keys of dicts whose values are no text of a message, such as media.
    """
    starts = {text[0] for text in strings_of(value, kept) if text}

    def marked(value: Any) -> Any:
        if isinstance(value, str):
            return mark_text(value, tokens, starts)
        if isinstance(value, dict):
            return {key: each if key in kept else marked(each) for key, each in value.items()}
        return [marked(each) for each in value] if isinstance(value, (list, tuple)) else value

    return marked(value)


def strings_of(value: Any, kept: Sequence[str]) -> list[str]:
    """Return the strings inside lists and dicts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = [each for key, each in value.items() if key not in kept]
    return [text for each in value for text in strings_of(each, kept)] if isinstance(value, (list, tuple)) else []


def mark_text(text: str, tokens: tuple[str, ...], starts: set[str]) -> str:
    """
    Mark the control tokens of a text, and the beginning of one at its end.

    Args:
        starts: first characters of the texts that may follow.
    """
    pattern = pattern_of(tokens)
    while pattern.search(text):  # again, as tokens may overlap
        text = pattern.sub(lambda found: f"{found[0][0]}{MARK}{found[0][1:]}", text)
    beginnings, longest = beginnings_of(tokens)
    cuts = {
        len(text) - length
        for length in range(1, min(longest, len(text)) + 1)
        if beginnings.get(text[-length:], set()) & starts
    }
    for place in sorted(cuts, reverse=True):
        text = f"{text[: place + 1]}{MARK}{text[place + 1 :]}"
    return text


def unmark(text: str, tokens: Sequence[str]) -> tuple[str, list[int]]:
    """Return a text without its marks, and where each of its characters was before."""
    firsts = {token[0] for token in tokens}
    places = [i for i, letter in enumerate(text) if letter != MARK or i == 0 or text[i - 1] not in firsts]
    return "".join(text[place] for place in places), places


def warn_of_other_placeholders(texts: Sequence[str]) -> None:
    """Warn once for each placeholder of another model in a text, and for each of ours in the text of a message."""
    for text in texts:
        for found in set(OTHER_PLACEHOLDERS.findall(text)):
            logger.warning_once(
                f"A text has {found}, which shows no media to this model. Write "
                f"{' or '.join(each.token for each in MODALITIES.values())}, in a chat a part of type "
                f"{' or '.join(map(repr, MODALITIES))}."
            )
        for modality in MODALITIES.values() if MARK in text else ():
            if modality.token[0] + MARK + modality.token[1:] in text:
                logger.warning_once(
                    f"The text of a message has {modality.token}, which is plain text there and shows no media. "
                    f'Write a part {{"type": "{modality.name}", ...}} to show some.'
                )


# ---- Tokens ---------------------------------------------------------------------------------------------------------


def encode(tokenizer: Any, texts: list[str], truncation: Any = None, **options: Any) -> BatchEncoding:
    """
    Encode texts as a tokenizer does; marked control tokens are plain text.

    Args:
        tokenizer: a fast tokenizer.
        options: of the tokenizer's call.

    Raises:
        ValueError: for `return_overflowing_tokens` of marked texts, and if a tokenizer makes a marked token of text.
    """
    with TOKENIZER_LOCK:
        if not any(MARK in text for text in texts):
            return tokenizer(texts, truncation=truncation, **options)
        if options.pop("return_overflowing_tokens", False):
            raise ValueError(
                "`return_overflowing_tokens` cannot be used with texts that spell control tokens; leave it out"
            )
        finishing = {name: options.pop(name) for name in FINISHING if name in options}
        with_offsets = options.pop("return_offsets_mapping", False)
        with_length = options.pop("return_length", False)
        batch = tokenizer(texts, return_offsets_mapping=True, **options)
        rows = [
            splice_plain_text(tokenizer, text, {name: batch[name][row] for name in batch})
            for row, text in enumerate(texts)
        ]
        if truncation not in (None, False, "do_not_truncate"):
            length = finishing.get("max_length") or tokenizer.model_max_length
            part = slice(length) if tokenizer.truncation_side == "right" else slice(-length, None)
            rows = [{name: values[part] for name, values in row.items()} for row in rows]
        offsets = [row.pop("offset_mapping") for row in rows]
        padded = tokenizer.pad(
            {name: [row[name] for row in rows] for name in rows[0]}, **{"padding": False} | finishing
        )
        if with_offsets:
            on_left = (finishing.get("padding_side") or tokenizer.padding_side) == "left"
            padding = [[(0, 0)] * (len(ids) - len(row)) for ids, row in zip(padded["input_ids"], offsets, strict=True)]
            pairs = zip(padding, offsets, strict=True)
            padded["offset_mapping"] = [pad + row if on_left else row + pad for pad, row in pairs]
        if with_length:
            padded["length"] = [len(ids) for ids in padded["input_ids"]]
        return padded


def splice_plain_text(tokenizer: Any, text: str, row: dict[str, list]) -> dict[str, list]:
    """Return the encoding of a text with the tokens of its marked stretches replaced by those of plain text."""
    if MARK not in text:
        return row
    added = tokenizer.added_tokens_decoder
    ids, offsets = row["input_ids"], row["offset_mapping"]
    # Stretches lie between the control tokens that the template wrote.
    is_wall = [
        token in added and MARK not in text[start:end] for token, (start, end) in zip(ids, offsets, strict=True)
    ]
    walls = [-1, *(i for i, found in enumerate(is_wall) if found), len(ids)]
    spliced: dict[str, list] = {name: [] for name in row}
    for before, after in pairwise(walls):
        begin = 0 if before < 0 else offsets[before][1]
        # A token that the tokenizer adds at the end has no place in the text.
        end = len(text) if after == len(ids) or offsets[after] == (0, 0) else offsets[after][0]
        new = {name: values[before + 1 : after] for name, values in row.items()}
        if MARK in text[begin:end]:
            new_ids, new_offsets = encode_plain(tokenizer, text[begin:end], text[:begin])
            new = {name: [FILLING.get(name)] * len(new_ids) for name in row}
            new |= {"input_ids": new_ids, "offset_mapping": [(begin + s, begin + e) for s, e in new_offsets]}
        for name, values in row.items():
            spliced[name] += new[name] + values[after : after + 1]
    return spliced


def encode_plain(tokenizer: Any, marked: str, before: str) -> tuple[list[int], Offsets]:
    """
    Encode a marked stretch of text without control tokens.

    Args:
        before: the text in front of it, after which some tokenizers write no space.

    Returns:
        Its ids, and their places in the marked text.
    """
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    text, places = unmark(marked, tuple(added))
    wanted = {number for token, number in added.items() if token[:1] + MARK + token[1:] in marked}
    ids, offsets = encode_behind(tokenizer, text, before)
    if wanted.intersection(ids):  # a token that is not special, or that the vocabulary has as a word
        ids, offsets, at = [], [], 0
        for marked_piece in re.split(f"(?<={MARK})", marked):
            piece = unmark(marked_piece, tuple(added))[0]
            piece_ids, piece_offsets = encode_behind(tokenizer, piece, before + text[:at])
            ids += piece_ids
            offsets += [(at + start, at + end) for start, end in piece_offsets]
            at += len(piece)
        if wanted.intersection(ids):
            raise ValueError(
                f"{text!r:.80} spells a control token, and this tokenizer makes that token of plain text; reword the "
                "message, or use another tokenizer"
            )
    places = [*places, len(marked)]
    return ids, [(places[start], places[end - 1] + 1 if end > start else places[end]) for start, end in offsets]


def encode_behind(tokenizer: Any, text: str, before: str) -> tuple[list[int], Offsets]:
    """Encode plain text as it is encoded behind another text."""
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "split_special_tokens": True}
    plain = tokenizer(text, **options)
    if before and starts_with_space(tokenizer):
        behind = tokenizer(f"\n{text}", **options)
        first = next((i for i, (_, end) in enumerate(behind["offset_mapping"]) if end > 1), len(behind["input_ids"]))
        if all(start >= 1 for start, _ in behind["offset_mapping"][first:]):
            return behind["input_ids"][first:], [(s - 1, e - 1) for s, e in behind["offset_mapping"][first:]]
    return plain["input_ids"], plain["offset_mapping"]


def starts_with_space(tokenizer: Any) -> bool:
    """Return True for a tokenizer that puts a space in front of a text, and none behind a control token."""
    token, number = next((token.content, number) for number, token in tokenizer.added_tokens_decoder.items())
    alone, behind = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", f"{token}a"))
    return behind != [number, *alone]
