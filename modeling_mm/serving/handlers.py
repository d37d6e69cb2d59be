# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Handlers of `transformers serve` for our model.

Loading, the thread that generates and the shape of the answers are theirs. Ours differ in these points:

- Requests are checked, and their media read, before they are handled; theirs open any file and any address.
- A fault in a request, such as a broken image, is answered with 400 before an answer is begun; theirs answers
  500. Faults of the server are logged and answered with 500, without their text.
- Nothing slow runs on the event loop: threads fetch sources, so that slow ones delay no other request; one thread
  reads messages, since tokenizers are not thread-safe and unpacked media add up.
- Answers without a requested length are as long as the model's positions allow; theirs asks for 1024 tokens, which a
  decoder with learned positions may not have.
- An answer ends before its stop string, and when its client leaves, streamed or not.
- A stream ends with `[DONE]`, and an error in it is valid JSON, as OpenAI's clients expect.
- A transcription is an answer to a question about audio; theirs passes the samples as the processor's first argument,
  which is `images` in ours, and takes the prompt for a part of the text.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from openai.types.audio import Transcription
from openai.types.completion_usage import CompletionUsage
from starlette.datastructures import UploadFile
from starlette.types import Receive, Scope, Send
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import GenerationState

from ..audio import load_audio
from ..prompts import transcription_prompt
from ..sources import WEB, SourcePolicy
from .answering import BadRequest, GenerationStream, encode, make_config
from .chat_request import (
    LONGEST_TEXT,
    RANGES,
    UNPACKED_LIMITS,
    ChatRequest,
    check_chat,
    check_number,
    check_text,
    read_media,
    shortened,
    unpacked_size,
    unpacks_too_large,
)

FAILED = "The server failed at this request; its log says why. Other requests are not affected."
FORMATS = ("json", "text")
FETCHERS = 16
END_EVENT = "data: [DONE]\n\n"


class OneModel(ModelManager):
    """Manager of one model; clients can neither load nor list another."""

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        return [{"id": self.force_model, "object": "model", "created": 0, "owned_by": "modeling_mm"}]

    def check_name(self, name: Any) -> None:
        if name is not None and name != self.force_model:
            raise HTTPException(
                404, f"`model`: there is no {shortened(name)} here; this server has {self.force_model!r}."
            )

    def served(self) -> tuple[Any, Any]:
        """Return the model and its processor."""
        return self.load_model_and_processor(self.process_model_name(self.force_model))


