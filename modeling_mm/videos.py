# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Videos: the choice of their frames, and their frames with times and their audio.

They become parts of images, text and audio in `video_parts`.
"""

import math
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from .audio_files import decode_audio
from .chat import VIDEO_OPTIONS
from .sources import describe, read_bytes
from .video_files import VideoSize, decode_frames, measure_video

DEFAULT_FPS = 1.0
TOLERANCE = 1e-6  # of times, in seconds
# Options that a call takes by name; the others would be taken for variables of a chat template.
FLAT_OPTIONS = tuple(name for name in VIDEO_OPTIONS if name not in ("start", "end"))
ACCEPTED_VIDEOS = "a path, a URL, bytes, a dict with `bytes` or `path`, or a `Video`"


@dataclass(frozen=True)
class VideoOptions:
    """
    Choice of a video's frames, and of what comes with them.

    Args:
        fps: frames for each second, 1 by default. A video of a lower rate gives each of its frames once.
        num_frames: in place of `fps`, the frames in the middle of this many equal sections, each frame once.
        max_frames: more frames than these are an error.
        start, end: section in seconds; the whole video by default.
        load_audio_from_video: False leaves the audio track out; True needs a model with an audio encoder; None takes
            it if there is one.
        frame_times: write the time in front of each frame, `1.5s`; by default unless placeholders are hidden.

    Raises:
        ValueError: for a value that has no meaning, with the expected one.
    """

    fps: float | None = None
    num_frames: int | None = None
    max_frames: int = 64
    start: float = 0.0
    end: float | None = None
    load_audio_from_video: bool | None = None
    frame_times: bool | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and self.num_frames is not None:
            raise ValueError(
                f"got both `fps` ({self.fps!r}) and `num_frames` ({self.num_frames!r}) of a video; pass one"
            )
        for name, value in (("fps", self.fps), ("end", self.end)):
            if value is not None and not (is_number(value) and 0 < value < math.inf):
                raise ValueError(f"`{name}` of a video must be a number above 0, got {value!r}")
        if not (is_number(self.start) and 0 <= self.start < math.inf):
            raise ValueError(f"`start` of a video must be a number of seconds from 0 on, got {self.start!r}")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"`end` of a video must be after its `start` ({self.start:g} s), got {self.end:g} s")
        for name, value in (("num_frames", self.num_frames), ("max_frames", self.max_frames)):
            is_count = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value > 0
            if not is_count and not (name == "num_frames" and value is None):
                raise ValueError(f"`{name}` of a video must be a whole number of at least 1, got {value!r}")
        for name, value in (
            ("load_audio_from_video", self.load_audio_from_video),
            ("frame_times", self.frame_times),
        ):
            if value is not None and not isinstance(value, bool):
                raise ValueError(f"`{name}` of a video must be True or False, got {value!r}")

    def update(self, options: Mapping[str, Any]) -> "VideoOptions":
        """Return these options with others of a part or a call; its `fps` or `num_frames` takes the other's place."""
        given = {name: value for name, value in options.items() if value is not None}
        both = ("fps", "num_frames")
        taken = dict.fromkeys(both) if any(name in given for name in both) else {}
        return replace(self, **{**taken, **given})


def take_options(given: dict[str, Any]) -> VideoOptions:
    """
    Take the options of videos out of those of a call, where they are given flat or in `videos_kwargs`.

    Raises:
        ValueError: for another key of `videos_kwargs`.
    """
    group = given.pop("videos_kwargs", None) or {}
    if unknown := sorted(set(group) - set(VIDEO_OPTIONS)):
        raise ValueError(f"expected `videos_kwargs` among {', '.join(VIDEO_OPTIONS)}; got {', '.join(unknown)} too")
    return VideoOptions().update(group).update({name: given.pop(name) for name in FLAT_OPTIONS if name in given})


@dataclass(frozen=True)
class Video:
    """
    Decoded video.

    Args:
        frames: upright RGB images.
        times: when each is shown, in seconds.
        audio: the audio track, mono, as `{"array", "sampling_rate"}`; None without one.
    """

    frames: Sequence[Image.Image]
    times: Sequence[float]
    audio: dict[str, Any] | None = None


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


