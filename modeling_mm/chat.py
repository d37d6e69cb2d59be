# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Conversations: their special tokens, their template, their parts, and the spans of their answers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from .audio import lacks_rate
from .compat import set_named_tokens
from .configuration_mm import ASSISTANT_TOKEN, END_TOKEN, PAD_TOKEN, PLACEHOLDERS, SYSTEM_TOKEN, USER_TOKEN
from .control_tokens import control_tokens, pattern_of
from .modalities import MODALITIES, VIDEO, Modality
from .placeholders import Placeholder, Rows, as_list, as_number, find_placeholders, items_of

# Attributes of the tokenizer for the special tokens beside the placeholders, in the order of their ids.
ROLE_TOKENS = {
    "system_token": SYSTEM_TOKEN,
    "user_token": USER_TOKEN,
    "assistant_token": ASSISTANT_TOKEN,
    "end_token": END_TOKEN,
}
# Keys under which a part of a message may keep its media, besides its own type.
SOURCE_KEYS = ("url", "path", "base64", "bytes")
# Key of an assistant's image or audio with its codes, in place of the media, and of the text that they become.
CODES = "codes"
# Keys of a video part with its options.
VIDEO_OPTIONS = ("fps", "num_frames", "max_frames", "start", "end", "load_audio_from_video", "frame_times")
# Types of parts with text in the protocol of `/v1/responses`, and OpenAI's newer name of a role.
TEXT_PARTS = ("input_text", "output_text")
OTHER_ROLES = {"developer": "system"}


def pad_left_by_default(tokenizer: Any) -> None:
    """
    Make a tokenizer whose own settings name no side pad on the left.

    Generation needs that, and pipelines pad as the tokenizer does. Training loses nothing by it, as positions count
    real tokens on either side.
    """
    if "padding_side" not in tokenizer.init_kwargs:
        tokenizer.padding_side = "left"
        tokenizer.init_kwargs["padding_side"] = "left"  # so that it is saved


def default_chat_template() -> str | None:
    """Return the template beside this module; None if the Hub's loader copied the module alone."""
    path = Path(__file__).with_name("chat_template.jinja")
    return path.read_text(encoding="utf-8") if path.is_file() else None


def keys_without_text() -> tuple[str, ...]:
    """Return the keys of messages and their parts that hold no text of a person."""
    return ("role", "type", CODES, *SOURCE_KEYS, *MODALITIES)


def placeholder_tokens() -> dict[str, str]:
    """Return the placeholder of each modality, which a chat template writes for a part of that type."""
    return {name: modality.token for name, modality in MODALITIES.items()}


def add_named_tokens(tokenizer: Any) -> None:
    """
    Give `tokenizer` the placeholder and role tokens, as vocabulary and as attributes (`tokenizer.image_token`, ...).

    Missing tokens get the next free ids, in the order of `PLACEHOLDERS` and `ROLE_TOKENS`. The padding token comes
    next, if there is none, and last the placeholders of modalities that a user has registered. The end token is also
    the `eos_token`, which trainers ask for, of a tokenizer without. A tokenizer that has all of them is left as it is.
    """
    named = {f"{name}_token": token for name, token in placeholder_tokens().items()} | ROLE_TOKENS
    padding = [PAD_TOKEN] if tokenizer.pad_token is None else []
    tokens = list(dict.fromkeys([*PLACEHOLDERS, *ROLE_TOKENS.values(), *padding, *named.values()]))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = PAD_TOKEN
    if tokenizer.eos_token is None:
        tokenizer.eos_token = END_TOKEN
    known = tokenizer.special_tokens_map
    renamed = {name: token for name, token in named.items() if known.get(name) != token}
    unknown = {name: token for name, token in renamed.items() if name not in tokenizer.SPECIAL_TOKENS_ATTRIBUTES}
    for name in renamed.keys() - unknown.keys():
        setattr(tokenizer, name, renamed[name])
    if unknown:
        set_named_tokens(tokenizer, unknown)


def pick_template(templates: str | dict[str, str] | None, wanted: str | None) -> str:
    """Return the template that `wanted` names, or `wanted` itself if it is a template; the default one for None."""
    if isinstance(templates, dict) and wanted is None and "default" not in templates:
        raise ValueError(
            f"None of the chat templates is the default; pass `chat_template=`, one of {sorted(templates)}"
        )
    if isinstance(templates, dict):
        return templates["default"] if wanted is None else templates.get(wanted, wanted)
    template = templates if wanted is None else wanted
    if template is None:
        raise ValueError(
            "This processor has no chat template; set `processor.chat_template`, or pass `chat_template=`"
        )
    return template


def pick_option(kwargs: dict, group: str, name: str) -> Any:
    """Return the option `name` of a call, given flat or within its `group`; None if it is not given."""
    return kwargs[name] if kwargs.get(name) is not None else (kwargs.get(group) or {}).get(name)