class RequestQueue:
    """
    Queue through which both handlers have requests read and answered.

    Args:
        most_tokens: limit on the tokens of an answer; by default the positions of the model
    """

    def __init__(
        self, manager: OneModel, state: GenerationState, policy: SourcePolicy, most_tokens: int | None = None
    ):
        self.manager, self.state, self.policy, self.most_tokens = manager, state, policy, most_tokens
        self.fetchers = ThreadPoolExecutor(FETCHERS, "fetch")
        self.reader = ThreadPoolExecutor(1, "read")

    async def read(self, work: Callable, *arguments: Any) -> Any:
        """Run work on the content of a request, one request at a time."""
        return await asyncio.get_running_loop().run_in_executor(self.reader, work, *arguments)

    async def read_media(self, chat: ChatRequest) -> None:
        """
        Read all media of a request into its messages.

        Raises:
            BadRequest: for media that cannot be read, or not in time: names, connections and free threads may be late.
        """
        arguments = chat.media, self.policy, time.monotonic() + self.policy.timeout
        if not any(media.source.startswith(WEB) for media in chat.media):
            await self.read(read_media, *arguments)
            return
        fetched = asyncio.get_running_loop().run_in_executor(self.fetchers, read_media, *arguments)
        try:
            await asyncio.wait_for(fetched, self.policy.timeout + 1)
        except asyncio.TimeoutError as error:
            raise BadRequest(f"`messages`: its URLs took longer than {self.policy.timeout:g} s.") from error

    async def begin(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> GenerationStream:
        """Queue the answer to a conversation behind the answers that were requested before."""
        model, processor = self.manager.served()
        inputs = await self.read(encode, model, processor, messages)
        config = make_config(options, model, inputs["input_ids"].shape[-1], self.most_tokens)
        submit = self.state.get_manager(self.manager.process_model_name(self.manager.force_model)).submit
        return GenerationStream(
            submit, model, processor, inputs, config, options.get("seed"), options.get("stop") or ()
        )


class MMChatHandler(ChatCompletionHandler):
    """Handler of `/v1/chat/completions`."""

    def __init__(self, queue: RequestQueue):
        super().__init__(queue.manager, queue.state)
        self.queue = queue

    async def respond(self, request: Request, body: dict[str, Any]) -> Response:
        """
        Answer a request, streamed or not.

        Raises:
            BadRequest: for a fault in the request.
            HTTPException: for an unknown field, and for another model.
        """
        self._validate_request(body)
        self.queue.manager.check_name(body.get("model"))
        chat = await asyncio.to_thread(check_chat, body)
        await self.queue.read_media(chat)
        stream = await self.queue.begin(chat.messages, chat.options)
        if chat.options.get("stream"):
            return EventStream(self.events(stream, request.state.request_id), stream)
        text = await stream.text(request.receive)
        name, reason = self.queue.manager.force_model, stream.finish_reason()
        return JSONResponse(
            self._build_completion(request.state.request_id, text, name, finish_reason=reason, usage=usage_of(stream))
        )

    async def events(self, stream: GenerationStream, request_id: str) -> AsyncIterator[str]:
        """Yield an answer as the events of a chat completion."""
        name = self.queue.manager.force_model
        yield self._build_chunk_sse(request_id, model=name, role="assistant")
        async for piece in stream.pieces():
            yield self._build_chunk_sse(request_id, model=name, content=piece)
        if stream.has_failed():
            yield error_event(FAILED)
        else:
            reason, usage = stream.finish_reason(), usage_of(stream)
            yield self._build_chunk_sse(request_id, model=name, finish_reason=reason, usage=usage)
        yield END_EVENT


class MMTranscriptionHandler(TranscriptionHandler):
    """
    Handler of `/v1/audio/transcriptions`.

    The model gets the request's `prompt`, or else its own transcription prompt for the request's `language`.
    """

    def __init__(self, queue: RequestQueue):
        super().__init__(queue.manager, queue.state)
        self.queue = queue

    async def handle_request(self, request: Request) -> Response:
        async with request.form(max_files=1) as form:
            self._validate_request(set(form.keys()))
            self.queue.manager.check_name(form.get("model"))
            model, processor = self.queue.manager.served()
            upload = form.get("file")
            if not isinstance(upload, UploadFile):
                raise BadRequest("`file`: expected an audio file as multipart/form-data.")
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            options, prompt = check_fields(fields), prompt_of(fields, model)
            data = await upload.read()
        if processor.feature_extractor is None:
            raise BadRequest("This model has no audio encoder; use /v1/chat/completions.")
        messages = await self.queue.read(audio_question, data, prompt, processor.feature_extractor.sampling_rate)
        stream = await self.queue.begin(messages, options)
        if fields.get("stream", "false").lower() == "true":
            return EventStream(transcript_events(stream), stream)
        text = await stream.text(request.receive)
        if fields.get("response_format") == "text":
            return PlainTextResponse(text)
        return JSONResponse(Transcription(text=text).model_dump(exclude_none=True))


# ---- Requests -------------------------------------------------------------------------------------------------------


def prompt_of(fields: dict[str, str], model: Any) -> str:
    """Return the prompt of a transcription request."""
    prompt = fields.get("prompt")
    if not prompt:
        try:
            return transcription_prompt(model, fields.get("language") or None)
        except ValueError as error:
            raise BadRequest(f"`language`: {error}.") from error
    if len(prompt) > LONGEST_TEXT:
        raise BadRequest(f"`prompt`: expected {LONGEST_TEXT} characters at most, got {len(prompt)}.")
    return check_text("prompt", prompt, "a text")


def audio_question(data: bytes, prompt: str, rate: int) -> list[dict[str, Any]]:
    """Return a conversation that asks about an audio file."""
    if unpacked_size(data, "audio") > UNPACKED_LIMITS["audio"]:
        raise BadRequest(f"`file`: {unpacks_too_large('audio')}")
    try:
        samples = load_audio(data, rate)
    except ValueError as error:
        raise BadRequest(str(error)) from error
    audio = {"type": "audio", "audio": {"array": samples, "sampling_rate": rate}}
    return [{"role": "user", "content": [audio, {"type": "text", "text": prompt}]}]


def check_fields(fields: dict[str, str]) -> dict[str, Any]:
    """Return the generation options of a transcription request."""
    answer_format, temperature = fields.get("response_format", FORMATS[0]), fields.get("temperature")
    if answer_format not in FORMATS:
        raise BadRequest(f"`response_format`: expected {' or '.join(FORMATS)}, got {shortened(answer_format)}.")
    if temperature is None:
        return {}
    try:
        number = float(temperature)
    except ValueError as error:
        raise BadRequest(f"`temperature`: expected a number, got {shortened(temperature)}.") from error
    check_number("temperature", number, RANGES["temperature"])
    return {"temperature": number}


# ---- Events ---------------------------------------------------------------------------------------------------------


def usage_of(stream: GenerationStream) -> CompletionUsage:
    prompt, made = stream.prompt_tokens, len(stream.streamer.tokens)
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=made, total_tokens=prompt + made)


class EventStream(StreamingResponse):
    """Response with the events of an answer, whose generation ends when the client leaves, even before an event."""

    def __init__(self, events: AsyncIterator[str], stream: GenerationStream):
        super().__init__(events, media_type="text/event-stream")
        self.stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.stream.streamer.stop()


def event(data: Any) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def error_event(message: str) -> str:
    return event({"error": {"message": message, "type": "server_error", "param": None, "code": None}})


async def transcript_events(stream: GenerationStream) -> AsyncIterator[str]:
    """Yield an answer as the events of a transcription."""
    text = ""
    async for piece in stream.pieces():
        text += piece
        yield event({"type": "transcript.text.delta", "delta": piece})
    yield error_event(FAILED) if stream.has_failed() else event({"type": "transcript.text.done", "text": text})
    yield END_EVENT
