# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Values of fields of OpenAI's requests: their types and ranges."""

import reprlib
from collections.abc import Mapping
from numbers import Real
from typing import Any

from .limits import BadRequest
from .sampling import Sampling

# field: (type, lower bound, upper bound, if the lower bound itself is allowed)
Range = tuple[type, float, float, bool]
RANGES: dict[str, Range] = {
    "temperature": (Real, 0.0, 2.0, True),
    "top_p": (Real, 0.0, 1.0, False),
    "top_k": (int, 1, 1e9, True),
    "frequency_penalty": (Real, -2.0, 2.0, True),
    "presence_penalty": (Real, -2.0, 2.0, True),
    "max_tokens": (int, 1, 1e9, True),
    "max_completion_tokens": (int, 1, 1e9, True),
    "max_output_tokens": (int, 1, 1e9, True),
    "seed": (int, -(2**63), 2**63 - 1, True),
    "n": (int, 1, 16, True),
    "top_logprobs": (int, 0, 20, True),
    "guidance_scale": (Real, 0.0, 100.0, True),
}
LONGEST_STOP, MOST_STOPS = 64, 4
LONGEST_METADATA, MOST_METADATA = 512, 16
STREAM_OPTIONS = ("include_usage", "include_obfuscation")  # the second pads events, which hides their length
LARGEST_BIAS, MOST_BIASES, LONGEST_TOKEN_ID = 100.0, 1024, 9


def shortened(value: Any) -> str:
    """Return a value for messages; of a long one its type."""
    try:
        text = reprlib.repr(value)  # reads only the beginning of a large value
    except ValueError:  # an integer of thousands of digits
        text = ""
    return text if 0 < len(text) <= 60 else f"a {type(value).__name__}"


def check_number(name: str, value: Any, bounds: Range) -> None:
    """
    Check a value against its field's type and range.

    Raises:
        BadRequest: for a wrong type, and a value out of range.
    """
    kind, low, high, with_low = bounds
    is_kind = isinstance(value, kind) and not isinstance(value, bool)
    if not (is_kind and (low <= value if with_low else low < value) and value <= high):  # false for NaN too
        what = "a whole number" if kind is int else "a number"
        bounds_text = f"{'of at least' if with_low else 'above'} {low:g} and at most {high:g}"
        raise BadRequest(f"`{name}`: expected {what} {bounds_text}, got {shortened(value)}.")


def check_type(request: Mapping[str, Any], name: str, kind: type, words: str) -> None:
    if request.get(name) is not None and not isinstance(request[name], kind):
        raise BadRequest(f"`{name}`: expected {words}, got {shortened(request[name])}.")


def check_text(where: str, text: Any, expected: str) -> str:
    if not isinstance(text, str):
        raise BadRequest(f"`{where}`: expected {expected}, got {shortened(text)}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"`{where}`: holds half of a surrogate pair, which is not a character.") from error
    return text


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
        and token.isascii()
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


def check_metadata(metadata: Any) -> dict[str, str]:
    """Return the metadata of a request, which its answer repeats."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or len(metadata) > MOST_METADATA:
        raise BadRequest(f"`metadata`: expected at most {MOST_METADATA} named texts, got {shortened(metadata)}.")
    for name, value in metadata.items():
        check_text("metadata", name, "names of texts")
        if len(check_text(f"metadata.{name}", value, "a text")) > LONGEST_METADATA:
            raise BadRequest(f"`metadata.{name}`: expected {LONGEST_METADATA} characters at most, got {len(value)}.")
    return metadata


def check_stream_options(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a stream: whether it ends with its usage."""
    check_type(request, "stream_options", dict, "an object, such as {'include_usage': true}")
    options = request.get("stream_options") or {}
    for name in options:
        if name not in STREAM_OPTIONS:
            raise BadRequest(f"`stream_options`: expected `include_usage`, got {shortened(name)}.")
        if not isinstance(options[name], bool | None):
            raise BadRequest(f"`stream_options.{name}`: expected true or false, got {shortened(options[name])}.")
    return options


def check_sampling(request: Mapping[str, Any]) -> Sampling:
    """
    Return the options of a request's answers.

    Raises:
        BadRequest: for a value of a wrong type or out of range.
    """
    for name, bounds in RANGES.items():
        if request.get(name) is not None:
            check_number(name, request[name], bounds)
    check_type(request, "logprobs", bool, "true or false")
    if request.get("top_logprobs") and not request.get("logprobs"):
        raise BadRequest("`top_logprobs`: is reported beside `logprobs` only; send `logprobs` as true, too.")
    bias, stop = check_bias(request.get("logit_bias")), check_stop(request.get("stop"))
    return Sampling.of({**request, "logit_bias": bias, "stop": stop})
