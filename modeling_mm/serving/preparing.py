# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
From a checked conversation to the inputs of the model: read its media, decode them, tokenize.

Cost is bounded by what a request announces, before it is paid: bytes, pixels before and after the processor's resize,
seconds of audio, frames of videos, characters for the model's positions.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jinja2 import TemplateError
from PIL import Image

from ..audio import load_audio
from ..audio_files import measure_audio
from ..chat import CODES, VIDEO_OPTIONS
from ..evaluation.answering import free_positions, prompt_inputs
from ..images import DAMAGED_FILE_ERRORS, check_resize, decode_image, resized_pixels
from ..modalities import VIDEO
from ..sources import WEB, SourceError, SourcePolicy, check_size, read_bytes
from ..video_files import VideoSize, measure_video
from ..videos import VideoOptions, choose_frames, load_video
from .limits import BadRequest

# Values of a request's audio, all channels, and pixels of its images as the processor resizes them.
MOST_VALUES, MOST_RESIZED = 1 << 27, 1 << 25
# Pixels of a request's videos that are decoded, also of frames that are not shown: 70 s at 30 frames of 1920x1080.
MOST_DECODED = 1 << 32


@dataclass(frozen=True)
class Media:
    """
    Image, audio or video of a request.

    Args:
        where: its place in the request
        source: a URL, base64 or a name; or the bytes
        part: of the conversation, which gets the decoded content
    """

    where: str
    source: str | bytes
    part: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """
    Inputs of `generate`, of one row, as numpy arrays: they may come from another process.

    Args:
        audio_seconds: of all audio in the conversation
    """

    inputs: dict[str, np.ndarray]
    audio_seconds: float = 0.0


@dataclass(frozen=True)
class TextRoom:
    """
    Room for the text of a conversation.

    Args:
        positions: of the model
        characters: that these can hold, if each is a token of the most characters
    """

    positions: float = float("inf")
    characters: float = float("inf")

    @classmethod
    def of(cls, model: Any, processor: Any) -> "TextRoom":
        """Return the room of a model: no limit without learned positions, or if its tokenizer drops text."""
        tokenizer, positions = processor.tokenizer, free_positions(model.config, 0)
        is_whole = tokenizer.is_fast and tokenizer.backend_tokenizer.normalizer is None
        return cls(positions, positions * max(map(len, tokenizer.get_vocab()))) if is_whole else cls()

    def check(self, messages: Iterable[dict[str, Any]]) -> None:
        """Raise a `BadRequest` for a conversation with more characters than can become tokens of the model."""
        count = sum(map(count_characters, content_parts(messages)))
        if count > self.characters:
            raise BadRequest(
                f"The prompt has {count} characters, of which {self.characters:.0f} at most can fit, and the model "
                f"has {self.positions:.0f} positions; shorten it, or start over."
            )


def content_parts(messages: Iterable[dict[str, Any]]) -> list[Any]:
    """Return the contents that are texts, and the parts of others."""
    contents = [message["content"] for message in messages]
    return [part for content in contents for part in ([content] if isinstance(content, str) else content)]


def count_characters(part: Any) -> int:
    """Return the characters of a text or of a part, with those of codes, which are tokens too."""
    return len(part) if isinstance(part, str) else len(part.get("text") or "") + len(part.get(CODES) or "")


def prepare(
    processor: Any,
    messages: list[dict[str, Any]],
    media: Sequence[Media],
    policy: SourcePolicy,
    room: TextRoom,
) -> Prepared:
    """
    Return the inputs of a conversation, up to where its answer begins.

    Raises:
        BadRequest: for media and messages that are refused, or cost too much; the reason holds nothing of the server.
    """
    room.check(messages)
    seconds = decode_media(processor, media, policy)
    return Prepared(encode(processor, messages), seconds)


