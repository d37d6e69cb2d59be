# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
The app of `transformers serve` with one of our models in it.

Only the routes that work with it stay: others would load any model that a client names, unload ours, or read unchecked
messages.
"""

import inspect
import re
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState

from ..sources import SourcePolicy
from .answering import BadRequest
from .completions import ChatHandler
from .embeddings import EmbeddingsHandler
from .events import FAILED
from .fields import UnknownField
from .handlers import OneModel, RequestQueue
from .responses import ResponsesHandler
from .transcriptions import TranscriptionHandler

KEPT_ROUTES = ("/v1/models", "/health")  # of transformers
TOO_LARGE = 413
FORM_ROUTE = "/v1/audio/transcriptions"
SEND_FORM = "Send multipart/form-data with its boundary."
SEND_JSON = "Send a JSON object in UTF-8, with `Content-Type: application/json`."
LONGEST_MESSAGE = 1000  # a message may name every field of a request


def build_app(
    model: str,
    policy: SourcePolicy,
    device: str = "auto",
    dtype: str | None = None,
    attn_implementation: str | None = None,
    enable_cors: bool = False,
    most_tokens: int | None = None,
    max_body_bytes: int | None = None,
) -> FastAPI:
    """
    Load a model and return the app that serves it.

    Args:
        model: a folder or Hub id; clients use the same name
        policy: the sources of images and audio that requests may name
        dtype: precision of the weights; by default that of the checkpoint on a GPU, float32 on a CPU
        most_tokens: limit on the tokens of an answer; by default the positions of the model
        max_body_bytes: limit on the body of a request; by default media of the largest size and a conversation
    """
    if max_body_bytes is None:
        max_body_bytes = policy.max_bytes * 4 // 3 + (1 << 20)  # media come in base64
    if dtype is None:
        dtype = "auto" if torch.cuda.is_available() and device != "cpu" else "float32"
    manager = OneModel(device=device, dtype=dtype, attn_implementation=attn_implementation, force_model=model)
    state = GenerationState()
    queue = RequestQueue(manager, state, policy, most_tokens)
    given: dict[str, Any] = {"model_manager": manager, "generation_state": state, "enable_cors": enable_cors}
    # The handlers depend on the version of transformers; those of the removed routes are None.
    app = build_server(**{name: given.get(name) for name in inspect.signature(build_server).parameters})
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in KEPT_ROUTES]
    add_routes(app, queue)
    app.add_middleware(LimitBody, limit=max_body_bytes)
    for kind, handler in ERROR_HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


def add_routes(app: FastAPI, queue: RequestQueue) -> None:
    """Add the routes of OpenAI's protocol that work with our models."""
    chat, responses = ChatHandler(queue), ResponsesHandler(queue)
    embeddings, transcriptions = EmbeddingsHandler(queue), TranscriptionHandler(queue)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: dict[str, Any]) -> Response:
        return await chat.respond(request, body)

    @app.post("/v1/responses")
    async def create_response(request: Request, body: dict[str, Any]) -> Response:
        return await responses.respond(request, body)

    @app.post("/v1/embeddings")
    async def create_embeddings(body: dict[str, Any]) -> Response:
        return await embeddings.respond(body)

    @app.post(FORM_ROUTE)
    async def audio_transcriptions(request: Request) -> Response:
        return await transcriptions.respond(request)

    @app.get("/v1/models/{name:path}")  # a folder's name has slashes
    async def retrieve_model(name: str) -> dict[str, Any]:
        queue.manager.check_name(name)
        return queue.manager.description()


class LimitBody:
    """
    Middleware that refuses requests with a body of more than `limit` bytes, announced or not, before they are handled.

    It reads each body to its end, as an answer cannot be sent from within the code that reads a body.
    """

    def __init__(self, app: ASGIApp, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        received = int(announced) if announced.isdigit() else 0
        parts: deque[Message] = deque()
        has_more = received <= self.limit
        received = 0 if has_more else received
        while has_more and received <= self.limit:
            parts.append(await receive())
            received += len(parts[-1].get("body", b""))
            has_more = parts[-1].get("more_body", False)  # none either if the client has left
        if received > self.limit:
            parts.clear()
            message = f"The request is larger than {self.limit} bytes; send smaller images and audio."
            # The rest of the body is not read.
            await error_response(TOO_LARGE, message, {"Connection": "close"})(scope, receive, send)
            return

        async def replay() -> Message:
            return parts.popleft() if parts else await receive()

        await self.app(scope, replay, send)


# ---- Errors, as OpenAI's clients read them --------------------------------------------------------------------------


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as OpenAI's clients read it; the field that a message begins with is its `param`."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    message = message[:LONGEST_MESSAGE].encode("utf-8", "backslashreplace").decode()  # halves of surrogate pairs
    field = re.match(r"`([^`]+)`: ", message)
    content = {"error": {"message": message, "type": kind, "param": field and field[1], "code": str(status)}}
    return JSONResponse(content, status_code=status, headers=headers)


async def refuse_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    detail = str(error.detail)
    if detail in ("Not Found", "Method Not Allowed"):  # of the framework
        routes = ", ".join(dict.fromkeys(getattr(route, "path", "") for route in request.app.router.routes))
        detail = f"There is no {request.method} {request.url.path} here; this server has {routes}."
    elif error.status_code == 400:  # likewise, for a body that it cannot read
        detail = f"The body cannot be read ({detail}). {SEND_FORM if request.url.path == FORM_ROUTE else SEND_JSON}"
    return error_response(error.status_code, detail)


async def refuse_body(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    reasons = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return error_response(
        400,
        f"The request is not a JSON object ({reasons}); send one, with the header `Content-Type: application/json`.",
    )


ERROR_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Any]] = {
    UnknownField: lambda request, error: error_response(422, str(error)),
    BadRequest: lambda request, error: error_response(400, str(error)),
    AnyHTTPException: refuse_http,
    RequestValidationError: refuse_body,
    Exception: lambda request, error: error_response(500, FAILED),  # the details go to the log only
}
