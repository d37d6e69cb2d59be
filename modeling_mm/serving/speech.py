# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Transcripts of models that were converted from Whisper: window by window, with timestamps and languages."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import Request
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from ..pipeline_whisper import MMWhisperPipeline
from ..sources import SourcePolicy
from .handlers import RequestQueue
from .limits import BadRequest
from .preparing import Media, decode_media
from .values import shortened

GRANULARITIES = ("segment", "word")
TIMED_FORMATS = ("srt", "vtt")


def decode_speech(processor: Any, media: Media, policy: SourcePolicy) -> np.ndarray:
    """Return the samples of a request's audio, (length,); for a worker."""
    decode_media(processor, [media], policy)
    return media.part["audio"]["array"]


class SpeechTranscriber:
    """
    Transcriber of a converted Whisper.

    Long audio is cut into windows, between which the answers of other requests go on.
    """

    def __init__(self, queue: RequestQueue):
        self.queue = queue
        model, processor = queue.manager.served()
        self.pipeline = MMWhisperPipeline(model=model, processor=processor, device=model.device)

    async def transcribe(self, data: bytes, fields: Mapping[str, Any], task: str, request: Request) -> dict[str, Any]:
        """
        Transcribe the bytes of a file.

        Args:
            fields: of the request, checked; `temperature` is a number.
            task: "transcribe" or "translate".

        Returns:
            `text`, `language` and `duration`, and `segments` or `words` if the request's fields ask for them.

        Raises:
            BadRequest: for a file that cannot be read.
        """
        media = Media("file", data, {"type": "audio"})
        samples = await self.queue.workers.run(decode_speech, media, self.queue.policy)
        windows = await asyncio.to_thread(lambda: list(self.pipeline.preprocess(samples)))
        kinds = granularities(fields)
        options = {
            "return_timestamps": "word" if "word" in kinds else bool(kinds),
            "return_language": self.pipeline.is_multilingual,
            "language": fields.get("language") or None,
            "task": task,
            "prompt": fields.get("prompt"),
            "temperature": fields["temperature"],
            "num_beams": 1,
        }
        outputs = []
        for window in windows:
            if await request.is_disconnected():
                break
            outputs.append(await self.queue.use_model(partial(self.pipeline.forward, window, **options)))
        duration = len(samples) / self.pipeline.feature_extractor.sampling_rate
        return {**self.named(outputs, kinds, duration), "task": task, "duration": duration}

    def named(self, outputs: list[dict[str, Any]], kinds: Sequence[str], duration: float) -> dict[str, Any]:
        """Return the text of windows, and what is in it, in the names of this route."""
        is_multilingual = self.pipeline.is_multilingual
        decode = partial(self.pipeline.postprocess, return_language=is_multilingual)
        whole = decode([dict(output) for output in outputs], return_timestamps=bool(kinds))
        spoken = next((chunk["language"] for chunk in whole.get("chunks", []) if chunk.get("language")), "english")
        named: dict[str, Any] = {"text": whole["text"].strip(), "language": TO_LANGUAGE_CODE.get(spoken, spoken)}
        if "segment" in kinds:
            named["segments"] = [
                {"id": number, **timed(chunk, duration), "text": chunk["text"]}
                for number, chunk in enumerate(whole["chunks"])
            ]
        if "word" in kinds:
            words = decode([dict(output) for output in outputs], return_timestamps="word")["chunks"]
            named["words"] = [{"word": chunk["text"].strip(), **timed(chunk, duration)} for chunk in words]
        return named


def timed(chunk: dict[str, Any], duration: float) -> dict[str, float]:
    """Return the seconds of a chunk; one whose end was not said ends with the audio."""
    start, end = chunk["timestamp"]
    return {"start": start or 0.0, "end": duration if end is None else end}


def granularities(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what a request wants timestamps of."""
    answer_format = fields.get("response_format")
    if answer_format == "verbose_json":
        return tuple(fields.get("timestamp_granularities") or GRANULARITIES[:1])
    return GRANULARITIES[:1] if answer_format in TIMED_FORMATS else ()


def check_granularities(wanted: Sequence[str], answer_format: str) -> None:
    """
    Check the `timestamp_granularities` of a request.

    Raises:
        BadRequest: for an unknown one, and for a format without timestamps.
    """
    for each in wanted:
        if each not in GRANULARITIES:
            expected = " or ".join(GRANULARITIES)
            raise BadRequest(f"`timestamp_granularities`: expected {expected}, got {shortened(each)}.")
    if wanted and answer_format != "verbose_json":
        raise BadRequest("`timestamp_granularities`: they need `response_format` verbose_json.")


def subtitles(segments: Sequence[Mapping[str, Any]], answer_format: str) -> str:
    """Return segments as a file of subtitles, `srt` or `vtt`."""
    mark = "," if answer_format == "srt" else "."
    blocks = [] if answer_format == "srt" else ["WEBVTT\n"]
    for number, segment in enumerate(segments, 1):
        times = " --> ".join(clock(segment[edge], mark) for edge in ("start", "end"))
        lines = [str(number)] * (answer_format == "srt") + [times, segment["text"].strip().replace("-->", "->"), ""]
        blocks.append("\n".join(lines))
    return "\n".join(blocks)


def clock(seconds: float, mark: str) -> str:
    """Return seconds as `00:00:00,000`."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{mark}{milliseconds % 1000:03}"
