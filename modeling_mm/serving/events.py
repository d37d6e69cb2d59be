# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Answers on their way to a client: whole, or as server-sent events while they are generated."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answering import GenerationStream

FAILED = "The server failed at this request; its log says why. Other requests are not affected."
BROKEN = "is_broken"  # of a request's state
END_EVENT = "data: [DONE]\n\n"


def to_json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False)


def event(data: Any, name: str | None = None) -> str:
    """Return a server-sent event, with its name where a protocol has names."""
    return f"{'' if name is None else f'event: {name}'}\ndata: {to_json(data)}\n\n".lstrip("\n")


def error_event(message: str) -> str:
    return event({"error": {"message": message, "type": "server_error", "param": None, "code": None}})


class AnswerStream(StreamingResponse):
    """Response with pieces of answers, whose generation ends when the client leaves, even before a piece."""

    def __init__(
        self, pieces: AsyncIterator[str] | AsyncIterator[bytes], streams: Sequence[GenerationStream], media_type: str
    ):
        super().__init__(pieces, media_type=media_type)
        self.streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except Exception:  # of any kind: it is raised again, and `BreakOff` leaves out the end
            scope.setdefault("state", {})[BROKEN] = True
            raise
        finally:
            for stream in self.streams:
                stream.streamer.stop()


class EventStream(AnswerStream):
    """Response with the events of answers."""

    def __init__(self, events: AsyncIterator[str], streams: Sequence[GenerationStream]):
        super().__init__(events, streams, "text/event-stream")


class BreakOff:
    """
    Middleware that ends a response whose pieces have failed without its end, so that clients see it broken off.

    Starlette's `BaseHTTPMiddleware`, which transformers' app has, ends it as if it were complete (1.10).
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unless_broken(message: Message) -> None:
            if message["type"] == "http.response.body" and scope.get("state", {}).get(BROKEN):
                raise RuntimeError("A streamed answer failed; its client was disconnected.")
            await send(message)

        await self.app(scope, receive, send_unless_broken)


async def whole_texts(streams: Sequence[GenerationStream], receive: Callable[[], Awaitable[Any]]) -> list[str]:
    """Return the whole texts of answers; see `whole_pieces`."""
    return ["".join(pieces) for pieces in await whole_pieces(streams, receive)]


async def whole_pieces(streams: Sequence[GenerationStream], receive: Callable[[], Awaitable[Any]]) -> list[list[Any]]:
    """Return all pieces of answers. Their generation ends early if the client goes away."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        stop()

    def stop() -> None:
        for stream in streams:
            stream.streamer.stop()

    watcher = asyncio.create_task(watch())
    try:
        return list(await asyncio.gather(*(stream.whole() for stream in streams)))
    finally:
        watcher.cancel()
        stop()


async def merged_pieces(streams: Sequence[GenerationStream]) -> AsyncIterator[tuple[int, Any]]:
    """Yield the pieces of answers as they come, each with the index of its answer; None ends an answer."""
    queue = asyncio.Queue[tuple[int, Any]]()

    async def read(index: int, stream: GenerationStream) -> None:
        async for piece in stream.pieces():
            queue.put_nowait((index, piece))
        queue.put_nowait((index, None))

    readers = [asyncio.create_task(read(index, stream)) for index, stream in enumerate(streams)]
    try:
        unfinished = len(streams)
        while unfinished:
            index, piece = await queue.get()
            unfinished -= piece is None
            yield index, piece
    finally:
        for reader in readers:
            reader.cancel()
