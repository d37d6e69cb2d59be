# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
The handlers of `transformers serve` for our model. What is theirs stays theirs: loading, the thread that generates,
the shape of the answers. What is ours, and why:

- Requests are checked, and what they name is read, before they are handled; theirs open any file and any address.
- What is wrong with a request, down to a picture that is none, is answered with 400; theirs answers 500.
- Answers are as long as the model's positions allow where a request names no length; theirs asks for 1024 tokens,
  which a decoder with learned positions may not have.
- The tokenizer stands in for the processor in generation, whose stop strings read the vocabulary.
- A stream ends with `[DONE]`, and an error in it is valid JSON, as OpenAI's clients want it.
- A transcription is an answer to a question about a sound; theirs hands the samples to the processor as its first
  argument, which are pictures in ours, and takes the prompt for a part of the text.
"""

import asyncio
import copy
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from jinja2 import TemplateError
from openai.types.audio import Transcription
from starlette.datastructures import UploadFile
from transformers import GenerationConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import _StreamError

from ..audio import load_audio
from .chat_request import RANGES, check_chat, check_number
from .sources import Policy

ERROR_EVENT = 'data: {"error": "'
FORMATS = ("json", "text")


class OneModel(ModelManager):
    """A manager of the one model that it was made with; clients can neither load nor list another."""

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:
        return [{"id": self.force_model, "object": "model", "created": 0, "owned_by": "modeling_mm"}]

    def check_name(self, name: str) -> None:
        if name != self.force_model:
            raise HTTPException(404, f"`model`: there is no {name!r} here; this server has {self.force_model!r}.")


def fit(config: GenerationConfig, model: Any, inputs: Any) -> None:
    """
    Sets how many tokens are generated to what the model has positions for, where it is not set.

    Raises:
        ValueError: where the prompt is too long, or more is asked for than fits.
    """
    if model.config.text_position_encoding != "learned":
        config.max_new_tokens = config.max_new_tokens or model.config.text_config.n_positions
        return
    positions, used = model.config.text_config.n_positions, inputs["input_ids"].shape[-1]
    if used >= positions:
        raise ValueError(f"The prompt takes {used} tokens, and the model has {positions} positions; shorten it.")
    if config.max_new_tokens is None:
        config.max_new_tokens = positions - used
    if config.max_new_tokens > positions - used:
        raise ValueError(
            f"{config.max_new_tokens} tokens are asked for after a prompt of {used}, and the model has {positions} "
            f"positions; ask for {positions - used} at most, or shorten the prompt."
        )


def event(data: Any) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def error_event(message: str) -> str:
    return event({"error": {"message": message, "type": "server_error", "param": None, "code": None}})


async def as_events(stream: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    """The stream of transformers with its errors as JSON, and with an end."""
    try:
        async for text in stream:
            before, marker, message = text.rpartition(ERROR_EVENT)
            yield before + error_event(message.removesuffix('"}\n\n')) if marker else text
        yield "data: [DONE]\n\n"
    finally:
        await stream.aclose()  # type: ignore[attr-defined]  # so that a client that has gone ends the generation


class MMChatHandler(ChatCompletionHandler):
    """`/v1/chat/completions`."""

    def __init__(self, *args, policy: Policy, **kwargs):
        super().__init__(*args, **kwargs)
        self.policy = policy

    async def handle_request(self, body: dict, request_id: str) -> Response:
        try:
            self._validate_request(body)
            body = await asyncio.to_thread(check_chat, body, self.policy)
            if body.get("model") is not None:
                self.model_manager.check_name(body["model"])
            return await super().handle_request(body, request_id)
        except (ValueError, TemplateError) as error:
            raise HTTPException(400, str(error)) from error

    def _build_generation_config(self, body, model_generation_config, use_cb=False) -> GenerationConfig:
        config = super()._build_generation_config(body, model_generation_config, use_cb=use_cb)
        if body.get("max_completion_tokens") is not None:  # transformers 5.17 leaves it out
            config.max_new_tokens = body["max_completion_tokens"]
        elif body.get("max_tokens") is None:
            config.max_new_tokens = None  # what fits; see `fit`
        if body.get("temperature"):
            config.do_sample = True  # without it a temperature does nothing
        return config

    def _streaming(self, request_id, model, processor, model_id, inputs, gen_config, **kwargs) -> StreamingResponse:
        fit(gen_config, model, inputs)
        response = super()._streaming(request_id, model, processor.tokenizer, model_id, inputs, gen_config, **kwargs)
        response.body_iterator = as_events(response.body_iterator)
        return response

    async def _non_streaming(self, request_id, model, processor, model_id, inputs, gen_config, **kwargs) -> Response:
        fit(gen_config, model, inputs)
        return await super()._non_streaming(
            request_id, model, processor.tokenizer, model_id, inputs, gen_config, **kwargs
        )


class MMTranscriptionHandler(TranscriptionHandler):
    """
    `/v1/audio/transcriptions`.

    Args:
        questions: what the model is asked about the sound, by the request's `language`; the first where it names none.
            A request's `prompt` is asked instead.
    """

    def __init__(self, *args, questions: dict[str, str], **kwargs):
        super().__init__(*args, **kwargs)
        self.questions = questions

    async def handle_request(self, request: Request) -> Response:
        async with request.form() as form:
            self._validate_request(set(form.keys()))
            upload = form.get("file")
            if not isinstance(upload, UploadFile):
                raise HTTPException(400, "`file`: expected a sound file as multipart/form-data.")
            data = await upload.read()
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
        try:
            return await self.transcribe(data, fields)
        except (ValueError, TemplateError) as error:
            raise HTTPException(400, str(error)) from error

    async def transcribe(self, data: bytes, fields: dict[str, str]) -> Response:
        manager, answer_format = self.model_manager, fields.get("response_format", "json")
        manager.check_name(fields.get("model", manager.force_model))
        if answer_format not in FORMATS:
            raise ValueError(f"`response_format`: expected {' or '.join(FORMATS)}, got {answer_format!r}.")
        question = self.question(fields)
        name = manager.process_model_name(manager.force_model)
        model, processor = manager.load_model_and_processor(name)
        if processor.feature_extractor is None:
            raise ValueError("This model does not hear; ask it by /v1/chat/completions.")
        rate = processor.feature_extractor.sampling_rate
        samples = await asyncio.to_thread(load_audio, data, rate)
        content = [
            {"type": "audio", "audio": {"array": samples, "sampling_rate": rate}},
            {"type": "text", "text": question},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        config = copy.deepcopy(model.generation_config)
        config.max_new_tokens = None
        if "temperature" in fields:
            temperature = float(fields["temperature"])
            check_number("temperature", temperature, RANGES["temperature"])
            config.temperature, config.do_sample = temperature or None, temperature > 0
        fit(config, model, inputs)
        generator = self.generation_state.get_manager(name)
        if fields.get("stream", "false").lower() == "true":
            queue, streamer = generator.generate_streaming(model, processor.tokenizer, inputs, config, "")
            return StreamingResponse(transcript_events(queue, streamer), media_type="text/event-stream")
        text, *_ = await generator.generate_non_streaming(model, processor.tokenizer, inputs, config, "")
        if answer_format == "text":
            return PlainTextResponse(text)
        return JSONResponse(Transcription(text=text).model_dump(exclude_none=True))

    def question(self, fields: dict[str, str]) -> str:
        if fields.get("prompt"):
            return fields["prompt"]
        language = fields.get("language") or next(iter(self.questions))
        if language not in self.questions:
            raise ValueError(f"`language`: expected {', '.join(self.questions)}, got {language!r}.")
        return self.questions[language]


async def transcript_events(queue: asyncio.Queue, streamer: Any) -> AsyncGenerator[str, None]:
    """What is generated, as OpenAI's clients read it."""
    text = ""
    try:
        while (piece := await queue.get()) is not None:
            if isinstance(piece, _StreamError):
                yield error_event(piece.msg)
                return
            text += piece
            yield event({"type": "transcript.text.delta", "delta": piece})
        yield event({"type": "transcript.text.done", "text": text})
        yield "data: [DONE]\n\n"
    finally:
        streamer.cancel()
