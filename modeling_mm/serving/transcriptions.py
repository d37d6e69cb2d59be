# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
`/v1/audio/transcriptions`: the answer to a question about audio.

The model gets the request's `prompt`, or else its own transcription prompt for the request's `language`. A model that
was converted from Whisper takes the `prompt` for what was said before, detects the language, and has timestamps.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.datastructures import FormData, UploadFile

from ..prompts import transcription_languages, transcription_prompt
from ..whisper_generation import TASKS, is_whisper
from .answering import GenerationStream
from .chat_request import LONGEST_TEXT
from .completions import usage_of
from .events import END_EVENT, FAILED, EventStream, error_event, event, whole_texts
from .fields import TRANSCRIPTION_FIELDS
from .forms import LIST, form_numbers, form_texts, is_form
from .handlers import RequestQueue
from .limits import BadRequest
from .preparing import Media
from .sampling import Sampling
from .speech import TIMED_FORMATS, SpeechTranscriber, check_granularities, subtitles
from .values import check_sampling, check_text, shortened

FORMATS = ("json", "text", "verbose_json")
NO_FILE = "`file`: expected an audio file as multipart/form-data."
GRANULARITIES = "timestamp_granularities"


class TranscriptionHandler:
    """Handler of `/v1/audio/transcriptions`, and of `/v1/audio/translations`, into English."""

    def __init__(self, queue: RequestQueue):
        self.queue = queue
        self.transcriber = SpeechTranscriber(queue) if is_whisper(queue.manager.served()[0]) else None

    async def respond(self, request: Request, task: str = TASKS[0]) -> Response:
        """
        Answer a request, streamed or not.

        Args:
            task: "transcribe", or "translate" of a multilingual model.

        Raises:
            BadRequest: for a fault in the request.
            HTTPException: for another model, and for a form that cannot be read.
        """
        if not is_form(request):
            raise BadRequest(NO_FILE)
        async with request.form(max_files=1) as form:
            fields = check_form(form, (*FORMATS, *TIMED_FORMATS) if self.transcriber else FORMATS)
            self.queue.manager.check_name(fields.get("model"))
            model, processor = self.queue.manager.served()
            upload = form.get("file")
            if not isinstance(upload, UploadFile):
                raise BadRequest(NO_FILE)
            sampling, prompt = check_temperature(fields), prompt_of(fields, model)
            data = await upload.read()
        if task != TASKS[0] and not (self.transcriber and self.transcriber.pipeline.is_multilingual):
            raise BadRequest("`model`: it does not translate speech; use /v1/audio/transcriptions.")
        if self.transcriber is not None:
            wanted = {**fields, "temperature": sampling.temperature or 0.0}
            return spoken_response(await self.transcriber.transcribe(data, wanted, task, request), fields)
        if processor.feature_extractor is None:
            raise BadRequest("`model`: it has no audio encoder; use /v1/chat/completions, or a model with one.")
        audio = {"type": "audio"}
        messages = [{"role": "user", "content": [audio, {"type": "text", "text": prompt}]}]
        prepared = await self.queue.prepare(messages, [Media("file", data, audio)])
        streams = self.queue.answer(prepared, sampling)
        if fields.get("stream") == "true":
            return EventStream(transcript_events(streams[0]), streams)
        (text,) = await whole_texts(streams, request.receive)
        form_of_answer = fields.get("response_format", FORMATS[0])
        if form_of_answer == "text":
            return PlainTextResponse(text)
        if form_of_answer == "json":
            return JSONResponse({"text": text, "usage": {"type": "tokens", **as_audio_usage(streams[0])}})
        language = fields.get("language") or next(iter(transcription_languages(model)))
        verbose = {"task": "transcribe", "language": language, "duration": prepared.audio_seconds, "text": text}
        return JSONResponse({**verbose, "usage": {"type": "duration", "seconds": prepared.audio_seconds}})


