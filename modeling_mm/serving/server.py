# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
The app of `transformers serve` with one of our models in it. Of its routes those stay that work with it: others would
load whatever model a client names, unload ours, or read messages that nobody has checked.
"""

import inspect
from collections import deque
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState

from .handlers import FAILED, Desk, MMChatHandler, MMTranscriptionHandler, OneModel
from .sources import MAX_MEDIA_BYTES, BadRequest, Policy

ROUTES = ("/v1/chat/completions", "/v1/audio/transcriptions", "/v1/models", "/health")
# A picture or sound of the largest size, in base64, and a conversation around it.
MAX_BODY_BYTES = MAX_MEDIA_BYTES * 4 // 3 + (1 << 20)
TOO_LARGE = 413
LONGEST_MESSAGE = 1000  # which may name every field of a request

# Becomes a setting of each model's generation config.
TRANSCRIPTION_PROMPTS = {
    "en": "What is said?",
    "fr": "Que dit la voix ?",
    "es": "¿Qué dice la voz?",
    "ru": "Что сказано?",
    "zh": "说了什么？",
    "ca": "Write down what is said in Catalan.",
    "ro": "Write down what is said in Romanian.",
    "bg": "Write down what is said in Bulgarian.",
}


def build_app(
    model: str,
    policy: Policy,
    device: str = "auto",
    dtype: str | None = None,
    attn_implementation: str | None = None,
    enable_cors: bool = False,
    most_tokens: int | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
) -> FastAPI:
    """
    Loads a model and makes the app that serves it.

    Args:
        model: a folder or Hub id; clients name it so too
        policy: what requests may name as pictures and sounds
        dtype: the precision of the weights; by default that of the checkpoint on a GPU, float32 on a CPU
        most_tokens: how many tokens are generated for a request at most; by default as many as the model has positions
    """
    if dtype is None:
        dtype = "auto" if torch.cuda.is_available() and device != "cpu" else "float32"
    manager = OneModel(device=device, dtype=dtype, attn_implementation=attn_implementation, force_model=model)
    state = GenerationState()
    desk = Desk(manager, state, policy, most_tokens)
    chat_handler = MMChatHandler(desk)
    given: dict[str, Any] = {
        "model_manager": manager,
        "transcription_handler": MMTranscriptionHandler(desk, TRANSCRIPTION_PROMPTS),
        "generation_state": state,
        "enable_cors": enable_cors,
    }
    # Which handlers there are depends on the version of transformers; those of routes that go have none.
    app = build_server(**{name: given.get(name) for name in inspect.signature(build_server).parameters})
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in ROUTES[1:]]

    # Theirs does not hand on the request, by which a client that has gone is noticed.
    @app.post(ROUTES[0])
    async def chat_completions(request: Request, body: dict[str, Any]) -> Response:
        return await chat_handler.answer(request, body)

    app.add_middleware(LimitBody, limit=max_body_bytes)
    app.add_exception_handler(BadRequest, tell_bad)
    app.add_exception_handler(AnyHTTPException, tell_refusal)
    app.add_exception_handler(RequestValidationError, tell_invalid)
    app.add_exception_handler(Exception, tell_failure)
    return app


class LimitBody:
    """
    Answers requests whose body is larger than `limit` bytes, whether they say so or not, before anything is done with
    them. Bodies are read here to their end, since nothing can be answered from within what reads them.
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
            has_more = parts[-1].get("more_body", False)  # a client that has gone has no more either
        if received > self.limit:
            parts.clear()
            message = f"The request is larger than {self.limit} bytes; send smaller pictures and sounds."
            await answer(TOO_LARGE, message, {"Connection": "close"})(scope, receive, send)  # the rest is not read
            return

        async def replay() -> Message:
            return parts.popleft() if parts else await receive()

        await self.app(scope, replay, send)


# ---- Errors, as OpenAI's clients read them --------------------------------------------------------------------------


def answer(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    content = {"error": {"message": message[:LONGEST_MESSAGE], "type": kind, "param": None, "code": status}}
    return JSONResponse(content, status_code=status, headers=headers)


async def tell_bad(request: Request, error: Exception) -> JSONResponse:
    return answer(400, str(error))


async def tell_refusal(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    detail = error.detail
    if error.status_code == 404 and detail == "Not Found":
        detail = f"There is no {request.method} {request.url.path} here; this server has {', '.join(ROUTES)}."
    return answer(error.status_code, str(detail))


async def tell_invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    reasons = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return answer(400, f"The request is no JSON object ({reasons}).")


async def tell_failure(request: Request, error: Exception) -> JSONResponse:
    """A fault of the server's own; its details go to the log alone."""
    return answer(500, FAILED)
