# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`/v1/responses`: one answer to `input` and `instructions`, streamed or not. Nothing is stored."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from .answering import GenerationStream
from .completions import usage_of
from .events import FAILED, EventStream, event, whole_texts
from .handlers import RequestQueue
from .logprobs import AnswerLogprobs
from .response_request import check_response
from .values import check_metadata


class ResponsesHandler:
    """Handler of `/v1/responses`."""

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
        chat = await asyncio.to_thread(check_response, body)
        metadata = check_metadata(body.get("metadata"))
        streams = await self.queue.begin(chat.messages, chat.sampling, chat.media)
        answer = ResponseAnswer(
            self.queue.manager.force_model, request.state.request_id, {**body, "metadata": metadata}
        )
        logprobs = AnswerLogprobs(self.queue.tokenizer, streams[0])
        if chat.stream:
            return EventStream(answer.events(streams[0], logprobs), streams)
        (text,) = await whole_texts(streams, request.receive)
        return JSONResponse(answer.whole(text, streams[0], logprobs.whole(text)))


class ResponseAnswer:
    """
    Answer in the objects of this route.

    Args:
        request_id: makes the ids of the response and its message
        body: the checked request, of which the response repeats some fields
    """

    def __init__(self, model: str, request_id: str, body: dict[str, Any]):
        self.message_id = f"msg_{request_id}"
        repeated = ("instructions", "max_output_tokens", "metadata", "temperature", "top_p", "user")
        self.fields: dict[str, Any] = {
            **{name: body.get(name) for name in repeated},
            "id": f"resp_{request_id}",
            "object": "response",
            "created_at": time.time(),
            "model": model,
            "error": None,
            "incomplete_details": None,
            "parallel_tool_calls": False,
            "store": False,
            "text": {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "truncation": "disabled",
            "usage": None,
        }

    def part(self, text: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}

    def message(self, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def response(self, status: str, **fields: Any) -> dict[str, Any]:
        return {**self.fields, "status": status, "output": [], **fields}

    def whole(self, text: str, stream: GenerationStream, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the response with a whole answer."""
        status = self.status(stream)
        usage = usage_of([stream])
        return self.response(
            status,
            output=[self.message([self.part(text, logprobs)], status)],
            incomplete_details=None if status == "completed" else {"reason": "max_output_tokens"},
            usage={
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        )

    def status(self, stream: GenerationStream) -> str:
        return "incomplete" if stream.finish_reason() == "length" else "completed"

    async def events(self, stream: GenerationStream, logprobs: AnswerLogprobs) -> AsyncIterator[str]:
        """Yield an answer as the events of a response."""
        numbers = itertools.count()

        def emit(kind: str, **fields: Any) -> str:
            return event({"type": kind, "sequence_number": next(numbers), **fields}, kind)

        place = {"item_id": self.message_id, "output_index": 0, "content_index": 0}
        for status in ("created", "in_progress"):
            yield emit(f"response.{status}", response=self.response("in_progress"))
        yield emit("response.output_item.added", output_index=0, item=self.message([], "in_progress"))
        yield emit("response.content_part.added", **place, part=self.part(""))
        text, entries = "", list[dict[str, Any]]()
        async for piece in stream.pieces():
            text += piece
            entries += (new := logprobs.take(piece))
            yield emit("response.output_text.delta", **place, delta=piece, logprobs=new)
        if stream.has_failed():
            error = {"code": "server_error", "message": FAILED}
            yield emit("error", **error, param=None)
            yield emit("response.failed", response=self.response("failed", error=error))
            return
        entries += logprobs.rest()
        whole, status = self.whole(text, stream, entries), self.status(stream)
        yield emit("response.output_text.done", **place, text=text, logprobs=entries)
        yield emit("response.content_part.done", **place, part=self.part(text, entries))
        yield emit("response.output_item.done", output_index=0, item=whole["output"][0])
        yield emit(f"response.{status}", response=whole)
