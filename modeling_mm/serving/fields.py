# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Fields of OpenAI's requests: which are served, ignored or refused, and the values that they take.

A field that would change the answer and is not served is refused, so that no client takes another answer for its own.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from .answering import BadRequest
from .sampling import Sampling

# field: (type, lower bound, upper bound, if the lower bound itself is allowed)
Range = tuple[type, float, float, bool]
RANGES: dict[str, Range] = {
    "temperature": (Real, 0.0, 2.0, True),
    "top_p": (Real, 0.0, 1.0, False),
    "top_k": (int, 1, float("inf"), True),
    "frequency_penalty": (Real, -2.0, 2.0, True),
    "presence_penalty": (Real, -2.0, 2.0, True),
    "max_tokens": (int, 1, float("inf"), True),
    "max_completion_tokens": (int, 1, float("inf"), True),
    "max_output_tokens": (int, 1, float("inf"), True),
    "seed": (int, -(2**63), 2**63 - 1, True),
    "n": (int, 1, 16, True),
    "top_logprobs": (int, 0, 20, True),
}
LONGEST_STOP, MOST_STOPS = 64, 4
LARGEST_BIAS, MOST_BIASES, LONGEST_TOKEN_ID = 100.0, 1024, 9


class UnknownField(BadRequest):
    """Field that neither OpenAI nor this server knows, which the client reads with status 422."""


@dataclass(frozen=True)
class Fields:
    """
    Fields of one route.

    Args:
        served: those that are passed on
        ignored: those that clients send and that change no answer
        refused: those that would change the answer: the reason, and the values beside None that ask for nothing
    """

    served: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    refused: Mapping[str, tuple[str, tuple[Any, ...]]] = field(default_factory=dict)

    def check(self, request: Mapping[str, Any]) -> None:
        """
        Check the names of a request's fields.

        Raises:
            BadRequest: for a field that is not served.
            UnknownField: for any other field.
        """
        for name, value in request.items():
            if name in self.refused:
                reason, harmless = self.refused[name]
                if value is not None and value not in harmless:
                    raise BadRequest(f"`{name}`: {shortened(value)} is not served here: {reason}; leave it out.")
            elif name not in self.served and name not in self.ignored:
                raise UnknownField(
                    f"`{name}`: this route has no such field; leave it out, or correct it to one of "
                    f"{', '.join(self.served)}."
                )


# ---- Tables ---------------------------------------------------------------------------------------------------------


# Who asks, and how OpenAI bills, caches and stores.
ACCOUNTING = (
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
NO_TOOLS, NO_SEARCH = "this model calls no tools", "this server searches nothing"
NO_STATE, NO_REASONING = "this server keeps no conversation; send all messages", "this model does not reason apart"
SET_BY_SERVER = "the server sets it"
# Of the chat and responses routes.
COMMON_REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "tools": (NO_TOOLS, ([],)),
    "tool_choice": (NO_TOOLS, ("none", "auto")),
    "moderation": ("this server has no moderation", ()),
    "chat_template_kwargs": (SET_BY_SERVER, ({},)),
    "generation_config": (SET_BY_SERVER, ()),
}
CHAT_FIELDS = Fields(
    served=(
        "messages",
        "model",
        "stream",
        "stream_options",
        "stop",
        "logit_bias",
        "logprobs",
        *(name for name in RANGES if name != "max_output_tokens"),
    ),
    ignored=ACCOUNTING,
    refused={
        **COMMON_REFUSED,
        "functions": (NO_TOOLS, ([],)),
        "function_call": (NO_TOOLS, ("none", "auto")),
        "audio": ("this model answers in text", ()),
        "modalities": ("this model answers in text", (["text"],)),
        "prediction": ("no prediction is used", ()),
        "reasoning_effort": (NO_REASONING, ("none",)),
        "response_format": ("answers are free text", ({"type": "text"},)),
        "verbosity": ("answers are as long as the model makes them; use `max_completion_tokens`", ("medium",)),
        "web_search_options": (NO_SEARCH, ()),
    },
)
NO_TIMES = "this model gives no timestamps and no speakers"
TRANSCRIPTION_FIELDS = Fields(
    served=("file", "model", "language", "prompt", "response_format", "stream", "temperature"),
    ignored=ACCOUNTING,
    refused={
        "chunking_strategy": ("the model takes the audio whole", ("",)),
        "include": ("there are no log-probabilities of transcripts", ("",)),
        "keywords": ("write them into `prompt`", ("",)),
        "known_speaker_names": (NO_TIMES, ("",)),
        "known_speaker_references": (NO_TIMES, ("",)),
        "languages": ("send one `language`", ("",)),
        "timestamp_granularities": (NO_TIMES, ("",)),
    },
)


# ---- Values ---------------------------------------------------------------------------------------------------------


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
        bounds_text = f"{'of at least' if with_low else 'above'} {low:g}"
        bounds_text += "" if high == float("inf") else f" and at most {high:g}"
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


def check_stream_options(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a stream: whether it ends with its usage."""
    check_type(request, "stream_options", dict, "an object, such as {'include_usage': true}")
    options = request.get("stream_options") or {}
    for name in options:
        if name not in ("include_usage", "include_obfuscation"):  # the second pads events, against eavesdroppers
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
