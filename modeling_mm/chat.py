# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""What a conversation is made of: its tokens, its template, its parts, and where the answers stand in it."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from .audio import lacks_rate
from .compat import set_named_tokens
from .configuration_mm import (
    ASSISTANT_TOKEN,
    AUDIO_TOKEN,
    END_TOKEN,
    IMAGE_TOKEN,
    PAD_TOKEN,
    SYSTEM_TOKEN,
    USER_TOKEN,
)

# The names under which the tokenizer gives its special tokens, in the order of their ids.
NAMED_TOKENS = {
    "image_token": IMAGE_TOKEN,
    "audio_token": AUDIO_TOKEN,
    "system_token": SYSTEM_TOKEN,
    "user_token": USER_TOKEN,
    "assistant_token": ASSISTANT_TOKEN,
    "end_token": END_TOKEN,
}
# Where a part of a message may keep its picture or sound, besides under its own type.
SOURCE_KEYS = ("url", "path", "base64", "bytes")


def pad_left_unless_told(tokenizer) -> None:
    """
    Batches for generation must be padded on the left, and pipelines pad as the tokenizer does: it pads left unless its
    own settings name a side. For training nothing is lost by it, as positions count real tokens on either side.
    """
    if "padding_side" not in tokenizer.init_kwargs:
        tokenizer.padding_side = "left"
        tokenizer.init_kwargs["padding_side"] = "left"  # so that it is saved


def default_chat_template() -> str | None:
    """The template beside this module; None where the Hub's loader copied the module alone."""
    path = Path(__file__).with_name("chat_template.jinja")
    return path.read_text(encoding="utf-8") if path.is_file() else None


