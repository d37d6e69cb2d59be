# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
A request for a chat completion, checked before anything is done with it. transformers takes most requests as they are
and leaves out what it does not know; here what would be wrong or left out is refused, with the reason.
"""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from .sources import (
    MAX_MEDIA_BYTES,
    MAX_PIXELS,
    MAX_SAMPLES,
    BadRequest,
    Policy,
    RefusedSource,
    read_source,
    unpacked_size,
)

# OpenAI's newer name of a system message is taken too.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
KINDS = {"image_url": "image", "audio_url": "audio", "input_audio": "audio"}
PARTS = ("text", *KINDS)
# field: (type, above or at least, up to, whether the lower bound itself is in)
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
# What is handed on; all else stays here. `chat_template_kwargs`, for one, could name files and templates.
SERVED = ("messages", "model", "stream", "stop", "logit_bias", *RANGES)
# What clients send along and no answer hangs on.
IGNORED = ("metadata", "parallel_tool_calls", "service_tier", "store", "stream_options", "user")
# What would change the answer and is not served: field -> the values that ask for nothing.
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
    """A picture or a sound that a message names: where it does, which of both it is, and what it is read from."""

    where: str
    kind: str
    source: str


def check_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """
    A chat request with nothing in it but what is served; `Media` stand for its pictures and sounds, which are unread.

    Raises:
        BadRequest: for what is wrong in it: where, what was expected, what came.
    """
    checked = {name: body[name] for name in SERVED if name in body}
    for name, value in body.items():
        if name not in (*SERVED, *IGNORED) and value not in NOT_SERVED.get(name, (None, {})):
            raise BadRequest(f"`{name}`: {kind_of(value)} is not served here; leave it out.")
    for name, bounds in RANGES.items():
        if body.get(name) is not None:
            check_number(name, body[name], bounds)
    check_kind(body, "stream", bool, "true or false")
    check_kind(body, "model", str, "a name")
    checked["stop"] = check_stop(body.get("stop"))
    checked["logit_bias"] = check_bias(body.get("logit_bias"))
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest(f"`messages`: expected a list of at least one message, got {kind_of(messages)}.")
    checked["messages"] = [check_message(i, message) for i, message in enumerate(messages[: MOST_PARTS + 1])]
    check_amounts(checked["messages"])
    return checked


def check_amounts(messages: list[dict[str, Any]]) -> None:
    """That all messages together are no more than what can be read in moments."""
    parts = list(parts_of(messages))
    media = sum(isinstance(part, Media) for part in parts)
    characters = sum(len(part) for part in parts if isinstance(part, str))
    for count, most, name in (
        (len(parts) + len(messages), MOST_PARTS, "messages and parts"),
        (media, MOST_MEDIA, "pictures and sounds"),
        (characters, LONGEST_TEXT, "characters of text"),
    ):
        if count > most:
            raise BadRequest(f"`messages`: expected {most} {name} at most, got {count}; shorten the conversation.")


def parts_of(messages: list[dict[str, Any]]) -> Iterator[str | Media]:
    """Every text, picture and sound in order."""
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            yield content
        else:
            yield from (part if isinstance(part, Media) else part["text"] for part in content)


def read_media(messages: list[dict[str, Any]], policy: Policy, deadline: float) -> list[dict[str, Any]]:
    """
    The messages with the bytes of their pictures and sounds, as the processor takes them.

    Args:
        deadline: by when all that URLs name must be there, in `time.monotonic()`

    Raises:
        BadRequest: for what may not be opened or cannot be read, and for more than a request may hold.
    """
    left = {"bytes": MAX_MEDIA_BYTES, "image": MAX_PIXELS, "audio": MAX_SAMPLES}

    def read(part: Any) -> Any:
        if not isinstance(part, Media):
            return part
        try:
            data = read_source(part.source, policy, left["bytes"], deadline)
        except RefusedSource as error:
            raise BadRequest(f"`{part.where}`: {error}.") from error
        left["bytes"] -= len(data)
        left[part.kind] -= unpacked_size(data, part.kind)
        if left[part.kind] < 0:
            raise BadRequest(f"`{part.where}`: {unpacks_too_large(part.kind)}")
        return {"type": part.kind, "bytes": data}

    return [
        message if isinstance(message["content"], str) else {**message, "content": list(map(read, message["content"]))}
        for message in messages
    ]


def unpacks_too_large(kind: str) -> str:
    most, unit = (MAX_PIXELS, "pixels of pictures") if kind == "image" else (MAX_SAMPLES, "values of sounds")
    return f"expected {most} {unit} at most in a request, once they are unpacked; make them smaller."


def kind_of(value: Any) -> str:
    """What came, for messages: a value that is short, or its type."""
    text = reprlib.repr(value)  # of a large one its beginning alone is looked at
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def check_number(name: str, value: Any, bounds: Range) -> None:
    """
    Raises:
        BadRequest: where a value is none of its field's.
    """
    kind, low, high, with_low = bounds
    is_kind = isinstance(value, kind) and not isinstance(value, bool)
    if not (is_kind and (low <= value if with_low else low < value) and value <= high):  # false for NaN too
        what = "a whole number" if kind is int else "a number"
        bounds_text = f"{'of at least' if with_low else 'above'} {low:g}"
        bounds_text += "" if high == float("inf") else f" and at most {high:g}"
        raise BadRequest(f"`{name}`: expected {what} {bounds_text}, got {kind_of(value)}.")
    if name == "temperature" and 0 < value < LEAST_TEMPERATURE:
        raise BadRequest(f"`{name}`: expected 0, or at least {LEAST_TEMPERATURE}, got {kind_of(value)}.")


def check_kind(body: Mapping[str, Any], name: str, kind: type, words: str) -> None:
    if body.get(name) is not None and not isinstance(body[name], kind):
        raise BadRequest(f"`{name}`: expected {words}, got {kind_of(body[name])}.")


def check_stop(stop: Any) -> list[str]:
    texts = [stop] if isinstance(stop, str) else stop
    if stop is None:
        return []
    if not (isinstance(texts, list) and texts and all(isinstance(text, str) and text for text in texts)):
        raise BadRequest(f"`stop`: expected a text or a list of texts, none of them empty, got {kind_of(stop)}.")
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
        raise BadRequest(f"`logit_bias`: expected token ids with a number from -100 to 100 each, got {kind_of(bias)}.")
    if len(bias) > MOST_BIASES:
        raise BadRequest(f"`logit_bias`: expected {MOST_BIASES} token ids at most, got {len(bias)}.")
    return {int(token): float(value) for token, value in bias.items()}


def check_text(where: str, text: Any, expected: str) -> str:
    if not isinstance(text, str):
        raise BadRequest(f"`{where}`: expected {expected}, got {kind_of(text)}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"`{where}`: holds half of a surrogate pair, which is no character.") from error
    return text


def check_message(index: int, message: Any) -> dict[str, Any]:
    """One message, its role one of the template's, its parts of known kinds."""
    where = f"messages[{index}]"
    role = message.get("role") if isinstance(message, dict) else message
    if not (isinstance(message, dict) and isinstance(role, str) and role in ROLES):
        raise BadRequest(f"`{where}`: expected a role of {', '.join(ROLES)}, got {kind_of(role)}.")
    if message.get("tool_calls"):
        raise BadRequest(f"`{where}.tool_calls`: tools are not served here; leave them out.")
    content = message.get("content")
    if isinstance(content, list):
        content = [check_part(f"{where}.content[{i}]", part) for i, part in enumerate(content[: MOST_PARTS + 1])]
    else:
        content = check_text(f"{where}.content", content, "a text or a list of parts")
    return {"role": ROLES[role], "content": content}


def check_part(where: str, part: Any) -> dict[str, Any] | Media:
    """One part of a message: a text, or `Media` for what is to be read."""
    kind = part.get("type") if isinstance(part, dict) else part
    if not (isinstance(part, dict) and isinstance(kind, str) and kind in PARTS):
        raise BadRequest(f"`{where}`: expected a part of type {', '.join(PARTS)}, got {kind_of(kind)}.")
    if kind == "text":
        return {"type": "text", "text": check_text(f"{where}.text", part.get("text"), "a text")}
    given = part.get(kind)
    key = "data" if kind == "input_audio" else "url"
    source = given.get(key) if isinstance(given, dict) else given
    if not isinstance(source, str) or not source:
        raise BadRequest(f"`{where}.{kind}.{key}`: expected a text, got {kind_of(source)}.")
    # A sound's format is left out: the file says it, and a wrong one would be believed.
    return Media(f"{where}.{kind}", KINDS[kind], source)
