# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Checks of a chat completion request, which becomes a conversation of our chat form.

transformers takes most requests as they are and ignores unknown parts; here everything that would be wrong or ignored
is refused, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..chat import OTHER_ROLES, TEXT_PARTS, VIDEO_OPTIONS, media_source, normalize_part
from ..modalities import MODALITIES, VIDEO
from .fields import CHAT_FIELDS
from .limits import BadRequest
from .preparing import Media
from .sampling import Sampling
from .values import check_sampling, check_stream_options, check_text, check_type, shortened

ROLES = {role: role for role in ("system", "user", "assistant")} | OTHER_ROLES
# Part types of OpenAI (`image_url` and such for URLs, `input_audio` for base64), and those of the processor's chats.
MEDIA_KINDS = (*MODALITIES, VIDEO)
MEDIA_PARTS = {f"{name}_url": name for name in MEDIA_KINDS} | {f"input_{name}": name for name in MEDIA_KINDS}
MEDIA_PARTS |= {name: name for name in MEDIA_KINDS}
PARTS = ("text", *TEXT_PARTS, *MEDIA_PARTS)
LONGEST_TEXT = 200_000  # characters of a request; no model of this kind has positions for as many
MOST_PARTS, MOST_MEDIA = 1024, 16


@dataclass(frozen=True)
class ChatRequest:
    """
    Checked request.

    Args:
        messages: the conversation in our chat form; parts with media get their content from `prepare`.
        media: its images, audio and videos in order.
        sampling: the options of its answers.
        stream: whether the answer comes in pieces.
        include_usage: whether a stream ends with an event of its usage; None leaves it to the last piece.
    """

    messages: list[dict[str, Any]]
    media: list[Media]
    sampling: Sampling
    stream: bool = False
    include_usage: bool | None = None


def check_chat(body: Mapping[str, Any]) -> ChatRequest:
    """
    Check a request; nothing that it names is opened.

    Raises:
        BadRequest: for the first fault: where it is, the expected value and the value.
    """
    CHAT_FIELDS.check(body)
    sampling, stream_options = check_sampling(body), check_stream_options(body)
    check_type(body, "stream", bool, "true or false")
    check_type(body, "model", str, "a name")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest(f"`messages`: expected a list of at least one message, got {shortened(messages)}.")
    media: list[Media] = []
    checked = [check_message(i, message, media) for i, message in enumerate(messages[: MOST_PARTS + 1])]
    check_size("messages", checked, media)
    return ChatRequest(checked, media, sampling, bool(body.get("stream")), stream_options.get("include_usage"))


def check_size(field: str, messages: list[dict[str, Any]], media: list[Media]) -> None:
    """
    Check how much a checked conversation holds.

    Raises:
        BadRequest: for more parts, media or characters than a request may have; it names the field.
    """
    contents = [message["content"] for message in messages]
    parts = [part for content in contents for part in ([content] if isinstance(content, str) else content)]
    characters = sum(len(part if isinstance(part, str) else part.get("text", "")) for part in parts)
    for count, most, name in (
        (len(parts) + len(messages), MOST_PARTS, "messages and parts"),
        (len(media), MOST_MEDIA, "images, audio files and videos"),
        (characters, LONGEST_TEXT, "characters of text"),
    ):
        if count > most:
            raise BadRequest(f"`{field}`: expected {most} {name} at most, got {count}; send less.")


def check_message(index: int, message: Any, media: list[Media]) -> dict[str, Any]:
    """Return one message in our chat form; `media` gets its images and audio."""
    where = f"messages[{index}]"
    role = message.get("role") if isinstance(message, dict) else message
    if not (isinstance(message, dict) and isinstance(role, str) and role in ROLES):
        raise BadRequest(f"`{where}`: expected a role of {', '.join(ROLES)}, got {shortened(role)}.")
    if message.get("tool_calls"):
        raise BadRequest(f"`{where}.tool_calls`: tools are not served here; leave them out.")
    content = message.get("content")
    if isinstance(content, list):
        content = [
            check_part(f"{where}.content[{i}]", part, media) for i, part in enumerate(content[: MOST_PARTS + 1])
        ]
    else:
        content = check_text(f"{where}.content", content, "a text or a list of parts")
    return {"role": ROLES[role], "content": content}


def check_part(where: str, part: Any, media: list[Media]) -> dict[str, Any]:
    """Return one part of a message in our chat form; `media` gets its image or audio."""
    kind = part.get("type") if isinstance(part, dict) else part
    if not (isinstance(part, dict) and isinstance(kind, str) and kind in PARTS):
        raise BadRequest(f"`{where}`: expected a part of type {', '.join(PARTS)}, got {shortened(kind)}.")
    if kind in ("text", *TEXT_PARTS):
        return {"type": "text", "text": check_text(f"{where}.text", part.get("text"), "a text")}
    normalized = normalize_part(part)
    source = media_source(normalized) if normalized["type"] in MEDIA_KINDS else None
    key = "data" if kind == "input_audio" else "url"
    checked = media_part(f"{where}.{kind}", key, MEDIA_PARTS[kind], source, media)
    if MEDIA_PARTS[kind] == VIDEO:  # values are checked where the frames are chosen
        checked |= {name: normalized[name] for name in VIDEO_OPTIONS if name in normalized}
    return checked


def media_part(where: str, key: str, kind: str, source: Any, media: list[Media]) -> dict[str, Any]:
    """Return an image or audio in our chat form; `media` gets its source, which is the value of `key`."""
    if not isinstance(source, str) or not source:
        raise BadRequest(f"`{where}.{key}`: expected a text, got {shortened(source)}.")
    # The format of `input_audio` is ignored: the file states it too, and a wrong format would be believed.
    part = {"type": kind}
    media.append(Media(where, check_text(f"{where}.{key}", source, "a text"), part))
    return part
