# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Decoding of video files: the frames that are wanted, upright and with their times, or a ValueError.

PyAV brings FFmpeg, of which only the readers of MP4 and Matroska are used, as for audio (see `audio_av`).
"""

import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image

from .audio_av import check_boxes, check_elements, reader_of

EXTRA = '`pip install "modeling_mm[video]"`'
# Hours of video and audio have fewer.
MOST_PACKETS = 1 << 21
NO_FRAMES = "the video track of the file holds no frames; check how it was recorded or cut"
# Transforms to an upright image by the signs of a display matrix, whose rows are (a, b, _) and (c, d, _):
# a point (x, y) is shown at (a x + c y, b x + d y).
UPRIGHT = {
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@dataclass(frozen=True)
class VideoSize:
    """
    Size of a video file, from its headers and packets.

    Args:
        width, height: of a frame as it is stored, in pixels.
        times: when each frame is shown, in seconds from the start of the file, in order.
        seconds: when the last frame ends.
        keys: indices of the frames that can be decoded without those before them.
        has_audio: True if there is an audio track with samples.
    """

    width: int
    height: int
    times: tuple[float, ...]
    seconds: float
    keys: tuple[int, ...]
    has_audio: bool

    def frames_to_decode(self, numbers: Sequence[int]) -> int:
        """Return the number of frames that are decoded to get those of the given indices."""
        return sum(group[-1] - key + 1 for key, group in self.by_key(numbers))

    def by_key(self, numbers: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Return sorted indices of frames in groups, each behind the index of the key frame to start at."""

        def key_of(number: int) -> int:
            return self.keys[max(bisect_right(self.keys, number) - 1, 0)] if self.keys else 0

        return [(key, list(group)) for key, group in groupby(numbers, key_of)]


def import_av() -> Any:
    """Return PyAV, or raise a `ValueError` that names the extra."""
    try:  # the Hub's loader takes imports elsewhere for requirements
        import av
    except ImportError as error:
        raise ValueError(
            f"videos are decoded by PyAV, which is not installed; {EXTRA}, or pass frames as images"
        ) from error
    return av


@contextmanager
def open_video(data: bytes) -> Iterator[tuple[Any, Any]]:
    """
    Open a file and its first video track; errors of FFmpeg become a `ValueError`.

    Raises:
        ValueError: for a file that is not a video, is cut short or damaged, or has no video track.
    """
    reader = reader_of(data)
    if reader is None:
        raise ValueError(
            f"expected a video in an MP4 or Matroska file (mp4, mov, m4v, webm, mkv), got {len(data)} bytes of "
            "another format; convert it (`ffmpeg -i FILE FILE.mp4`), or pass an image as an image part and audio as "
            "an audio part"
        )
    (check_boxes if reader == "mov" else check_elements)(data)
    av = import_av()
    try:
        with av.open(io.BytesIO(data), format=reader) as container:
            covers = av.stream.Disposition.attached_pic
            tracks = [track for track in container.streams.video if not track.disposition & covers]
            if not tracks:
                raise ValueError("the file has no video track; if it is audio, pass it as an audio part")
            if tracks[0].codec_context is None:
                raise ValueError(
                    "the codec of the video track is not one that PyAV decodes; convert the file to H.264 or VP9"
                )
            # The size may grow in the middle of a track.
            most = {} if Image.MAX_IMAGE_PIXELS is None else {"max_pixels": str(Image.MAX_IMAGE_PIXELS)}
            tracks[0].codec_context.options = {"err_detect": "explode", **most}
            yield container, tracks[0]
    except av.error.EOFError as error:
        raise ValueError(NO_FRAMES) from error
    except av.error.FFmpegError as error:
        raise ValueError(
            f"the video of the file is damaged and cannot be decoded ({error.strerror}); save or download it again"
        ) from error


def shown_packets(container: Any, *tracks: Any) -> Iterator[Any]:
    """
    Yield the packets of tracks that are shown; an edit list may leave some out.

    Raises:
        ValueError: for more packets than a file may have.
    """
    for number, packet in enumerate(container.demux(*tracks)):
        if number >= MOST_PACKETS:
            raise ValueError(f"the file has more than {MOST_PACKETS} packets; cut it into shorter files")
        if packet.pts is not None and packet.size and not packet.is_discard:
            yield packet