def encode(processor: Any, messages: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """
    Return the inputs of a conversation in our chat form.

    Raises:
        BadRequest: for messages that the processor or the template refuses.
    """
    try:
        return {name: tensor.numpy() for name, tensor in prompt_inputs(processor, [messages]).items()}
    except (ValueError, TemplateError) as error:
        raise BadRequest(str(error)) from error


# ---- Media ----------------------------------------------------------------------------------------------------------


def fetch(media: Sequence[Media], policy: SourcePolicy, deadline: float) -> list[Media]:
    """
    Return media with the content of all URLs.

    Args:
        deadline: the time in `time.monotonic()` by which they must be read

    Raises:
        BadRequest: for a URL that is refused, unreadable or late, and for more bytes than a request may hold.
    """
    left, fetched = policy.max_bytes, []
    for each in media:
        if isinstance(each.source, str) and each.source.startswith(WEB):
            data = read(each, policy, left, deadline)
            left -= len(data)
            each = replace(each, source=data)
        fetched.append(each)
    return fetched


def read(media: Media, policy: SourcePolicy, left: int, deadline: float | None = None) -> bytes:
    try:
        data = read_bytes(media.source, policy, left, deadline)
        check_size("the media of this request", len(data), left)  # bytes that were there already
        return data
    except SourceError as error:
        raise BadRequest(f"`{media.where}`: {error}.") from error


def decode_media(processor: Any, media: Sequence[Media], policy: SourcePolicy) -> float:
    """
    Decode media into their parts of the conversation; return the seconds of all audio.

    Raises:
        BadRequest: for a source that is refused or unreadable, and for more than a request may hold.
    """
    left, seconds = Left(policy.max_bytes, policy.max_pixels, MOST_RESIZED, MOST_VALUES, MOST_DECODED), 0.0
    for each in media:
        data = read(each, policy, left.size)
        left.size -= len(data)
        try:
            if each.part["type"] == "image" and processor.image_processor is not None:
                left.take_image(data, processor.image_processor, policy)
                each.part["image"] = decode_image(data)
            elif each.part["type"] == "audio" and processor.feature_extractor is not None:
                left.take_audio(data)
                rate = processor.feature_extractor.sampling_rate
                samples = load_audio(data, rate, max_seconds=policy.max_seconds - seconds)
                seconds += len(samples) / rate
                each.part["audio"] = {"array": samples, "sampling_rate": rate}
            elif each.part["type"] == VIDEO and processor.image_processor is not None:
                seconds += decode_video(processor, each.part, data, left, policy, policy.max_seconds - seconds)
            else:
                each.part["bytes"] = data  # the processor says that it takes none
        except ValueError as error:
            raise BadRequest(f"`{each.where}`: {error}.") from error
    return seconds


def decode_video(
    processor: Any, part: dict[str, Any], data: bytes, left: "Left", policy: SourcePolicy, max_seconds: float
) -> float:
    """
    Decode a video into its part, whose options say which frames; return the seconds of its audio.

    Raises:
        ValueError: for a video that cannot be shown, and for more than a request may hold.
    """
    options = VideoOptions().update({name: part[name] for name in VIDEO_OPTIONS if name in part})
    size = measure_video(data)
    left.take_frames(size, choose_frames(size, options), processor.image_processor, policy)
    is_heard = processor.feature_extractor is not None and options.load_audio_from_video is not False
    if is_heard and size.has_audio:
        left.take_audio(data)
    video = part[VIDEO] = load_video(data, options, is_heard, max_seconds)
    return 0.0 if video.audio is None else len(video.audio["array"]) / video.audio["sampling_rate"]


@dataclass
class Left:
    """Room that is left for the rest of a request's media."""

    size: int
    pixels: int
    resized: int
    values: int
    decoded: int

    def take_image(self, data: bytes, image_processor: Any, policy: SourcePolicy) -> None:
        """Count an image by its header; raise a `ValueError` if it is too large. A broken one fails to decode."""
        try:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
        except (*DAMAGED_FILE_ERRORS, Image.DecompressionBombError):
            return
        if max(width, height) > policy.max_side:
            raise ValueError(f"an image of {width}x{height} is longer than {policy.max_side} pixels; crop it")
        self.pixels -= width * height
        if self.pixels < 0:
            raise ValueError(
                f"expected {policy.max_pixels} pixels of images at most in a request, once they are unpacked; make "
                "them smaller"
            )
        check_resize(image_processor, width, height, self.resized)
        self.resized -= int(resized_pixels(image_processor, width, height))

    def take_frames(self, size: VideoSize, numbers: Sequence[int], image_processor: Any, policy: SourcePolicy) -> None:
        """Count the frames of a video by its headers, likewise."""
        if max(size.width, size.height) > policy.max_side:
            raise ValueError(
                f"a video of {size.width}x{size.height} is longer than {policy.max_side} pixels; shrink it"
            )
        pixels = size.width * size.height
        self.pixels -= pixels * len(numbers)
        if self.pixels < 0:
            raise ValueError(
                f"{len(numbers)} frames of {size.width}x{size.height}: expected {policy.max_pixels} pixels of images "
                "at most in a request, once they are unpacked; take fewer (`num_frames`), or shrink the video"
            )
        self.decoded -= pixels * size.frames_to_decode(numbers)
        if self.decoded < 0:
            raise ValueError(
                f"{size.frames_to_decode(numbers)} frames of {size.width}x{size.height} would be decoded: expected "
                f"{MOST_DECODED} pixels of videos at most in a request; cut the video, or shrink it"
            )
        for _ in numbers:
            check_resize(image_processor, size.width, size.height, self.resized)
            self.resized -= int(resized_pixels(image_processor, size.width, size.height))

    def take_audio(self, data: bytes) -> None:
        """Count the values of audio in all channels by its header, likewise; `load_audio` counts its seconds."""
        size = measure_audio(data)
        self.values -= size.samples * size.channels
        if self.values < 0:
            raise ValueError(
                f"expected {MOST_VALUES} values of audio at most in a request, once they are unpacked; make them "
                "smaller"
            )
