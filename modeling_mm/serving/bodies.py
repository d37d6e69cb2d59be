# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The door of the server: how many requests come in at once, and how large and how slow their bodies may be."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import ServerLimits

TOO_SLOW, TOO_LARGE, TOO_MANY = 408, 413, 429
# JSON of more values takes Python's lock for seconds when it is read. Base64 holds none of these characters, and no
# prompt holds as many.
MOST_VALUES = 1 << 18
SEPARATORS = (b",", b"[", b"{")
# What clients are told to wait before they try again, in seconds.
RETRY_AFTER = "2"


@dataclass(eq=False)
class Body:
    """Body of a request on its way in."""

    parts: deque[Message] = field(default_factory=deque)
    size: int = 0
    values: int = 0


class LimitBodies:
    """
    Middleware that reads the bodies of requests, within limits, before the requests are handled.

    It reads each body to its end, as an answer cannot be sent from within the code that reads a body. A body counts
    until its request is answered.

    Args:
        limits: of the server, with `body_bytes`
        refuse: makes the response of a status, a message and headers
    """

    def __init__(self, app: ASGIApp, limits: ServerLimits, refuse: Callable[[int, str, dict[str, str]], ASGIApp]):
        self.app, self.limits, self.refuse = app, limits, refuse
        self.bodies: set[Body] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        body = Body()
        self.bodies.add(body)
        try:
            fault = await self.read(body, scope, receive)
            if fault is not None:
                body.parts.clear()
                status, message = fault
                headers = {"Connection": "close"}  # the rest of the body is not read
                await self.refuse(
                    status, message, headers | ({"Retry-After": RETRY_AFTER} if status == TOO_MANY else {})
                )(scope, receive, send)
                return

            async def replay() -> Message:
                return body.parts.popleft() if body.parts else await receive()

            await self.app(scope, replay, send)
        finally:
            self.bodies.discard(body)

    async def read(self, body: Body, scope: Scope, receive: Receive) -> tuple[int, str] | None:
        """Read a body to its end; return the status and the message of a fault."""
        if len(self.bodies) > self.limits.requests:
            return TOO_MANY, f"The server is at work on {self.limits.requests} requests; try again in a moment."
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        is_form = headers.get(b"content-type", b"").startswith(b"multipart/")
        if announced.isdigit() and int(announced) > self.limit:
            return self.too_large()
        try:
            return await asyncio.wait_for(self.receive(body, is_form, receive), self.limits.body_seconds)
        except asyncio.TimeoutError:
            return TOO_SLOW, f"The body took longer than {self.limits.body_seconds:g} s to arrive; send less at once."

    async def receive(self, body: Body, is_form: bool, receive: Receive) -> tuple[int, str] | None:
        has_more = True
        while has_more:
            message = await receive()
            part = message.get("body", b"")
            body.parts.append(message)
            body.size += len(part)
            body.values += 0 if is_form else sum(map(part.count, SEPARATORS))
            has_more = message.get("more_body", False)  # none either if the client has left
            if body.size > self.limit:
                return self.too_large()
            if body.values > MOST_VALUES:
                return 400, f"The request is JSON of more than {MOST_VALUES} values; shorten it."
            if sum(each.size for each in self.bodies) > self.limits.bodies_bytes:
                return TOO_MANY, "The server is at work on as many bytes as it takes at once; try again in a moment."
        return None

    @property
    def limit(self) -> int:
        assert self.limits.body_bytes is not None
        return self.limits.body_bytes

    def too_large(self) -> tuple[int, str]:
        return TOO_LARGE, f"The request is larger than {self.limit} bytes; send smaller images and audio."