def measure_video(data: bytes) -> VideoSize:
    """
    Return the size of a video from its packets, which are not decoded.

    Raises:
        ValueError: as `open_video`, for a track without frames, and for a file with too many.
    """
    with open_video(data) as (container, track):
        shown, has_audio = [], False
        for packet in shown_packets(container, track, *container.streams.audio[:1]):
            if packet.stream_index == track.index:
                shown.append((packet.pts, packet.duration or 0, packet.is_keyframe))  # without the bytes
            else:
                has_audio = True
        if not shown:
            raise ValueError(NO_FRAMES)
        shown.sort()
        start = (container.start_time or 0) / import_av().time_base
        times = tuple(float(pts * track.time_base) - start for pts, _, _ in shown)
        ends = [float((pts + length) * track.time_base) - start for pts, length, _ in shown if length]
        step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
        return VideoSize(
            width=track.codec_context.width,
            height=track.codec_context.height,
            times=times,
            seconds=max(max(ends, default=0.0), times[-1] + (0.0 if ends else step)),
            keys=tuple(number for number, (_, _, is_key) in enumerate(shown) if is_key),
            has_audio=has_audio,
        )


def decode_frames(data: bytes, size: VideoSize, numbers: Sequence[int]) -> list[Image.Image]:
    """
    Decode some frames of a video as upright RGB images.

    Args:
        size: as `measure_video` returns it.
        numbers: sorted indices of the frames.

    Raises:
        ValueError: for a damaged frame.
    """
    found: list[Image.Image] = []
    with open_video(data) as (container, track):
        pts = sorted(packet.pts for packet in shown_packets(container, track))
        for key, group in size.by_key(numbers):
            wanted = [pts[number] for number in group]
            found += read_from(container, track, pts[key], pts[0], wanted)
    return found


def read_from(container: Any, track: Any, key: int, first: int, wanted: list[int]) -> list[Image.Image]:
    """
    Return the frames that are shown at times of a track.

    Args:
        key: time of the key frame before them. If it does not serve, as in a group of frames that refers to one
            before it, they are decoded from `first` on.
    """
    error = import_av().error.FFmpegError
    if key > first:
        try:
            container.seek(key, stream=track)
            if frames := frames_at(container.decode(track), wanted):
                return frames
        except error:  # decoded from the start it may be whole
            pass
    container.seek(first, stream=track)
    frames = frames_at(container.decode(track), wanted)
    if not frames:
        raise ValueError("the video is damaged: its first frames are missing; save or download it again")
    return frames


def frames_at(frames: Iterable[Any], wanted: Sequence[int]) -> list[Image.Image]:
    """Return the last frame at or before each time, or nothing if the frames begin after the first time."""
    found: list[Image.Image] = []
    shown: Any = None
    for frame in frames:
        while len(found) < len(wanted) and frame.pts is not None and frame.pts > wanted[len(found)]:
            if shown is None:
                return []
            found.append(upright(shown))
        if len(found) == len(wanted):
            return found
        shown = frame if frame.pts is not None else shown
    if shown is None:
        return []
    return found + [upright(shown) for _ in wanted[len(found) :]]


def upright(frame: Any) -> Image.Image:
    """
    Return a frame as an RGB image, turned as its display matrix says.

    Raises:
        ValueError: for a frame that the decoder marks as damaged.
    """
    if frame.is_corrupt:
        raise ValueError(
            f"the video is damaged: its frame at {float(frame.time):.2f} s is incomplete; save or download it again"
        )
    image = frame.to_image()
    sides = {str(each.type).rpartition(".")[2]: each for each in frame.side_data}
    if (matrix := sides.get("DISPLAYMATRIX")) is None:
        return image
    values = np.frombuffer(bytes(matrix), dtype=np.int32)[[0, 1, 3, 4]].astype(np.float64)
    signs = np.where(np.abs(values) > np.abs(values).max() / 2, np.sign(values), 0).astype(int)
    turn = UPRIGHT.get((int(signs[0]), int(signs[1]), int(signs[2]), int(signs[3])))
    return image if turn is None else image.transpose(turn)
