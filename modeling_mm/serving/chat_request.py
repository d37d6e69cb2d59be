# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
A request for a chat completion, checked before anything is done with it. transformers takes most requests as they are
and leaves out what it does not know; here what would be wrong or left out is refused, with the reason.
"""

from collections.abc import Mapping
from numbers import Real
from typing import Any

from .sources import Policy, RefusedSource, inline

# OpenAI's newer name of a system message is taken too.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
PARTS = ("text", "image_url", "input_audio", "audio_url")
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
# What is handed on; all else stays here. `chat_template_kwargs`, for one, could name files and templates.
SERVED = ("messages", "model", "stream", "stop", "logit_bias", *RANGES)
# What clients send along and no answer hangs on.
IGNORED = ("metadata", "parallel_tool_calls", "service_tier", "store", "stream_options", "user")
LONGEST_STOP, MOST_STOPS, LARGEST_BIAS = 64, 4, 100.0
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


def check_chat(body: Mapping[str, Any], policy: Policy) -> dict[str, Any]:
    """
    A chat request as `transformers serve` takes it, with every picture and sound inside it.

    Raises:
        ValueError: for what is wrong in it: where, what was expected, what came.
    """
    checked = {name: body[name] for name in SERVED if name in body}
    for name, value in body.items():
        if name not in (*SERVED, *IGNORED) and value not in NOT_SERVED.get(name, (None, {})):
            raise ValueError(f"`{name}`: {kind_of(value)} is not served here; leave it out.")
    for name, bounds in RANGES.items():
        if body.get(name) is not None:
            check_number(name, body[name], bounds)
    check_kind(body, "stream", bool, "true or false")
    check_kind(body, "model", str, "a name")
    check_stop(body.get("stop"))
    if body.get("logit_bias") is not None:
        checked["logit_bias"] = check_bias(body["logit_bias"]) or None
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"`messages`: expected a list of at least one message, got {kind_of(messages)}.")
    checked["messages"] = [check_message(i, message, policy) for i, message in enumerate(messages)]
    return checked


def kind_of(value: Any) -> str:
    """What came, for messages: a value that is short, or its type."""
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def check_number(name: str, value: Any, bounds: Range) -> None:
    kind, low, high, with_low = bounds
    is_kind = isinstance(value, kind) and not isinstance(value, bool)
    if not (is_kind and (low <= value if with_low else low < value) and value <= high):  # false for NaN too
        what = "a whole number" if kind is int else "a number"
        bounds_text = f"{'of at least' if with_low else 'above'} {low:g}"
        bounds_text += "" if high == float("inf") else f" and at most {high:g}"
        raise ValueError(f"`{name}`: expected {what} {bounds_text}, got {kind_of(value)}.")


def check_kind(body: Mapping[str, Any], name: str, kind: type, words: str) -> None:
    if body.get(name) is not None and not isinstance(body[name], kind):
        raise ValueError(f"`{name}`: expected {words}, got {kind_of(body[name])}.")


def check_stop(stop: Any) -> None:
    texts = [stop] if isinstance(stop, str) else stop
    if stop is not None and not (isinstance(texts, list) and texts and all(isinstance(t, str) and t for t in texts)):
        raise ValueError(f"`stop`: expected a text or a list of texts, none of them empty, got {kind_of(stop)}.")
    if stop is not None and (len(texts) > MOST_STOPS or max(map(len, texts)) > LONGEST_STOP):
        raise ValueError(f"`stop`: expected {MOST_STOPS} texts of {LONGEST_STOP} characters at most, got more.")


def check_bias(bias: Any) -> dict[str, float]:
    is_bias = isinstance(bias, dict) and all(
        str(token).isdecimal()
        and isinstance(value, Real)
        and not isinstance(value, bool)
        and abs(value) <= LARGEST_BIAS  # false for NaN too
        for token, value in bias.items()
    )
    if not is_bias:
        raise ValueError(f"`logit_bias`: expected token ids with a number from -100 to 100 each, got {kind_of(bias)}.")
    return {token: float(value) for token, value in bias.items()}


def check_message(index: int, message: Any, policy: Policy) -> dict[str, Any]:
    """One message, its role one of the template's, its parts of known kinds."""
    where = f"messages[{index}]"
    if not isinstance(message, dict) or message.get("role") not in tuple(ROLES):
        role = message.get("role") if isinstance(message, dict) else message
        raise ValueError(f"`{where}`: expected a role of {', '.join(ROLES)}, got {kind_of(role)}.")
    if message.get("tool_calls"):
        raise ValueError(f"`{where}.tool_calls`: tools are not served here; leave them out.")
    content = message.get("content")
    if isinstance(content, list):
        content = [check_part(f"{where}.content[{i}]", part, policy) for i, part in enumerate(content)]
    elif not isinstance(content, str):
        raise ValueError(f"`{where}.content`: expected a text or a list of parts, got {kind_of(content)}.")
    return {"role": ROLES[message["role"]], "content": content}


def check_part(where: str, part: Any, policy: Policy) -> dict[str, Any]:
    """One part of a message; pictures and sounds as `data:` URLs."""
    kind = part.get("type") if isinstance(part, dict) else part
    if kind not in PARTS:
        raise ValueError(f"`{where}`: expected a part of type {', '.join(PARTS)}, got {kind_of(kind)}.")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise ValueError(f"`{where}.text`: expected a text, got {kind_of(part.get('text'))}.")
        return {"type": "text", "text": part["text"]}
    given = part.get(kind)
    key = "data" if kind == "input_audio" else "url"
    source = given.get(key) if isinstance(given, dict) else given
    if not isinstance(source, str) or not source:
        raise ValueError(f"`{where}.{kind}.{key}`: expected a text, got {kind_of(source)}.")
    try:
        url = inline(source, policy)
    except RefusedSource as error:
        raise ValueError(f"`{where}.{kind}`: {error}.") from error
    # A sound's format is left out: the file says it, and a wrong one would be believed.
    return {"type": kind, kind: {"url": url}} if key == "url" else {"type": kind, kind: {"data": url}}
