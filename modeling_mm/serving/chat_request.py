# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Checks of a chat completion request, which becomes a conversation of our chat form.

transformers takes most requests as they are and ignores unknown parts; here everything that would be wrong or ignored
is refused, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..audio_streamer import AUDIO
from ..chat import CODES, OTHER_ROLES, TEXT_PARTS, VIDEO_OPTIONS, media_source, normalize_part
from ..code_tokens import TEXT
from ..modalities import MODALITIES, VIDEO
from .audio_output import check_voice
from .fields import CHAT_FIELDS
from .kept_audio import KeptAudio
from .limits import BadRequest
from .preparing import Media, content_parts, count_characters
from .sampling import Sampling
from .values import check_sampling, check_stream_options, check_text, check_type, shortened

ROLES = {role: role for role in ("system", "user", "assistant")} | OTHER_ROLES
# Part types of OpenAI (`image_url` and such for URLs, `input_audio` for base64), and those of the processor's chats.
MEDIA_KINDS = (*MODALITIES, VIDEO)
MEDIA_PARTS = {f"{name}_url": name for name in MEDIA_KINDS} | {f"input_{name}": name for name in MEDIA_KINDS}
MEDIA_PARTS |= {name: name for name in MEDIA_KINDS}
PARTS = ("text", *TEXT_PARTS, *MEDIA_PARTS)
OUTPUTS = (TEXT, *MODALITIES)
# Formats of audio in OpenAI's protocol, by the names of `audio_output.FORMATS`.
AUDIO_FORMATS = {"wav": "wav", "flac": "flac", "mp3": "mp3", "pcm16": "pcm"}
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
        audio_format: of audio in an answer, one of `audio_output.FORMATS`; None for an answer without audio.
    """

    messages: list[dict[str, Any]]
    media: list[Media]
    sampling: Sampling
    stream: bool = False
    include_usage: bool | None = None
    audio_format: str | None = None


def check_chat(body: Mapping[str, Any], kept: KeptAudio | None = None) -> ChatRequest:
    """
    Check a request; nothing that it names is opened.

    Args:
        kept: audio of earlier answers, which its messages may name.

    Raises:
        BadRequest: for the first fault: where it is, the expected value and the value.
    """
    CHAT_FIELDS.check(body)
    sampling, stream_options = check_sampling(body), check_stream_options(body)
    check_type(body, "stream", bool, "true or false")
    check_type(body, "model", str, "a name")
    outputs = check_modalities(body.get("modalities"))
    audio_format = check_audio(body.get("audio"), AUDIO in outputs)
    if outputs != (TEXT,) and sampling.top_logprobs is not None:
        raise BadRequest("`logprobs`: only of answers in text alone; leave it out, or set `modalities` to text.")
    sampling = replace(sampling, outputs=outputs)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest(f"`messages`: expected a list of at least one message, got {shortened(messages)}.")
    media: list[Media] = []
    checked = [check_message(i, message, media, kept) for i, message in enumerate(messages[: MOST_PARTS + 1])]
    check_size("messages", checked, media)
    include_usage = stream_options.get("include_usage")
    return ChatRequest(checked, media, sampling, bool(body.get("stream")), include_usage, audio_format)


def check_modalities(modalities: Any) -> tuple[str, ...]:
    """Return the kinds of content that an answer may have, by default text."""
    given = [TEXT] if modalities is None else modalities
    if not (isinstance(given, list) and given and all(name in OUTPUTS for name in given)):
        raise BadRequest(f"`modalities`: expected a list of {', '.join(OUTPUTS)}, got {shortened(modalities)}.")
    return tuple(dict.fromkeys(given))


def check_audio(audio: Any, is_requested: bool) -> str | None:
    """Return the format of the audio of an answer, one of `audio_output.FORMATS`; None without audio."""
    if not is_requested:
        if audio is not None:
            raise BadRequest(f"`{AUDIO}`: it needs `modalities` with {AUDIO!r}; add that, or leave it out.")
        return None
    if not isinstance(audio, dict):
        example = '{"voice": "default", "format": "wav"}'
        raise BadRequest(f"`{AUDIO}`: expected an object such as {example}, got {shortened(audio)}.")
    if unknown := set(audio) - {"voice", "format"}:
        raise BadRequest(f"`{AUDIO}`: expected `voice` and `format`, got {shortened(min(unknown))}; leave it out.")
    check_voice(f"{AUDIO}.voice", audio.get("voice"))
    given = audio.get("format")
    if not isinstance(given, str) or given not in AUDIO_FORMATS:
        raise BadRequest(f"`{AUDIO}.format`: expected {', '.join(AUDIO_FORMATS)}, got {shortened(given)}.")
    return AUDIO_FORMATS[given]


def check_size(field: str, messages: list[dict[str, Any]], media: list[Media]) -> None:
    """
    Check how much a checked conversation holds.

    Raises:
        BadRequest: for more parts, media or characters than a request may have; it names the field.
    """
    parts = content_parts(messages)
    characters = sum(map(count_characters, parts))
    for count, most, name in (
        (len(parts) + len(messages), MOST_PARTS, "messages and parts"),
        (len(media), MOST_MEDIA, "images, audio files and videos"),
        (characters, LONGEST_TEXT, "characters of text"),
    ):
        if count > most:
            raise BadRequest(f"`{field}`: expected {most} {name} at most, got {count}; send less.")


def check_message(index: int, message: Any, media: list[Media], kept: KeptAudio | None = None) -> dict[str, Any]:
    """Return one message in our chat form; `media` gets its images and audio, `kept` has those of earlier answers."""
    where = f"messages[{index}]"
    role = message.get("role") if isinstance(message, dict) else message
    if not (isinstance(message, dict) and isinstance(role, str) and role in ROLES):
        raise BadRequest(f"`{where}`: expected a role of {', '.join(ROLES)}, got {shortened(role)}.")
    if message.get("tool_calls"):
        raise BadRequest(f"`{where}.tool_calls`: tools are not served here; leave them out.")
    if message.get("images"):
        raise BadRequest(f"`{where}.images`: they are not read; send them as `image_url` parts of a user's message.")
    content, audio = message.get("content"), message.get(AUDIO)
    if audio is not None and role != "assistant":
        raise BadRequest(f"`{where}.{AUDIO}`: it is for an assistant's message; send it as an `input_audio` part.")
    if content is None and audio is not None:
        content = []
    if isinstance(content, list):
        content = [
            check_part(f"{where}.content[{i}]", part, media) for i, part in enumerate(content[: MOST_PARTS + 1])
        ]
    else:
        content = check_text(f"{where}.content", content, "a text or a list of parts")
    if audio is not None:
        spoken = kept_part(f"{where}.{AUDIO}", audio, kept)
        content = [*([{"type": TEXT, TEXT: content}] if isinstance(content, str) else content), spoken]
    return {"role": ROLES[role], "content": content}


def kept_part(where: str, audio: Any, kept: KeptAudio | None) -> dict[str, Any]:
    """Return the part of an assistant's message that has the codes of the audio of an earlier answer."""
    audio_id = audio.get("id") if isinstance(audio, dict) else audio
    codes = kept.get(audio_id) if kept is not None and isinstance(audio_id, str) else None
    if codes is None:
        raise BadRequest(
            f"`{where}.id`: this server has no audio {shortened(audio_id)}, or not any more; leave it out, and send "
            "the text as `content`."
        )
    return {"type": TEXT, TEXT: "", CODES: codes}


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
