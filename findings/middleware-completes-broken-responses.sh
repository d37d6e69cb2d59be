#!/usr/bin/env bash
# Starlette: behind a function as middleware, a streamed response that fails midway ends as if it were complete.
set -euo pipefail
unset PYTHONPATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet starlette==1.10.0
venv/bin/python - <<'EOF'
import asyncio
from importlib.metadata import version

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import StreamingResponse
from starlette.routing import Route

print(f"versions: starlette {version('starlette')}")


async def pieces():
    yield b"half"
    raise RuntimeError("the other half cannot be computed")


async def endpoint(request):
    return StreamingResponse(pieces())


async def passed_on(request, call_next):
    return await call_next(request)


async def answer(middleware) -> tuple[bytes, bool, str]:
    """The body that a server is given, if it is told that the body is complete, and the error that it sees."""
    app = Starlette(routes=[Route("/", endpoint)], middleware=middleware)
    body, is_complete = b"", False

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        nonlocal body, is_complete
        if message["type"] == "http.response.body":
            body += message.get("body", b"")
            is_complete = not message.get("more_body", False)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"", "http_version": "1.1"}
    try:
        await app({**scope, "asgi": {"version": "3.0", "spec_version": "2.4"}}, receive, send)
    except RuntimeError as error:
        return body, is_complete, str(error)
    return body, is_complete, "none"


print("guess: with a middleware that passes on what it gets, the server is not told either that the body is complete")
plain = asyncio.run(answer([]))
wrapped = asyncio.run(answer([Middleware(BaseHTTPMiddleware, dispatch=passed_on)]))
print(f"seen: without it body {plain[0]}, complete: {plain[1]}, error: {plain[2]}")
print(f"seen: with it body {wrapped[0]}, complete: {wrapped[1]}, error: {wrapped[2]}")
assert plain[:2] == (b"half", False)
assert wrapped[:2] == (b"half", True)
EOF
