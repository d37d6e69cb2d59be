# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
The handlers of `transformers serve` for our model. What is theirs stays theirs: loading, the thread that generates,
the shape of the answers. What is ours, and why:

- Requests are checked, and what they name is read, before they are handled; theirs open any file and any address.
- What is wrong with a request, down to a picture that is none, is answered with 400 before an answer is begun; theirs
  answers 500. Faults of the server's own are logged and answered with 500; their text stays here.
- Nothing that takes long runs on the event loop: sources are fetched by threads of their own, so that slow ones hold
  up nobody else; messages are read by one thread, since tokenizers are not made for more, and unpacked media add up.
- Answers are as long as the model's positions allow where a request names no length; theirs asks for 1024 tokens,
  which a decoder with learned positions may not have.
- An answer ends before its stop string, and when its client has gone, streamed or not.
- A stream ends with `[DONE]`, and an error in it is valid JSON, as OpenAI's clients want it.
- A transcription is an answer to a question about a sound; theirs hands the samples to the processor as its first
  argument, which are pictures in ours, and takes the prompt for a part of the text.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from openai.types.audio import Transcription
from openai.types.completion_usage import CompletionUsage
from starlette.datastructures import UploadFile
from starlette.types import Receive, Scope, Send
from transformers import GenerationConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import GenerationState

from ..audio import load_audio
from .answering import Reading, encode, generate, make_config
from .chat_request import (
    LONGEST_TEXT,
    RANGES,
    Media,
    check_chat,
    check_number,
    check_text,
    kind_of,
    parts_of,
    read_media,
    unpacks_too_large,
)
from .sources import FETCH_SECONDS, MAX_SAMPLES, WEB, BadRequest, Policy, unpacked_size

FAILED = "The server failed at this request; its log says why. It goes on serving others."
FORMATS = ("json", "text")
FETCHERS = 16
END_EVENT = "data: [DONE]\n\n"


class OneModel(ModelManager):
    """A manager of the one model that it was made with; clients can neither load nor list another."""

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        return [{"id": self.force_model, "object": "model", "created": 0, "owned_by": "modeling_mm"}]

    def check_name(self, name: Any) -> None:
        if name is not None and name != self.force_model:
            raise HTTPException(
                404, f"`model`: there is no {kind_of(name)} here; this server has {self.force_model!r}."
            )

    def served(self) -> tuple[Any, Any]:
        """The model and its processor."""
        return self.load_model_and_processor(self.process_model_name(self.force_model))


