# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
The app of `transformers serve` with one of our models in it.

Only the routes that work with it stay: others would load any model that a client names, unload ours, or read unchecked
messages.
"""

import inspect
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import GenerationState

from ..sources import SourcePolicy
from .bodies import TOO_MANY, LimitBodies
from .completions import ChatHandler
from .embeddings import EmbeddingsHandler
from .events import FAILED, BreakOff
from .fields import UnknownField
from .handlers import OneModel, RequestQueue
from .image_generation import ImageHandler
from .limits import BadRequest, ServerLimits
from .responses import ResponsesHandler
from .speech_generation import SpeechHandler
from .transcriptions import TranscriptionHandler
from .workers import worker_context

KEPT_ROUTES = ("/v1/models", "/health")  # of transformers
FORM_ROUTES = ("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits")
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
    limits: ServerLimits = ServerLimits(),  # noqa: B008  # frozen
) -> FastAPI:
    """
    Load a model and return the app that serves it.

    Args:
        model: a folder or Hub id; clients use the same name
        policy: the sources of images and audio that requests may name
        dtype: precision of the weights; by default that of the checkpoint on a GPU, float32 on a CPU
        limits: on what it does at once
    """
    if limits.body_bytes is None:
        limits = replace(limits, body_bytes=policy.max_bytes * 4 // 3 + (1 << 20))  # media come in base64
    if dtype is None:
        dtype = "auto" if torch.cuda.is_available() and device != "cpu" else "float32"
    worker_context()  # its imports run while the model is loaded
    manager = OneModel(device=device, dtype=dtype, attn_implementation=attn_implementation, force_model=model)
    state = GenerationState()
    queue = RequestQueue(manager, policy, limits)
    given: dict[str, Any] = {"model_manager": manager, "generation_state": state, "enable_cors": enable_cors}
    # The handlers depend on the version of transformers; those of the removed routes are None.
    app = build_server(**{name: given.get(name) for name in inspect.signature(build_server).parameters})
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in KEPT_ROUTES]
    add_routes(app, queue)
    app.add_middleware(BreakOff)
    app.add_middleware(LimitBodies, limits=limits, refuse=error_response)
    app.router.lifespan_context = until_stopped(app.router.lifespan_context, queue)
    for kind, handler in ERROR_HANDLERS.items():
        app.add_exception_handler(kind, handler)
    return app


def add_routes(app: FastAPI, queue: RequestQueue) -> None:
    """Add the routes of OpenAI's protocol that work with our models."""
    chat, responses = ChatHandler(queue), ResponsesHandler(queue)
    embeddings, transcriptions = EmbeddingsHandler(queue), TranscriptionHandler(queue)
    images, speech = ImageHandler(queue), SpeechHandler(queue)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: dict[str, Any]) -> Response:
        return await chat.respond(request, body)

    @app.post("/v1/responses")
    async def create_response(request: Request, body: dict[str, Any]) -> Response:
        return await responses.respond(request, body)

    @app.post("/v1/embeddings")
    async def create_embeddings(body: dict[str, Any]) -> Response:
        return await embeddings.respond(body)

    @app.post("/v1/audio/speech")
    async def audio_speech(request: Request, body: dict[str, Any]) -> Response:
        return await speech.respond(request, body)

    @app.post(FORM_ROUTES[0])
    async def audio_transcriptions(request: Request) -> Response:
        return await transcriptions.respond(request)

    @app.post(FORM_ROUTES[1])
    async def audio_translations(request: Request) -> Response:
        return await transcriptions.respond(request, "translate")

    @app.post(FORM_ROUTES[2])
    async def image_edits(request: Request) -> Response:
        return await images.edit(request)

    @app.post("/v1/images/generations")
    async def image_generations(request: Request, body: dict[str, Any]) -> Response:
        return await images.generate(request, body)

    @app.get("/v1/models/{name:path}")  # a folder's name has slashes
    async def retrieve_model(name: str) -> dict[str, Any]:
        queue.manager.check_name(name)
        return queue.manager.description()


def until_stopped(inner: Callable[[Any], AbstractAsyncContextManager], queue: RequestQueue) -> Callable[[Any], Any]:
    """Return the life of an app whose workers start and end with it, and whose engine ends with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with inner(app) as state:
            await queue.workers.start()
            yield state
        queue.stop()

    return lifespan


# ---- Errors, as OpenAI's clients read them --------------------------------------------------------------------------


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return an error as OpenAI's clients read it; the field that a message begins with is its `param`."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == TOO_MANY else "invalid_request_error"
    message = message[:LONGEST_MESSAGE].encode("utf-8", "backslashreplace").decode()  # halves of surrogate pairs
    field = re.match(r"`([^`]+)`: ", message)
    content = {"error": {"message": message, "type": kind, "param": field and field[1], "code": str(status)}}
    return JSONResponse(content, status_code=status, headers=headers)


async def refuse_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    detail = str(error.detail)
    if detail in ("Not Found", "Method Not Allowed"):  # of the framework
        paths = dict.fromkeys(getattr(route, "path", "") for route in request.app.router.routes)
        routes = ", ".join(paths).replace(":path", "")
        detail = f"There is no {request.method} {request.url.path} here; this server has {routes}."
    elif error.status_code == 400:  # likewise, for a body that it cannot read
        detail = f"The body cannot be read ({detail}). {SEND_FORM if request.url.path in FORM_ROUTES else SEND_JSON}"
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
