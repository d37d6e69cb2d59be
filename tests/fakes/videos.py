"""Real videos for the tests: a square that moves from left to right and changes its color, with a tone."""

import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

RATE = 16_000
COLORS = ("red", "lime", "blue", "yellow")
KINDS = {
    "h264": ("mp4", "libx264", "aac"),
    "mpeg4": ("mp4", "mpeg4", "aac"),
    "vp9": ("webm", "libvpx-vp9", "libopus"),
    "mkv": ("matroska", "mpeg4", "aac"),
}
TICKS = 600  # a second


def color_at(number: int) -> tuple[int, int, int]:
    """The color of a video's frame of some index."""
    return Image.new("RGB", (1, 1), COLORS[number % len(COLORS)]).getpixel((0, 0))


def frame_of(number: int, size: tuple[int, int]) -> np.ndarray:
    """A gray frame (H, W, 3) whose upper half has the color of its number, but for a moving white square."""
    width, height = size
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[: height // 2] = color_at(number)
    left = (number * 4) % (width - 8)
    pixels[height - 12 : height - 4, left : left + 8] = 255
    return pixels


def make_video(
    kind: str = "mpeg4",
    times: list[float] | None = None,
    tone: float | None = 440.0,
    size: tuple[int, int] = (64, 48),
    keyframes: int = 5,
    seconds: float | None = None,
) -> bytes:
    """
    A video file of 2 s at 5 frames a second, unless `times` (in s) say otherwise; `tone=None` leaves the audio out.

    `keyframes`: frames from one that can be decoded alone to the next. `seconds`: of the tone.
    """
    av = pytest.importorskip("av")
    container_format, codec, audio_codec = KINDS[kind]
    times = [number / 5 for number in range(10)] if times is None else times
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        track = container.add_stream(codec, rate=5, options={"g": str(keyframes)})
        track.width, track.height, track.pix_fmt = *size, "yuv420p"
        track.time_base = track.codec_context.time_base = Fraction(1, TICKS)
        track.codec_context.gop_size = keyframes
        heard = None if tone is None else container.add_stream(audio_codec, rate=48_000, layout="mono")
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(frame_of(number, size))
            frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
        if heard is not None:
            length = round(48_000 * (times[-1] + 0.2 if seconds is None else seconds))
            wave = (0.3 * np.sin(np.arange(length) * 2 * np.pi * tone / 48_000)).astype(np.float32)
            sound = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
            sound.sample_rate = 48_000
            container.mux(heard.encode(sound))
            container.mux(heard.encode(None))
    return file.getvalue()


def turned(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An MP4 file with another display matrix (a, b, c, d) in the header of its first track, as phones write it."""
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    numbers = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], dtype=">i4")
    return data[:place] + numbers.tobytes() + data[place + 36 :]
