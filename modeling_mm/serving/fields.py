# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Fields of OpenAI's requests: which are served, ignored or refused.

A field that would change the answer and is not served is refused, so that no client takes another answer for its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .limits import BadRequest
from .values import RANGES, shortened


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
        "modalities",
        "audio",
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
        "prediction": ("no prediction is used", ()),
        "reasoning_effort": (NO_REASONING, ("none",)),
        "response_format": ("answers are free text", ({"type": "text"},)),
        "verbosity": ("answers are as long as the model makes them; use `max_completion_tokens`", ("medium",)),
        "web_search_options": (NO_SEARCH, ()),
    },
)
RESPONSE_FIELDS = Fields(
    served=(
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "metadata",
        "model",
        "seed",
        "stream",
        "stream_options",
        "temperature",
        "text",
        "top_k",
        "top_logprobs",
        "top_p",
    ),
    ignored=("max_tool_calls", *(name for name in ACCOUNTING if name != "metadata")),
    refused={
        **COMMON_REFUSED,
        "access_programs": (SET_BY_SERVER, ([], {})),
        "background": ("this server keeps no answer; wait for it, or stream it", (False,)),
        "background_options": ("this server keeps no answer", ({},)),
        "context_management": (NO_STATE, ([], {})),
        "conversation": (NO_STATE, ()),
        "image": ("this route answers in text; use /v1/images/generations", ({},)),
        "previous_response_id": (NO_STATE, ()),
        "prompt": ("this server keeps no prompts; send it as `instructions`", ()),
        "reasoning": (NO_REASONING, ({}, {"effort": None}, {"effort": "none"})),
        "truncation": ("nothing is left out of a conversation", ("disabled",)),
    },
)
EMBEDDING_FIELDS = Fields(served=("input", "model", "dimensions", "encoding_format"), ignored=ACCOUNTING)
NO_SPEAKERS = "no model here tells speakers apart"
TRANSCRIPTION_FIELDS = Fields(
    served=(
        *("file", "model", "language", "prompt", "response_format", "stream", "temperature"),
        "timestamp_granularities",
    ),
    ignored=ACCOUNTING,
    refused={
        "chunking_strategy": ("the model takes the audio whole", ("",)),
        "include": ("there are no log-probabilities of transcripts", ("",)),
        "keywords": ("write them into `prompt`", ("",)),
        "known_speaker_names": (NO_SPEAKERS, ("",)),
        "known_speaker_references": (NO_SPEAKERS, ("",)),
        "languages": ("send one `language`", ("",)),
    },
)
ONE_FORMAT = "images are PNG files"
NO_PREVIEWS = "an image comes when it is complete"
NO_STYLE = "say it in the `prompt`"
IMAGE_FIELDS = Fields(
    served=(
        "prompt",
        "guidance_scale",
        "model",
        "n",
        "response_format",
        "seed",
        "size",
        "temperature",
        "top_k",
        "top_p",
    ),
    ignored=ACCOUNTING,
    refused={
        "background": ("images have no transparency", ("auto", "opaque")),
        "complexity": (NO_REASONING, ()),
        "frame_count": (ONE_FORMAT, ()),
        "frame_duration_ms": (ONE_FORMAT, ()),
        "moderation": ("this server has no moderation", ("auto",)),
        "output_compression": (ONE_FORMAT, ()),
        "output_format": (ONE_FORMAT, ("png",)),
        "partial_images": (NO_PREVIEWS, (0, "0")),
        "quality": ("the model has one", ("auto", "standard")),
        "stream": (NO_PREVIEWS, (False, "false")),
        "style": (NO_STYLE, ()),
        "svg": (ONE_FORMAT, ()),
    },
)
EDIT_FIELDS = Fields(
    served=("image", *IMAGE_FIELDS.served),
    ignored=ACCOUNTING,
    refused={
        **IMAGE_FIELDS.refused,
        "input_fidelity": (NO_STYLE, ()),
        "markup": ("say in the `prompt` what to change, and where", ()),
        "mask": ("say in the `prompt` what to change, and where", ()),
    },
)
SPEECH_FIELDS = Fields(
    served=("input", "guidance_scale", "model", "voice", "response_format", "seed", "temperature", "top_k", "top_p"),
    ignored=ACCOUNTING,
    refused={
        "instructions": ("the model has one way to speak", ("",)),
        "speed": ("the model has one speed", (1,)),
        "stream_format": ("audio comes as it is, in chunks of wav and pcm", ("audio",)),
    },
)