def set_option(kwargs: dict, group: str, name: str, value: Any) -> dict:
    """Return `kwargs` with an option set in its `group` if the caller has it there, else flat."""
    if name in (kwargs.get(group) or {}):
        return {**kwargs, group: {**kwargs[group], name: value}}
    return {**kwargs, name: value}


def option_names(kwargs_type: Any) -> set[str]:
    """Return every key of a `TypedDict` of options and of the ones inside it."""
    names: set[str] = set()
    for name, annotation in getattr(kwargs_type, "__annotations__", {}).items():
        names |= {name, *getattr(annotation, "__annotations__", {})}
    return names


def normalize_part(part: Any) -> Any:
    """Return a part of a message without its empty keys, and the types of OpenAI's two protocols as ours."""
    if not isinstance(part, dict):
        return part
    part = {key: as_number(value) for key, value in part.items() if value is not None}
    kind = part.get("type")
    if kind in TEXT_PARTS:
        return {"type": "text", "text": part.get("text")}
    for name in (*MODALITIES, VIDEO):
        given = part.get(f"{name}_url")
        options = {key: part[key] for key in VIDEO_OPTIONS if name == VIDEO and key in part}
        if kind == f"{name}_url" or (kind == f"input_{name}" and given is not None):
            return {"type": name, "url": given.get("url") if isinstance(given, dict) else given, **options}
        if kind == f"input_{name}" and (data := part.get(kind)) is not None:
            return {"type": name, "base64": data.get("data") if isinstance(data, dict) else data, **options}
    return part


def normalize_messages(messages: Any) -> list[dict[str, Any]]:
    """Return fresh messages without empty keys, their roles and parts normalized."""
    turns = [{key: as_list(value) for key, value in turn.items() if value is not None} for turn in messages]
    for turn in turns:
        if "role" in turn:
            turn["role"] = OTHER_ROLES.get(turn["role"], turn["role"])
        if isinstance(turn.get("content"), (list, tuple)):
            turn["content"] = [normalize_part(part) for part in turn["content"]]
    return turns


def normalize_conversations(conversation: Any) -> tuple[list[list[dict[str, Any]]], bool]:
    """
    Bring one conversation or a batch into a batch of normalized messages.

    Args:
        conversation: messages, or a list of conversations: messages, or objects with `messages`. The messages of an
            object whose `is_normalized` is true, such as a `ChatRow`, are taken as they are.

    Returns:
        The batch, and True if a batch was given.
    """
    if len(conversation) == 0:
        raise ValueError("The conversation is empty; pass at least one message")
    conversation = as_list(conversation)
    first = as_list(conversation[0])
    is_batched = isinstance(first, (list, tuple)) or hasattr(first, "messages")
    return [
        chat.messages
        if getattr(chat, "is_normalized", False)
        else normalize_messages(as_list(getattr(chat, "messages", chat)))
        for chat in (conversation if is_batched else [conversation])
    ], is_batched


def media_source(part: dict[str, Any]) -> Any:
    """Return the media that a part shows, a path or anything else that the processor loads; None if it holds none."""
    return next((part[key] for key in (part["type"], *SOURCE_KEYS) if part.get(key) is not None), None)


def collect_sources(chat: list[dict[str, Any]], kind: str) -> list[Any]:
    """Return the sources of the parts of one type in order, with the rate of samples that do not state it."""
    parts = [part for turn in chat for part in parts_of(turn, kind)]
    found = [(media_source(part), part.get("sampling_rate")) for part in parts]
    # A file states its own rate.
    return [(s, rate) if rate is not None and lacks_rate(s) else s for s, rate in found if s is not None]


# ---- Media in their places ------------------------------------------------------------------------------------------