class Desk:
    """
    Where both handlers have their requests read and answered.

    Args:
        most_tokens: how many tokens are generated for a request at most; by default as many as the model has positions
    """

    def __init__(self, manager: OneModel, state: GenerationState, policy: Policy, most_tokens: int | None = None):
        self.manager, self.state, self.policy, self.most_tokens = manager, state, policy, most_tokens
        self.fetchers = ThreadPoolExecutor(FETCHERS, "fetch")
        self.reader = ThreadPoolExecutor(1, "read")

    async def read(self, work: Callable, *arguments: Any) -> Any:
        """Work on what a request holds, one request after the other."""
        return await asyncio.get_running_loop().run_in_executor(self.reader, work, *arguments)

    async def gather(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        The messages with all pictures and sounds in them.

        Raises:
            BadRequest: for what cannot be had, or not in time, whether a name, a connection or a free thread is late.
        """
        deadline = time.monotonic() + FETCH_SECONDS
        if not any(isinstance(part, Media) and part.source.startswith(WEB) for part in parts_of(messages)):
            return await self.read(read_media, messages, self.policy, deadline)
        loop = asyncio.get_running_loop()
        fetched = loop.run_in_executor(self.fetchers, read_media, messages, self.policy, deadline)
        try:
            return await asyncio.wait_for(fetched, FETCH_SECONDS + 1)
        except asyncio.TimeoutError as error:
            raise BadRequest(f"`messages`: what its URLs name took longer than {FETCH_SECONDS:g} s.") from error

    def begin(
        self, inputs: Any, config: GenerationConfig, seed: int | None = None, stops: Sequence[str] = ()
    ) -> Reading:
        """Has an answer generated, once the requests before it have theirs."""
        model, processor = self.manager.served()
        generator = self.state.get_manager(self.manager.process_model_name(self.manager.force_model))
        reading = Reading(processor.tokenizer, config, inputs["input_ids"].shape[-1], stops)
        reading.start(generator.submit(generate, model, inputs, config, seed, reading.answer))  # type: ignore[attr-defined]
        return reading


class MMChatHandler(ChatCompletionHandler):
    """`/v1/chat/completions`."""

    def __init__(self, desk: Desk):
        super().__init__(desk.manager, desk.state)
        self.desk = desk

    async def answer(self, request: Request, body: dict[str, Any]) -> Response:
        """
        Raises:
            BadRequest: for what is wrong with the request.
            HTTPException: for a field that nobody knows and a model that is not here.
        """
        self._validate_request(body)
        self.desk.manager.check_name(body.get("model"))
        model, processor = self.desk.manager.served()
        chat = await asyncio.to_thread(check_chat, body)
        messages = await self.desk.gather(chat["messages"])
        inputs = await self.desk.read(encode, model, processor, messages)
        config = make_config(chat, model, inputs["input_ids"].shape[-1], self.desk.most_tokens)
        reading = self.desk.begin(inputs, config, chat.get("seed"), chat["stop"])
        if chat.get("stream"):
            return AnswerStream(self.chunks(reading, request.state.request_id), reading)
        text = await reading.whole(request.receive)
        name, reason = self.desk.manager.force_model, reading.finish_reason()
        return JSONResponse(
            self._build_completion(request.state.request_id, text, name, finish_reason=reason, usage=usage_of(reading))
        )

    async def chunks(self, reading: Reading, request_id: str) -> AsyncIterator[str]:
        """What is generated, as OpenAI's clients read it."""
        name = self.desk.manager.force_model
        yield self._build_chunk_sse(request_id, model=name, role="assistant")
        async for piece in reading.pieces():
            yield self._build_chunk_sse(request_id, model=name, content=piece)
        if reading.has_failed():
            yield error_event(FAILED)
        else:
            reason, usage = reading.finish_reason(), usage_of(reading)
            yield self._build_chunk_sse(request_id, model=name, finish_reason=reason, usage=usage)
        yield END_EVENT


class MMTranscriptionHandler(TranscriptionHandler):
    """
    `/v1/audio/transcriptions`.

    Args:
        questions: what the model is asked about the sound, by the request's `language`; the first where it names none.
            A request's `prompt` is asked instead.
    """

    def __init__(self, desk: Desk, questions: dict[str, str]):
        super().__init__(desk.manager, desk.state)
        self.desk, self.questions = desk, questions

    async def handle_request(self, request: Request) -> Response:
        async with request.form(max_files=1) as form:
            self._validate_request(set(form.keys()))
            self.desk.manager.check_name(form.get("model"))
            upload = form.get("file")
            if not isinstance(upload, UploadFile):
                raise BadRequest("`file`: expected a sound file as multipart/form-data.")
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            asked, question = check_fields(fields), self.question(fields)
            data = await upload.read()
        model, processor = self.desk.manager.served()
        if processor.feature_extractor is None:
            raise BadRequest("This model does not hear; ask it by /v1/chat/completions.")
        messages = await self.desk.read(spoken, data, question, processor.feature_extractor.sampling_rate)
        inputs = await self.desk.read(encode, model, processor, messages)
        config = make_config(asked, model, inputs["input_ids"].shape[-1], self.desk.most_tokens)
        reading = self.desk.begin(inputs, config)
        if fields.get("stream", "false").lower() == "true":
            return AnswerStream(transcript_events(reading), reading)
        text = await reading.whole(request.receive)
        if fields.get("response_format") == "text":
            return PlainTextResponse(text)
        return JSONResponse(Transcription(text=text).model_dump(exclude_none=True))

    def question(self, fields: dict[str, str]) -> str:
        if len(fields.get("prompt", "")) > LONGEST_TEXT:
            raise BadRequest(f"`prompt`: expected {LONGEST_TEXT} characters at most, got {len(fields['prompt'])}.")
        if fields.get("prompt"):
            return check_text("prompt", fields["prompt"], "a text")
        language = fields.get("language") or next(iter(self.questions))
        if language not in self.questions:
            raise BadRequest(f"`language`: expected {', '.join(self.questions)}, got {kind_of(language)}.")
        return self.questions[language]


# ---- Requests -------------------------------------------------------------------------------------------------------


def spoken(data: bytes, question: str, rate: int) -> list[dict[str, Any]]:
    """A question about a sound as messages."""
    if unpacked_size(data, "audio") > MAX_SAMPLES:
        raise BadRequest(f"`file`: {unpacks_too_large('audio')}")
    try:
        samples = load_audio(data, rate)
    except ValueError as error:
        raise BadRequest(str(error)) from error
    sound = {"type": "audio", "audio": {"array": samples, "sampling_rate": rate}}
    return [{"role": "user", "content": [sound, {"type": "text", "text": question}]}]


def check_fields(fields: dict[str, str]) -> dict[str, Any]:
    """What a form says of how to generate."""
    answer_format, temperature = fields.get("response_format", FORMATS[0]), fields.get("temperature")
    if answer_format not in FORMATS:
        raise BadRequest(f"`response_format`: expected {' or '.join(FORMATS)}, got {kind_of(answer_format)}.")
    if temperature is None:
        return {}
    try:
        number = float(temperature)
    except ValueError as error:
        raise BadRequest(f"`temperature`: expected a number, got {kind_of(temperature)}.") from error
    check_number("temperature", number, RANGES["temperature"])
    return {"temperature": number}


# ---- Events ---------------------------------------------------------------------------------------------------------


def usage_of(reading: Reading) -> CompletionUsage:
    asked, made = reading.prompt_tokens, len(reading.answer.tokens)
    return CompletionUsage(prompt_tokens=asked, completion_tokens=made, total_tokens=asked + made)


class AnswerStream(StreamingResponse):
    """Events of an answer, which ends when its client has gone, even before the first event."""

    def __init__(self, events: AsyncIterator[str], reading: Reading):
        super().__init__(events, media_type="text/event-stream")
        self.reading = reading

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.reading.answer.stop()


def event(data: Any) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def error_event(message: str) -> str:
    return event({"error": {"message": message, "type": "server_error", "param": None, "code": None}})


async def transcript_events(reading: Reading) -> AsyncIterator[str]:
    """What is generated, as OpenAI's clients read it."""
    text = ""
    async for piece in reading.pieces():
        text += piece
        yield event({"type": "transcript.text.delta", "delta": piece})
    yield error_event(FAILED) if reading.has_failed() else event({"type": "transcript.text.done", "text": text})
    yield END_EVENT
