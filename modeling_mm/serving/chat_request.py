# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Checks of a chat completion request, which becomes a conversation of our chat form.

transformers takes most requests as they are and ignores unknown parts; here everything that would be wrong or ignored
is refused, with the reason.
"""

import io
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import soundfile
from PIL import Image

from ..images import DAMAGED_FILE_ERRORS
from ..modalities import MODALITIES
from ..sources import SourceError, SourcePolicy, read_bytes
from .answering import BadRequest

# `developer` is OpenAI's newer name of `system`.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# Part types of OpenAI: `image_url` and such for URLs, and `input_audio` for base64.
MEDIA_PARTS = {**{f"{name}_url": name for name in MODALITIES}, "input_audio": "audio"}
PARTS = ("text", *MEDIA_PARTS)
# field: (type, lower bound, upper bound, if the lower bound itself is allowed)
Range = tuple[type, float, float, bool]
RANGES: dict[str, Range] = {
    "temperature": (Real, 0.0, 2.0, True),
    "top_p": (Real, 0.0, 1.0, False),
    "frequency_penalty": (Real, -1.0, 2.0, False),  # becomes a repetition penalty of 1 more, which must be above 0
    "max_tokens": (int, 1, float("inf"), True),
    "max_completion_tokens": (int, 1, float("inf"), True),
    "seed": (int, -(2**63), 2**63 - 1, True),
}
LEAST_TEMPERATURE = 0.01  # scores divided by less leave the range of half precision; 0 means not to sample
LONGEST_STOP, MOST_STOPS = 64, 4
LARGEST_BIAS, MOST_BIASES, LONGEST_TOKEN_ID = 100.0, 1024, 9
LONGEST_TEXT = 200_000  # characters of a request; no model of this kind has positions for as many
MOST_PARTS, MOST_MEDIA = 1024, 16
# Pixels and samples of all media of a request: a small file can unpack into far more.
UNPACKED_LIMITS = {"image": 1 << 26, "audio": 1 << 27}
# Options that are passed on, and no others: `chat_template_kwargs`, for one, could name files and templates.
SERVED = ("model", "stream", "stop", "logit_bias", *RANGES)
# Fields that clients send and that change no answer.
IGNORED = ("metadata", "parallel_tool_calls", "service_tier", "store", "stream_options", "user")
# Fields that would change the answer and are not served: field -> the values that request nothing.
NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "presence_penalty": (None, 0),
    "prediction": (None,),
    "response_format": (None, {"type": "text"}),
    "web_search_options": (None,),
}


@dataclass(frozen=True)
class Media:
    """Image or audio of a request: its place in the request, its source, and the part that gets its bytes."""

    where: str
    source: str
    part: dict[str, Any]


@dataclass(frozen=True)
class ChatRequest:
    """
    Checked request.

    Args:
        messages: the conversation in our chat form; parts with media get their `bytes` from `read_media`.
        media: its images and audio in order.
        options: the other served fields of the request.
    """

    messages: list[dict[str, Any]]
    media: list[Media]
    options: dict[str, Any]


def check_chat(body: Mapping[str, Any]) -> ChatRequest:
    """
    Check a request; nothing that it names is opened.

    Raises:
        BadRequest: for the first fault: where it is, the expected value and the value.
    """
    options = {name: body[name] for name in SERVED if name in body}
    for name, value in body.items():
        if name not in ("messages", *SERVED, *IGNORED) and value not in NOT_SERVED.get(name, (None, {})):
            raise BadRequest(f"`{name}`: {shortened(value)} is not served here; leave it out.")
    for name, bounds in RANGES.items():
        if body.get(name) is not None:
            check_number(name, body[name], bounds)
    check_type(body, "stream", bool, "true or false")
    check_type(body, "model", str, "a name")
    options["stop"] = check_stop(body.get("stop"))
    options["logit_bias"] = check_bias(body.get("logit_bias"))
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest(f"`messages`: expected a list of at least one message, got {shortened(messages)}.")
    media: list[Media] = []
    checked = [check_message(i, message, media) for i, message in enumerate(messages[: MOST_PARTS + 1])]
    contents = [message["content"] for message in checked]
    parts = [part for content in contents for part in ([content] if isinstance(content, str) else content)]
    characters = sum(len(part if isinstance(part, str) else part.get("text", "")) for part in parts)
    for count, most, name in (
        (len(parts) + len(checked), MOST_PARTS, "messages and parts"),
        (len(media), MOST_MEDIA, "images and audio files"),
        (characters, LONGEST_TEXT, "characters of text"),
    ):
        if count > most:
            raise BadRequest(f"`messages`: expected {most} {name} at most, got {count}; shorten the conversation.")
    return ChatRequest(checked, media, options)


def read_media(media: list[Media], policy: SourcePolicy, deadline: float) -> None:
    """
    Put the bytes of all media into their parts.

    Args:
        deadline: the time in `time.monotonic()` by which all URLs must be read

    Raises:
        BadRequest: for a source that is refused or unreadable, and for more than a request may hold.
    """
    bytes_left, left = policy.max_bytes, dict(UNPACKED_LIMITS)
    for each in media:
        kind = each.part["type"]
        try:
            data = read_bytes(each.source, policy, bytes_left, deadline)
        except SourceError as error:
            raise BadRequest(f"`{each.where}`: {error}.") from error
        bytes_left -= len(data)
        left[kind] -= unpacked_size(data, kind)
        if left[kind] < 0:
            raise BadRequest(f"`{each.where}`: {unpacks_too_large(kind)}")
        each.part["bytes"] = data


def unpacked_size(data: bytes, kind: str) -> int:
    """Return the pixels or samples that a file announces; 0 for a broken file, which its decoder reports better."""
    try:
        if kind == "image":
            with Image.open(io.BytesIO(data)) as image:
                return image.width * image.height
        head = soundfile.info(io.BytesIO(data))
        return head.frames * head.channels
    except (*DAMAGED_FILE_ERRORS, Image.DecompressionBombError, soundfile.LibsndfileError):
        return 0


def unpacks_too_large(kind: str) -> str:
    unit = "pixels of images" if kind == "image" else "values of audio"
    return f"expected {UNPACKED_LIMITS[kind]} {unit} at most in a request, once they are unpacked; make them smaller."


def shortened(value: Any) -> str:
    """Return a value for messages; of a long one its type."""
    text = reprlib.repr(value)  # reads only the beginning of a large value
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def check_number(name: str, value: Any, bounds: Range) -> None:
    """
    Check a value against its field's type and range.

    Raises:
        BadRequest: for a wrong type, a value out of range, and temperatures that overflow.
    """
    kind, low, high, with_low = bounds
    is_kind = isinstance(value, kind) and not isinstance(value, bool)
    if not (is_kind and (low <= value if with_low else low < value) and value <= high):  # false for NaN too
        what = "a whole number" if kind is int else "a number"
        bounds_text = f"{'of at least' if with_low else 'above'} {low:g}"
        bounds_text += "" if high == float("inf") else f" and at most {high:g}"
        raise BadRequest(f"`{name}`: expected {what} {bounds_text}, got {shortened(value)}.")
    if name == "temperature" and 0 < value < LEAST_TEMPERATURE:
        raise BadRequest(f"`{name}`: expected 0, or at least {LEAST_TEMPERATURE}, got {shortened(value)}.")


def check_type(body: Mapping[str, Any], name: str, kind: type, words: str) -> None:
    if body.get(name) is not None and not isinstance(body[name], kind):
        raise BadRequest(f"`{name}`: expected {words}, got {shortened(body[name])}.")


def check_stop(stop: Any) -> list[str]:
    texts = [stop] if isinstance(stop, str) else stop
    if stop is None:
        return []
    if not (isinstance(texts, list) and texts and all(isinstance(text, str) and text for text in texts)):
        raise BadRequest(f"`stop`: expected a text or a list of texts, none of them empty, got {shortened(stop)}.")
    if len(texts) > MOST_STOPS or max(map(len, texts)) > LONGEST_STOP:
        raise BadRequest(f"`stop`: expected {MOST_STOPS} texts of {LONGEST_STOP} characters at most, got more.")
    return texts


def check_bias(bias: Any) -> dict[int, float]:
    if bias is None:
        return {}
    is_bias = isinstance(bias, dict) and all(
        len(token) <= LONGEST_TOKEN_ID
        and token.isdecimal()
        and isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= LARGEST_BIAS  # false for NaN too
        for token, value in bias.items()
    )
    if not is_bias:
        raise BadRequest(
            f"`logit_bias`: expected token ids with a number from -100 to 100 each, got {shortened(bias)}."
        )
    if len(bias) > MOST_BIASES:
        raise BadRequest(f"`logit_bias`: expected {MOST_BIASES} token ids at most, got {len(bias)}.")
    return {int(token): float(value) for token, value in bias.items()}


def check_text(where: str, text: Any, expected: str) -> str:
    if not isinstance(text, str):
        raise BadRequest(f"`{where}`: expected {expected}, got {shortened(text)}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"`{where}`: holds half of a surrogate pair, which is not a character.") from error
    return text


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
    if kind == "text":
        return {"type": "text", "text": check_text(f"{where}.text", part.get("text"), "a text")}
    given = part.get(kind)
    key = "data" if kind == "input_audio" else "url"
    source = given.get(key) if isinstance(given, dict) else given
    if not isinstance(source, str) or not source:
        raise BadRequest(f"`{where}.{kind}.{key}`: expected a text, got {shortened(source)}.")
    # The format of `input_audio` is ignored: the file states it too, and a wrong format would be believed.
    checked = {"type": MEDIA_PARTS[kind]}
    media.append(Media(f"{where}.{kind}", source, checked))
    return checked