def check_form(form: FormData, formats: Sequence[str] = FORMATS) -> dict[str, Any]:
    """
    Return the fields of a form beside its file.

    Args:
        formats: those that the model can answer in.

    Raises:
        BadRequest: for a field that is unknown, not served, or there twice, and for a wrong value.
    """
    fields: dict[str, Any] = dict(form_texts(form, TRANSCRIPTION_FIELDS, ("file",)))
    answer_format, stream = fields.get("response_format", FORMATS[0]), fields.get("stream", "false").lower()
    if answer_format in (*TIMED_FORMATS, "diarized_json") and answer_format not in formats:
        raise BadRequest(
            f"`response_format`: {answer_format} needs timestamps or speakers, and this model gives none; expected "
            f"{', '.join(formats)}."
        )
    if answer_format not in formats:
        raise BadRequest(f"`response_format`: expected {', '.join(formats)}, got {shortened(answer_format)}.")
    wanted = [check_text(GRANULARITIES, value, "a text") for value in form.getlist(GRANULARITIES + LIST)]
    wanted += [fields[GRANULARITIES]] if fields.get(GRANULARITIES) else []
    if wanted and TIMED_FORMATS[0] not in formats:
        raise BadRequest(f"`{GRANULARITIES}`: this model gives no timestamps and no speakers; leave it out.")
    check_granularities(wanted, answer_format)
    fields[GRANULARITIES] = wanted
    if stream not in ("true", "false"):
        raise BadRequest(f"`stream`: expected true or false, got {shortened(stream)}.")
    return {**fields, "stream": stream}


def spoken_response(transcript: dict[str, Any], fields: dict[str, Any]) -> Response:
    """Return a transcript of a converted Whisper in the form that a request asks for."""
    text, answer_format = transcript["text"], fields.get("response_format", FORMATS[0])
    if fields["stream"] == "true":
        return EventStream(whole_transcript_events(text), [])
    if answer_format in TIMED_FORMATS:
        return PlainTextResponse(subtitles(transcript["segments"], answer_format))
    if answer_format == "text":
        return PlainTextResponse(text)
    usage = {"type": "duration", "seconds": transcript["duration"]}
    return JSONResponse({**(transcript if answer_format == "verbose_json" else {"text": text}), "usage": usage})


async def whole_transcript_events(text: str) -> AsyncIterator[str]:
    """Yield the events of a transcript that is complete."""
    yield event({"type": "transcript.text.delta", "delta": text})
    yield event({"type": "transcript.text.done", "text": text})
    yield END_EVENT


def check_temperature(fields: dict[str, Any]) -> Sampling:
    """Return the generation options of a transcription request."""
    return check_sampling(form_numbers(fields, ("temperature",)))


def prompt_of(fields: dict[str, Any], model: Any) -> str:
    """Return the prompt of a transcription request."""
    prompt, languages = fields.get("prompt"), transcription_languages(model)
    language = fields.get("language") or None
    if language is not None and language not in languages:
        raise BadRequest(f"`language`: expected a language among {', '.join(languages)}, got {shortened(language)}.")
    if not prompt:
        return transcription_prompt(model, language)
    if len(prompt) > LONGEST_TEXT:
        raise BadRequest(f"`prompt`: expected {LONGEST_TEXT} characters at most, got {len(prompt)}.")
    return prompt


def as_audio_usage(stream: GenerationStream) -> dict[str, int]:
    """Return the usage of an answer in the names of this route."""
    usage = usage_of([stream])
    return {
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
        "total_tokens": usage["total_tokens"],
    }


async def transcript_events(stream: GenerationStream) -> AsyncIterator[str]:
    """Yield an answer as the events of a transcription."""
    text = ""
    async for piece in stream.pieces():
        text += piece
        yield event({"type": "transcript.text.delta", "delta": piece})
    yield error_event(FAILED) if stream.has_failed() else event({"type": "transcript.text.done", "text": text})
    yield END_EVENT