def add_named_tokens(tokenizer: Any) -> None:
    """
    Give `tokenizer` the placeholder and role tokens, as vocabulary and as attributes (`tokenizer.image_token`, ...).

    Tokens that are missing get the next free ids, in the order of `NAMED_TOKENS`; the padding token comes last, and
    only where there is none. A tokenizer that has them all is left as it is.
    """
    tokens = [*NAMED_TOKENS.values(), *([PAD_TOKEN] if tokenizer.pad_token is None else [])]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = PAD_TOKEN
    known = tokenizer.special_tokens_map
    renamed = {name: token for name, token in NAMED_TOKENS.items() if known.get(name) != token}
    unknown = {name: token for name, token in renamed.items() if name not in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    for name in renamed.keys() - unknown.keys():
        setattr(tokenizer, name, renamed[name])
    if unknown:
        set_named_tokens(tokenizer, unknown)


def pick_template(templates: str | dict[str, str] | None, wanted: str | None) -> str:
    """The template `wanted` by its text or by its name among the processor's, the default one if it is None."""
    if isinstance(templates, dict):
        if wanted is None and "default" not in templates:
            raise ValueError(
                f"None of the chat templates is the default; pass `chat_template=`, one of {sorted(templates)}"
            )
        return templates.get("default" if wanted is None else wanted, wanted)
    template = templates if wanted is None else wanted
    if template is None:
        raise ValueError(
            "This processor has no chat template; set `processor.chat_template`, or pass `chat_template=`"
        )
    return template


def pick_option(kwargs: dict, group: str, name: str) -> Any:
    """The option `name` among call kwargs, given flat or within its `group`; None where it is not given."""
    return kwargs[name] if kwargs.get(name) is not None else (kwargs.get(group) or {}).get(name)


def set_option(kwargs: dict, group: str, name: str, value: Any) -> dict:
    """`kwargs` with an option set where the caller has it: in its `group`, or else flat."""
    if name in (kwargs.get(group) or {}):
        return {**kwargs, group: {**kwargs[group], name: value}}
    return {**kwargs, name: value}


def option_names(kwargs_type: Any) -> set[str]:
    """Every key of a `TypedDict` of options and of those inside it."""
    names = set()
    for name, annotation in getattr(kwargs_type, "__annotations__", {}).items():
        names |= {name, *getattr(annotation, "__annotations__", {})}
    return names


def normalize_part(part: Any) -> Any:
    """A part of a message without its empty keys, OpenAI's kinds of parts as ours."""
    if not isinstance(part, dict):
        return part
    part = {key: value for key, value in part.items() if value is not None}
    for name, kind in (("image_url", "image"), ("audio_url", "audio")):
        if part.get("type") == name:
            url = part.get(name)
            return {"type": kind, "url": url.get("url") if isinstance(url, dict) else url}
    if part.get("type") == "input_audio" and isinstance(part.get("input_audio"), dict):
        return {"type": "audio", "base64": part["input_audio"].get("data")}
    return part


def normalize_conversations(conversation: Any) -> tuple[list[list[dict]], bool]:
    """One conversation or a batch, as a batch of fresh messages without empty keys, and whether it was a batch."""
    if len(conversation) == 0:
        raise ValueError("The conversation is empty; pass at least one message")
    first = conversation[0]
    is_batched = isinstance(first, (list, tuple)) or hasattr(first, "messages")
    chats = [getattr(chat, "messages", chat) for chat in (conversation if is_batched else [conversation])]
    normalized = [
        [{key: value for key, value in turn.items() if value is not None} for turn in chat] for chat in chats
    ]
    for turn in (turn for chat in normalized for turn in chat):
        if isinstance(turn.get("content"), (list, tuple)):
            turn["content"] = [normalize_part(part) for part in turn["content"]]
    return normalized, is_batched


def collect_sources(chat: list[dict], kind: str) -> list[Any]:
    """The pictures (`kind` "image") or sounds ("audio") of a conversation in order, as far as its parts hold any."""
    contents = [turn["content"] for turn in chat if isinstance(turn.get("content"), list)]
    parts = [part for content in contents for part in content if isinstance(part, dict) and part.get("type") == kind]
    sources = []
    for part in parts:
        source = next((part[key] for key in (kind, *SOURCE_KEYS) if part.get(key) is not None), None)
        if source is not None:
            rate = part.get("sampling_rate")
            # A file knows its own rate.
            sources.append((source, rate) if rate is not None and lacks_rate(source) else source)
    return sources


def mark_spans(offsets: Any, spans: list[tuple[int, int]]) -> list[int]:
    """
    Which tokens lie in the given spans of characters.

    A token of spaces alone can have an empty offset that stands at its end (byte-level BPE trims them); padding and
    added special tokens have (0, 0) and lie in no span.
    """
    mask = []
    for start, end in ((int(start), int(end)) for start, end in offsets):
        is_empty = start == end
        mask.append(
            int(any((first < start <= last) if is_empty else (start < last and end > first) for first, last in spans))
        )
    return mask


def shift_spans(spans: list[tuple[int, int]], replacements: list[dict]) -> list[tuple[int, int]]:
    """Move spans of characters to where they are once the placeholders before them have grown."""

    def shift(position: int) -> int:
        grown = (item["new_span"][1] - item["span"][1] for item in replacements if item["span"][1] <= position)
        return position + max(grown, default=0)

    return [(shift(start), shift(end)) for start, end in spans]


def add_assistant_masks(inputs: Any, spans: list[list[tuple[int, int]]]) -> None:
    """
    Put `assistant_masks` into a tokenized batch, in place of the offsets they are made from.

    Args:
        inputs: with `offset_mapping` and `text_replacement_offsets`, and the (B, L) of their rows.
        spans: for each row where its answers stand, in characters, before its placeholders grew.
    """
    offsets = inputs.pop("offset_mapping")
    replacements = inputs.pop("text_replacement_offsets") or [[]] * len(spans)  # [] without any media parts
    inputs["assistant_masks"] = [
        mark_spans(row_offsets, shift_spans(row_spans, row_replacements))
        for row_offsets, row_spans, row_replacements in zip(offsets, spans, replacements, strict=True)
    ]