# ---- From a source to frames and audio ------------------------------------------------------------------------------


def lower(value: float) -> float:
    """Return a positive number cut to two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.floor(value / unit + 1e-9) * unit


def choose_frames(size: VideoSize, options: VideoOptions) -> list[int]:
    """
    Return the indices of the frames that are shown at the wanted times, each once.

    Raises:
        ValueError: for a section behind the end of the video, and for more frames than the limit.
    """
    end = size.seconds if options.end is None else min(options.end, size.seconds)
    if options.start > 0 and options.start >= size.seconds:
        raise ValueError(f"the section begins at {options.start:g} s, but the video ends at {size.seconds:.2f} s")
    first = max(bisect_right(size.times, options.start + TOLERANCE) - 1, 0)
    length = end - options.start
    if length <= TOLERANCE:
        return [first]
    step = 1 / (options.fps or DEFAULT_FPS) if options.num_frames is None else length / options.num_frames
    start = options.start if options.num_frames is None else options.start + step / 2
    numbers = []
    for number in range(first, len(size.times)):
        # The first of the wanted times at which this frame may be shown.
        index = 0 if number == first else max(0, math.ceil((size.times[number] - TOLERANCE - start) / step))
        until = min((end, *size.times[number + 1 : number + 2]))
        if start + index * step < until - TOLERANCE:
            numbers.append(number)
    numbers = numbers or [first]
    if len(numbers) > options.max_frames:
        raise ValueError(
            f"{len(numbers)} frames would be taken of {length:.1f} s of video, more than the limit of "
            f"{options.max_frames}; pass `num_frames={options.max_frames}` to spread as many over all of it, a lower "
            f"`fps` ({lower(options.max_frames / length):g} fits), a section by `start` and `end`, or a higher "
            "`max_frames`"
        )
    return numbers


def load_video(
    source: Any, options: VideoOptions | None = None, with_audio: bool = True, max_seconds: float = math.inf
) -> Video:
    """
    Load one video.

    Args:
        source: a path, a URL, bytes, the dict of an undecoded `datasets` video; or a `Video`.
        with_audio: decode the audio track, if there is one.
        max_seconds: the longest audio to decode.

    Raises:
        ValueError: for a file that is not a video, is damaged, has no frames, or too many; with the remedy.

    Example:
        >>> video = load_video("clip.mp4", VideoOptions(num_frames=4))
        >>> video.times
        [0.2, 0.6, 1.2, 1.6]
    """
    options = options or VideoOptions()
    if isinstance(source, Video):
        if not source.frames or len(source.frames) != len(source.times):
            raise ValueError(
                f"expected a `Video` with at least one frame and a time for each, got {len(source.frames)} frames and "
                f"{len(source.times)} times"
            )
        return source if with_audio else replace(source, audio=None)
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, dict)):
        raise ValueError(
            f"expected {ACCEPTED_VIDEOS}; got {describe(source)}. Pass decoded frames as "
            "`Video(frames=[...], times=[...])`, a column of `datasets` as `Video(decode=False)`"
        )
    data = read_bytes(source)
    try:
        size = measure_video(data)
        numbers = choose_frames(size, options)
        frames = decode_frames(data, size, numbers)
        audio = load_track(data, options, max_seconds) if with_audio and size.has_audio else None
    except ValueError as error:
        raise ValueError(f"{describe(source)}: {error}") from error
    return Video(frames, [size.times[number] for number in numbers], audio)


def load_track(data: bytes, options: VideoOptions, max_seconds: float = math.inf) -> dict[str, Any] | None:
    """Return the audio of a section, mono; None if the track ends before it."""
    try:
        samples, rate = decode_audio(data, max_seconds)  # (length, channels)
    except ValueError as error:
        raise ValueError(f"{error}; or leave the audio track out by `load_audio_from_video=False`") from error
    last = None if options.end is None else round(options.end * rate)
    section = samples[round(options.start * rate) : last].mean(axis=1)
    return {"array": section, "sampling_rate": rate} if len(section) else None
