# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
`/v1/audio/speech`: audio that the model writes as codes.

Its row shares the running batch of all other answers. WAV and PCM are sent in chunks while codes are generated; a file
of FLAC or MP3 is decoded once, when all codes are there.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import Response

from ..audio_streamer import AUDIO
from ..prompts import fill_prompt, speech_prompt
from ..utils.audio_writing import encode_audio
from .answering import GenerationStream
from .audio_output import FORMATS, STREAMED, StreamEncoder, check_voice
from .chat_request import LONGEST_TEXT
from .events import AnswerStream, whole_texts
from .fields import SPEECH_FIELDS
from .handlers import RequestQueue
from .limits import BadRequest
from .media_streamer import AudioStreamer
from .sampling import Sampling
from .text_streamer import TokenStreamer
from .values import check_sampling, check_text, shortened

OPTIONS = ("guidance_scale", "seed", "temperature", "top_k", "top_p")


class SpeechHandler:
    """Handler of `/v1/audio/speech`."""

    def __init__(self, queue: RequestQueue):
        self.queue = queue

    async def respond(self, request: Request, body: Mapping[str, Any]) -> Response:
        """
        Say a text.

        Raises:
            BadRequest: for a fault in the request, and for a text whose speech does not fit into the model.
            HTTPException: for another model.
        """
        self.queue.manager.check_name(body.get("model"))
        SPEECH_FIELDS.check(body)
        self.queue.check_writes(AUDIO)
        text, audio_format, sampling = check_speech(body)
        question = fill_prompt(speech_prompt(self.queue.engine.model), text=text)
        prepared = await self.queue.prepare([{"role": "user", "content": question}])
        if audio_format not in STREAMED:
            (stream,) = self.queue.answer(prepared, sampling, TokenStreamer)
            return Response(await self.file(stream, request, audio_format), media_type=FORMATS[audio_format])
        (stream,) = self.queue.answer(prepared, sampling, partial(AudioStreamer, self.queue.writer))
        chunks = self.chunks(stream, audio_format)
        first = await anext(chunks)  # a fault before it gets its status
        return AnswerStream(continued(first, chunks), [stream], FORMATS[audio_format])

    async def file(self, stream: GenerationStream, request: Request, audio_format: str) -> bytes:
        """Return the whole file of an answer."""
        await whole_texts([stream], request.receive)
        self.check_complete(stream)
        parts = await self.queue.use_model(self.queue.writer.decode_media, stream.streamer.tokens)
        samples, rate = next(part[AUDIO] for part in parts if part["type"] == AUDIO)
        return await asyncio.to_thread(encode_audio, samples, rate, audio_format)

    async def chunks(self, stream: GenerationStream, audio_format: str) -> AsyncIterator[bytes]:
        """
        Yield an answer as the bytes of a stream.

        Raises:
            BadRequest: at its end, if it was cut. A client then finds its stream broken off, never short.
        """
        encoder = StreamEncoder(self.queue.writer.written[AUDIO].codec.sampling_rate, audio_format)
        async for samples in stream.pieces():
            yield encoder.encode(samples)
        self.check_complete(stream)
        yield encoder.encode(np.zeros(0, np.float32), is_last=True)

    def check_complete(self, stream: GenerationStream) -> None:
        """Raise the error of an answer that has failed, and a `BadRequest` for audio that was cut."""
        stream.generated.result()
        written = self.queue.writer.written[AUDIO]
        if written.tokens.end_id not in stream.streamer.tokens:
            most = stream.config.max_new_tokens
            seconds = most / written.tokens.codebooks / written.codec.rate
            raise BadRequest(
                f"`input`: its speech does not fit into the {most} tokens, {seconds:.1f} s, that are left behind it; "
                "send shorter texts, such as single sentences."
            )


def check_speech(body: Mapping[str, Any]) -> tuple[str, str, Sampling]:
    """
    Return the text of a request, the format of its audio, and the options of its generation.

    Raises:
        BadRequest: for a value that is wrong or not served.
    """
    text = check_text("input", body.get("input"), "a text")
    if not 0 < len(text) <= LONGEST_TEXT:
        raise BadRequest(f"`input`: expected 1 to {LONGEST_TEXT} characters, got {len(text)}.")
    check_voice("voice", body.get("voice"))
    given = body.get("response_format")
    audio_format = next(iter(FORMATS)) if given is None else given
    if not isinstance(audio_format, str) or audio_format not in FORMATS:
        raise BadRequest(f"`response_format`: expected {', '.join(FORMATS)}, got {shortened(given)}.")
    sampling = check_sampling({name: body[name] for name in OPTIONS if name in body})
    return text, audio_format, replace(sampling, outputs=(AUDIO,))


async def continued(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
