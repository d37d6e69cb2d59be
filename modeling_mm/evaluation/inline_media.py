# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Media of a prompt inside a page: small images, short audio and frames of videos as data URLs."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from ..audio import load_audio
from ..chat import VIDEO_OPTIONS
from ..data.chat_row import media_source
from ..images import load_image
from ..modalities import VIDEO
from ..video_parts import video_parts
from ..videos import VideoOptions, load_video

IMAGE_SIDE = 256  # pixels of the longer side
AUDIO_RATE = 16_000  # samples a second
AUDIO_SECONDS = 30.0  # the rest is cut, and the page says so
VIDEO_FRAMES = 8  # of a video, in equal distances


@dataclass(frozen=True)
class InlineMedia:
    """Image or audio of a page: a data URL, or None with a note on the reason."""

    kind: str
    uri: str | None
    note: str = ""


def inline_media(part: dict[str, Any]) -> list[InlineMedia]:
    """
    Return the media of a part of a message: one item, or several frames of a video and its audio.

    Media that cannot be read, or are of another kind, become a note.
    """
    kind = part["type"]
    try:
        if kind == VIDEO:
            return inline_video(part)
        if kind == "image":
            return [inline_image(part)]
        if kind == "audio":
            return [inline_audio(part)]
    except (ValueError, OSError, ImportError) as error:
        # Answers may come from cached states of encoders, whose files have been moved since.
        return [InlineMedia(kind, None, f"{kind} that cannot be read: {error}")]
    return [InlineMedia(kind, None, f"{kind}, which the page does not show")]


def inline_video(part: dict[str, Any]) -> list[InlineMedia]:
    options = VideoOptions().update({name: part[name] for name in VIDEO_OPTIONS if name in part})
    video = load_video(media_source(part), options, options.load_audio_from_video is not False)
    shown = video_parts(video, frame_times=False)
    frames = [inline_image(each) for each in shown if each["type"] == "image"]
    places = np.linspace(0, len(frames) - 1, min(VIDEO_FRAMES, len(frames))).round().astype(int)
    times = f"frames of a video of {len(frames)} from {video.times[0]:.1f} to {video.times[-1]:.1f} seconds"
    audio = [inline_audio(each) for each in shown if each["type"] == "audio"]
    return [*(frames[i] for i in places), InlineMedia(VIDEO, None, f"{len(places)} {times}"), *audio]


def inline_image(part: dict[str, Any]) -> InlineMedia:
    image = load_image(media_source(part))
    assert isinstance(image, Image.Image), "without `is_scaled` every source becomes an image"
    image = image.copy()
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=88)
    return InlineMedia("image", data_url("image/jpeg", data.getvalue()))


def inline_audio(part: dict[str, Any]) -> InlineMedia:
    wave = load_audio(media_source(part), AUDIO_RATE, part.get("sampling_rate"))
    seconds, kept = len(wave) / AUDIO_RATE, wave[: int(AUDIO_SECONDS * AUDIO_RATE)]
    data = io.BytesIO()
    soundfile.write(data, np.clip(kept, -1, 1), AUDIO_RATE, format="FLAC", subtype="PCM_16")
    note = f"the first {AUDIO_SECONDS:g} of {seconds:.0f} seconds" if len(kept) < len(wave) else ""
    return InlineMedia("audio", data_url("audio/flac", data.getvalue()), note)


def data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
