# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
`/v1/chat/completions`: one or more answers to a conversation, streamed or not.

With `modalities` beside text answers may have images and audio that the model writes as codes; see `answer_message`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from ..chat import parts_of
from ..code_tokens import TEXT
from ..modalities import MODALITIES
from .answer_message import AnswerMessage
from .answering import GenerationStream, MakeStreamer
from .audio_output import STREAMED
from .chat_request import ChatRequest, check_chat
from .events import END_EVENT, FAILED, EventStream, error_event, event, merged_pieces, whole_pieces
from .handlers import RequestQueue
from .kept_audio import KeptAudio
from .limits import BadRequest
from .logprobs import AnswerLogprobs
from .media_streamer import CHUNKS, WHOLE, MediaStreamer


class ChatHandler:
    """Handler of `/v1/chat/completions`."""

    def __init__(self, queue: RequestQueue):
        self.queue, self.kept = queue, KeptAudio()

    async def respond(self, request: Request, body: dict[str, Any]) -> Response:
        """
        Answer a request, streamed or not.

        Raises:
            BadRequest: for a fault in the request.
            HTTPException: for another model.
        """
        self.queue.manager.check_name(body.get("model"))
        chat = await asyncio.to_thread(check_chat, body, self.kept)
        self.check_media(chat)
        prepared = await self.queue.prepare(chat.messages, chat.media)
        streams = self.queue.answer(prepared, chat.sampling, self.streamer(chat))
        head = self.head(request)
        logprobs = [AnswerLogprobs(self.queue.tokenizer, stream) for stream in streams]
        messages = [AnswerMessage(stream, chat, self.queue.writer, self.kept) for stream in streams]
        if chat.stream:
            return EventStream(chat_events(head, streams, chat, logprobs, messages), streams)
        answers = await whole_pieces(streams, request.receive)
        made = [await asyncio.to_thread(each.whole, pieces) for each, pieces in zip(messages, answers, strict=True)]
        choices = [
            {
                "index": index,
                "message": message,
                "logprobs": logprobs_of(chat, logprobs[index].whole(messages[index].text)),
                "finish_reason": stream.finish_reason(),
            }
            for index, (message, stream) in enumerate(zip(made, streams, strict=True))
        ]
        return JSONResponse(
            {**head, "object": "chat.completion", "choices": choices, "usage": chat_usage(streams, messages)}
        )

    def check_media(self, chat: ChatRequest) -> None:
        """
        Check media that a conversation has as answers, or that its answers may have.

        Raises:
            BadRequest: for media that the model does not write, and for some that are not there as codes.
        """
        outputs, written = chat.sampling.outputs, self.queue.writer.written
        for name in outputs:
            if name != TEXT:
                self.queue.check_writes(name, is_alone=TEXT not in outputs)
        for index, message in enumerate(chat.messages):
            for name in written if message["role"] == "assistant" else ():
                if parts_of(message, name):
                    raise BadRequest(
                        f"`messages[{index}].content`: this model writes {MODALITIES[name].plural} as codes, which "
                        "files do not hold; send them in a user's message."
                    )

    def streamer(self, chat: ChatRequest) -> MakeStreamer | None:
        """Return what makes the streamer of an answer with media; None for one of text."""
        if chat.sampling.outputs == (TEXT,):
            return None
        is_read = chat.stream and chat.audio_format in STREAMED
        chunks = CHUNKS if is_read else WHOLE
        return partial(MediaStreamer, self.queue.writer, stop_strings=chat.sampling.stop, **chunks)

    def head(self, request: Request) -> dict[str, Any]:
        """Return the fields that an answer and all pieces of it share."""
        name = self.queue.manager.force_model
        return {"id": f"chatcmpl-{request.state.request_id}", "created": int(time.time()), "model": name}


async def chat_events(
    head: dict[str, Any],
    streams: Sequence[GenerationStream],
    chat: ChatRequest,
    logprobs: Sequence[AnswerLogprobs],
    messages: Sequence[AnswerMessage],
) -> AsyncIterator[str]:
    """Yield answers as the events of a chat completion."""

    def chunk(choices: list[dict[str, Any]], **further: Any) -> str:
        return event({**head, "object": "chat.completion.chunk", "choices": choices, **further})

    def choice(
        index: int, delta: dict[str, Any], entries: list[dict[str, Any]], reason: str | None = None
    ) -> list[dict[str, Any]]:
        known = logprobs_of(chat, entries) if entries else None
        return [{"index": index, "delta": delta, "logprobs": known, "finish_reason": reason}]

    for index in range(len(streams)):
        yield chunk(choice(index, {"role": "assistant", "content": ""}, []))
    unfinished = len(streams)
    async for index, piece in merged_pieces(streams):
        if piece is not None:
            is_text = isinstance(piece, str)
            entries = logprobs[index].take(piece) if is_text else []
            make = messages[index].deltas
            for delta in make(piece) if is_text else await asyncio.to_thread(make, piece):
                yield chunk(choice(index, delta, entries))
            continue
        if streams[index].has_failed():
            yield error_event(FAILED)
            break
        unfinished -= 1
        for delta in await asyncio.to_thread(messages[index].last_deltas):
            yield chunk(choice(index, delta, []))
        # OpenAI's clients read the usage of an event without choices if they have asked for it; others of the last.
        is_last = not unfinished and chat.include_usage is None
        usage = {"usage": chat_usage(streams, messages)} if is_last else {}
        yield chunk(choice(index, {}, logprobs[index].rest(), streams[index].finish_reason()), **usage)
    if not unfinished and chat.include_usage:
        yield chunk([], usage=chat_usage(streams, messages))
    yield END_EVENT


def logprobs_of(chat: ChatRequest, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the log-probabilities of a choice; None unless they were requested."""
    return None if chat.sampling.top_logprobs is None else {"content": entries, "refusal": None}


def chat_usage(streams: Sequence[GenerationStream], messages: Sequence[AnswerMessage]) -> dict[str, Any]:
    """Return the usage of answers, with the tokens of media that they may have."""
    counts = [message.media_tokens() for message in messages]
    details = {f"{name}_tokens": sum(each[name] for each in counts) for name in counts[0]}
    return {**usage_of(streams), **({"completion_tokens_details": details} if details else {})}


def usage_of(streams: Sequence[GenerationStream]) -> dict[str, int]:
    """Return the tokens of a prompt and of all its answers."""
    prompt, made = streams[0].prompt_tokens, sum(len(stream.streamer.tokens) for stream in streams)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
