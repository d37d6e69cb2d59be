"""The door of the server: bodies that are too large, too slow or too many; without a server."""

import asyncio
import time

from starlette.responses import PlainTextResponse

from modeling_mm.serving import ServerLimits
from modeling_mm.serving.bodies import LimitBodies

NEVER = object()


def door(may_answer: asyncio.Event | None = None, **limits) -> LimitBodies:
    """A server that answers with the length of a body, once it may."""

    async def app(scope, receive, send):
        size, has_more = 0, True
        while has_more:
            message = await receive()
            size, has_more = size + len(message["body"]), message["more_body"]
        if may_answer is not None:
            await may_answer.wait()
        await PlainTextResponse(str(size))(scope, receive, send)

    def refuse(status, message, headers):
        return PlainTextResponse(message, status, headers)

    return LimitBodies(app, ServerLimits(**{"body_bytes": 1000, **limits}), refuse)


async def send(app: LimitBodies, *parts, method="POST", **headers) -> tuple[int, str, dict]:
    """Send a body in parts; return the status, the text and the headers of the answer."""
    waiting, answered = list(parts), []

    async def receive():
        part = waiting.pop(0) if waiting else NEVER
        if part is NEVER:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    async def note(message):
        answered.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await app({"type": "http", "method": method, "headers": named}, receive, note)
    text = b"".join(message.get("body", b"") for message in answered[1:]).decode()
    return answered[0]["status"], text, {key.decode(): value.decode() for key, value in answered[0]["headers"]}


def test_bodies_pass_whole_and_those_that_are_too_large_do_not():
    assert asyncio.run(send(door(), b"a" * 400, b"b" * 600))[:2] == (200, "1000")
    for parts, headers in (((b"a" * 400, b"b" * 601, NEVER), {}), ((NEVER,), {"content_length": "1001"})):
        status, text, told = asyncio.run(send(door(), *parts, **headers))
        assert status == 413 and "larger than 1000 bytes" in text and told["connection"] == "close"


def test_json_of_more_values_than_a_prompt_can_have_is_not_read(monkeypatch):
    monkeypatch.setattr("modeling_mm.serving.bodies.MOST_VALUES", 10)
    assert asyncio.run(send(door(), b"[" + b"1," * 5, b"1" + b"]" * 5))[0] == 200
    status, text, _ = asyncio.run(send(door(), b"[" * 6, b"{,,,,", NEVER))
    assert status == 400 and "more than 10 values" in text
    form = {"content_type": "multipart/form-data; boundary=x"}
    assert asyncio.run(send(door(), b"," * 100, **form))[0] == 200, "a file holds any bytes"


def test_a_body_that_does_not_arrive_in_time_gets_408():
    start = time.monotonic()
    status, text, told = asyncio.run(send(door(body_seconds=0.2), b"a", NEVER))
    assert status == 408 and "longer than 0.2 s" in text and told["connection"] == "close"
    assert time.monotonic() - start < 10


def test_requests_and_bytes_beyond_the_limits_get_429_until_others_are_answered():
    async def ask():
        may_answer = asyncio.Event()
        app = door(may_answer, requests=2, bodies_bytes=900)
        first = asyncio.create_task(send(app, b"a" * 600))
        await asyncio.sleep(0)
        heavy = await send(app, b"a" * 301, NEVER)
        second = asyncio.create_task(send(app, b"a" * 300))
        await asyncio.sleep(0)
        third = await send(app, NEVER)
        health = await send(door(None, requests=0), b"", method="GET")
        may_answer.set()
        return heavy, third, health, await first, await second, await send(app, b"a" * 600)

    heavy, third, health, *served = asyncio.run(ask())
    assert heavy[0] == third[0] == 429 and health[0] == 200 and [each[0] for each in served] == [200] * 3
    assert "at work on 2 requests" in third[1] and "as many bytes" in heavy[1]
    assert int(heavy[2]["retry-after"]) > 0 and int(third[2]["retry-after"]) > 0
