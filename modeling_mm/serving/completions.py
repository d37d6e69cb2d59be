# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`/v1/chat/completions`: one or more answers to a conversation, streamed or not."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from .answering import GenerationStream
from .chat_request import ChatRequest, check_chat
from .events import END_EVENT, FAILED, EventStream, error_event, event, merged_pieces, whole_texts
from .handlers import RequestQueue
from .logprobs import AnswerLogprobs


class ChatHandler:
    """Handler of `/v1/chat/completions`."""

    def __init__(self, queue: RequestQueue):
        self.queue = queue

    async def respond(self, request: Request, body: dict[str, Any]) -> Response:
        """
        Answer a request, streamed or not.

        Raises:
            BadRequest: for a fault in the request.
            HTTPException: for another model.
        """
        self.queue.manager.check_name(body.get("model"))
        chat = await asyncio.to_thread(check_chat, body)
        streams = await self.queue.begin(chat.messages, chat.sampling, chat.media)
        head = self.head(request)
        logprobs = [AnswerLogprobs(self.queue.tokenizer, stream) for stream in streams]
        if chat.stream:
            return EventStream(chat_events(head, streams, chat, logprobs), streams)
        texts = await whole_texts(streams, request.receive)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": logprobs_of(chat, logprobs[index].whole(text)),
                "finish_reason": stream.finish_reason(),
            }
            for index, (text, stream) in enumerate(zip(texts, streams, strict=True))
        ]
        return JSONResponse({**head, "object": "chat.completion", "choices": choices, "usage": usage_of(streams)})

    def head(self, request: Request) -> dict[str, Any]:
        """Return the fields that an answer and all pieces of it share."""
        name = self.queue.manager.force_model
        return {"id": f"chatcmpl-{request.state.request_id}", "created": int(time.time()), "model": name}


async def chat_events(
    head: dict[str, Any],
    streams: Sequence[GenerationStream],
    chat: ChatRequest,
    logprobs: Sequence[AnswerLogprobs],
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
            yield chunk(choice(index, {"content": piece}, logprobs[index].take(piece)))
            continue
        if streams[index].has_failed():
            yield error_event(FAILED)
            break
        unfinished -= 1
        # OpenAI's clients read the usage of an event without choices if they have asked for it; others of the last.
        is_last = not unfinished and chat.include_usage is None
        usage = {"usage": usage_of(streams)} if is_last else {}
        yield chunk(choice(index, {}, logprobs[index].rest(), streams[index].finish_reason()), **usage)
    if not unfinished and chat.include_usage:
        yield chunk([], usage=usage_of(streams))
    yield END_EVENT


def logprobs_of(chat: ChatRequest, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the log-probabilities of a choice; None unless they were requested."""
    return None if chat.sampling.top_logprobs is None else {"content": entries, "refusal": None}


def usage_of(streams: Sequence[GenerationStream]) -> dict[str, int]:
    """Return the tokens of a prompt and of all its answers."""
    prompt, made = streams[0].prompt_tokens, sum(len(stream.streamer.tokens) for stream in streams)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
