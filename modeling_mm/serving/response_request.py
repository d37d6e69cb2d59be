# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Checks of a request of `/v1/responses`, which becomes a conversation of our chat form."""

from typing import Any

from ..chat import TEXT_PARTS
from .chat_request import MOST_PARTS, ROLES, ChatRequest, check_size, media_part
from .fields import RESPONSE_FIELDS
from .limits import BadRequest
from .preparing import Media
from .values import check_sampling, check_stream_options, check_text, check_type, shortened

LOGPROBS = "message.output_text.logprobs"
# Further parts of answers that OpenAI's clients ask for; the answers of this server have none of them.
INCLUDED = (
    LOGPROBS,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
)
PARTS = (*TEXT_PARTS, "input_image", "input_audio")


def check_response(body: dict[str, Any]) -> ChatRequest:
    """
    Check a request; nothing that it names is opened.

    Raises:
        BadRequest: for the first fault: where it is, the expected value and the value.
    """
    RESPONSE_FIELDS.check(body)
    include = body.get("include") or []
    if not isinstance(include, list) or any(name not in INCLUDED for name in include):
        raise BadRequest(f"`include`: expected a list of {', '.join(INCLUDED)}, got {shortened(include)}.")
    sampling = check_sampling({**body, "logprobs": LOGPROBS in include or bool(body.get("top_logprobs"))})
    check_stream_options(body)
    check_form(body.get("text"))
    check_type(body, "stream", bool, "true or false")
    media: list[Media] = []
    messages = check_input(body.get("input"), media)
    if body.get("instructions") is not None:
        text = check_text("instructions", body["instructions"], "a text")
        messages.insert(0, {"role": "system", "content": text})
    check_size("input", messages, media)
    return ChatRequest(messages, media, sampling, bool(body.get("stream")))


def check_form(form: Any) -> None:
    """Check the form of the answer, `text`: it is free text of any length."""
    is_free = isinstance(form, dict) and form.get("format") in (None, {"type": "text"})
    is_free = is_free and form.get("verbosity") in (None, "medium") and set(form) <= {"format", "verbosity"}
    if form is not None and not is_free:
        raise BadRequest(f"`text`: answers are free text, got {shortened(form)}; leave it out.")


def check_input(given: Any, media: list[Media]) -> list[dict[str, Any]]:
    """Return the input of a request as messages in our chat form; `media` gets its images and audio."""
    if isinstance(given, str):
        return [{"role": "user", "content": check_text("input", given, "a text")}]
    if not isinstance(given, list) or not given:
        raise BadRequest(f"`input`: expected a text or a list of messages, got {shortened(given)}.")
    return [check_item(f"input[{i}]", item, media) for i, item in enumerate(given[: MOST_PARTS + 1])]


def check_item(where: str, item: Any, media: list[Media]) -> dict[str, Any]:
    """Return one item of the input as a message in our chat form."""
    if not isinstance(item, dict) or item.get("type", "message") != "message":
        kind = item.get("type") if isinstance(item, dict) else item
        raise BadRequest(f"`{where}`: expected an item of type message, got {shortened(kind)}; leave others out.")
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise BadRequest(f"`{where}.role`: expected {', '.join(ROLES)}, got {shortened(role)}.")
    if isinstance(content, list):
        parts = enumerate(content[: MOST_PARTS + 1])
        return {
            "role": ROLES[role],
            "content": [check_part(f"{where}.content[{i}]", part, media) for i, part in parts],
        }
    return {"role": ROLES[role], "content": check_text(f"{where}.content", content, "a text or a list of parts")}


def check_part(where: str, part: Any, media: list[Media]) -> dict[str, Any]:
    """Return one part of a message in our chat form; `media` gets its image or audio."""
    kind = part.get("type") if isinstance(part, dict) else part
    if not isinstance(part, dict) or not isinstance(kind, str) or kind not in PARTS:
        raise BadRequest(f"`{where}`: expected a part of type {', '.join(PARTS)}, got {shortened(kind)}.")
    if kind in TEXT_PARTS:
        return {"type": "text", "text": check_text(f"{where}.text", part.get("text"), "a text")}
    if kind == "input_image":
        if part.get("file_id") is not None:
            raise BadRequest(f"`{where}.file_id`: this server keeps no files; send the image as `image_url`.")
        return media_part(where, "image_url", "image", part.get("image_url"), media)
    audio = part.get("input_audio")
    data = audio.get("data") if isinstance(audio, dict) else audio
    return media_part(f"{where}.input_audio", "data", "audio", data, media)