def parts_of(turn: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """Return the parts of one type in a turn."""
    content = turn.get("content")
    parts = content if isinstance(content, (list, tuple)) else []
    return [part for part in parts if isinstance(part, dict) and part.get("type") == kind]


def count_placeholders(text: str, kind: str) -> int:
    return sum(name == kind for _, _, name in find_placeholders(text))


def check_media_kept(
    conversations: Sequence[Sequence[dict[str, Any]]],
    texts: Sequence[str],
    render: Callable[[Sequence[dict[str, Any]]], str],
) -> None:
    """
    Check that rendered conversations have a placeholder for each media part, so that each is in its place.

    Args:
        render: renders one conversation; called to find the turn at fault.

    Raises:
        ValueError: with the turn whose media the template, or the cut behind a message to be continued, leaves out.
    """
    for row, (chat, text) in enumerate(zip(conversations, texts, strict=True)):
        for kind, modality in MODALITIES.items():
            counts = [len(parts_of(turn, kind)) for turn in chat]
            written = count_placeholders(text, kind)
            if written >= sum(counts):  # more of them have no media, which is another error
                continue
            held = [number for number, count in enumerate(counts) if count]
            lost = [i for i in held if count_placeholders(render(without_media(chat, i, kind)), kind) == written]
            turns = ", ".join(f"turn {i} ({chat[i].get('role')}) has {counts[i]}" for i in lost or held)
            raise ValueError(
                f"Conversation {row}: the text made by the chat template has {written} {modality.token} for "
                f"{sum(counts)} {items_of(modality)}; of those it leaves out, {turns}. Let the template write "
                f"{modality.token} for each part of type {kind!r}, put the media before the text of a message that is "
                "to be continued, or leave them out."
            )


def without_media(chat: Sequence[dict[str, Any]], number: int, kind: str) -> list[dict[str, Any]]:
    """Return a conversation with empty texts for the media of one type in one turn."""
    content = [
        {"type": "text", "text": ""} if isinstance(part, dict) and part.get("type") == kind else part
        for part in chat[number]["content"]
    ]
    return [{**turn, "content": content} if i == number else turn for i, turn in enumerate(chat)]


def check_media_options(texts: Sequence[str], sources: Mapping[str, Rows], options: Mapping[str, Any]) -> None:
    """
    Check that media given beside conversations have parts that wait for them.

    Args:
        texts: the rendered conversations.

    Raises:
        ValueError: for media beside parts that hold their own, and for conversations without parts.
    """
    for kind, modality in MODALITIES.items():
        if options.get(modality.plural) is None:
            continue
        if any(sources[kind]):
            raise ValueError(
                f"`{modality.plural}` is for conversations whose {kind} parts hold nothing, but parts of these hold "
                f"their {items_of(modality)}; pass them in one of the two ways"
            )
        if not any(count_placeholders(text, kind) for text in texts):
            raise ValueError(
                f"{items_of(modality)} were passed beside conversations without a part for them; write "
                f'{{"type": "{kind}"}} into the content of the turn that they belong to'
            )


def check_placeholders_kept(
    tokenizer: Any, texts: Sequence[str], placeholders: Sequence[Sequence[Placeholder]], rows: Mapping[str, Rows]
) -> None:
    """
    Check that media without placeholders do not belong to a rendered conversation.

    They go in front of a plain text; in front of a conversation they would be in no turn.

    Raises:
        ValueError: with the row.
    """
    lacking = {
        row: kind
        for row in range(len(texts))
        if not placeholders[row] and (kind := next((name for name, items in rows.items() if items[row]), None))
    }
    if not lacking:  # the tokens of a Whisper are 1,500, and this is done for every text
        return
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    edges = {getattr(tokenizer, name, None) for name in names}
    roles = pattern_of(tuple(token for token in control_tokens(tokenizer) if token not in edges))
    for row, kind in lacking.items():
        if found := roles.search(texts[row]):
            modality: Modality = MODALITIES[kind]
            raise ValueError(
                f"Row {row} is a conversation, as it has {found[0]}, without a placeholder for its "
                f"{len(rows[kind][row])} {items_of(modality)}; write {modality.token} where each belongs, or pass the "
                "messages to `apply_chat_template`"
            )


# ---- The spans of answers -------------------------------------------------------------------------------------------


def mark_spans(offsets: Any, spans: list[tuple[int, int]]) -> list[int]:
    """
    Mark the tokens that lie in the given spans of characters.

    A token of spaces alone can have an empty offset at its end (byte-level BPE trims them). Padding and added special
    tokens have (0, 0) and lie in no span.
    """
    mask = []
    for start, end in ((int(start), int(end)) for start, end in offsets):
        is_empty = start == end
        mask.append(
            int(any((first < start <= last) if is_empty else (start < last and end > first) for first, last in spans))
        )
    return mask


def shift_spans(spans: list[tuple[int, int]], replacements: list[dict]) -> list[tuple[int, int]]:
    """Move spans of characters behind the placeholders before them, which have grown."""

    def shift(position: int) -> int:
        grown = (item["new_span"][1] - item["span"][1] for item in replacements if item["span"][1] <= position)
        return position + max(grown, default=0)

    return [(shift(start), shift(end)) for start, end in spans]


def add_assistant_masks(inputs: Any, spans: list[list[tuple[int, int]]]) -> None:
    """
    Put `assistant_masks` into a tokenized batch, in place of the offsets that they are made from.

    Args:
        inputs: with `offset_mapping` and `text_replacement_offsets`, and the (B, L) of their rows.
        spans: for each row the characters of its answers, before its placeholders grew.
    """
    offsets = inputs.pop("offset_mapping")
    replacements = inputs.pop("text_replacement_offsets")
    inputs["assistant_masks"] = [
        mark_spans(row_offsets, shift_spans(row_spans, row_replacements))
        for row_offsets, row_spans, row_replacements in zip(offsets, spans, replacements, strict=True)
    ]
