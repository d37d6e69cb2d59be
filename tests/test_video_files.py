"""Frames of real video files: their times and pixels as they were encoded, upright; damaged files are refused."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from modeling_mm import video_files
from modeling_mm.video_files import VideoSize, decode_frames, frames_at, measure_video
from tests.fakes.videos import KINDS, color_at, make_video, turned

TIMES = [number / 5 for number in range(10)]
UNEVEN = [0, 0.1, 0.5, 0.55, 1.7, 3.0]


def is_frame(image: Image.Image, number: int) -> bool:
    """True for a frame of the test video with this index, which its color and the place of its square tell."""
    pixels = np.asarray(image).astype(int)
    left = (number * 4) % (image.width - 8)
    color = np.abs(pixels[4:12].reshape(-1, 3).mean(0) - color_at(number)).max()
    square = pixels[image.height - 11 : image.height - 5, left + 1 : left + 7].mean()
    return image.mode == "RGB" and color < 12 and square > 230


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_has_the_time_and_the_pixels_that_were_encoded(kind):
    data = make_video(kind)
    size = measure_video(data)
    assert size.times == pytest.approx(TIMES, abs=0.002)
    assert 1.8 < size.seconds < 2.002  # PyAV 14.1 gives the last frame a length of one tick
    assert (size.width, size.height, size.has_audio, size.keys[0]) == (64, 48, True, 0)
    frames = decode_frames(data, size, range(10))
    assert len(frames) == 10 and all(is_frame(frame, number) for number, frame in enumerate(frames))


@pytest.mark.parametrize("kind", KINDS)
def test_single_frames_are_found_from_the_key_frame_before_them(kind):
    data = make_video(kind)
    size = measure_video(data)
    assert len(size.keys) > 1
    for numbers in ([0], [9], [3, 4, 8], [1, 7]):
        frames = decode_frames(data, size, numbers)
        assert [is_frame(frame, number) for frame, number in zip(frames, numbers, strict=True)] == [True] * len(frames)
        assert size.frames_to_decode(numbers) < 10


@pytest.mark.parametrize("kind", ["h264", "vp9"])
def test_a_variable_frame_rate_keeps_the_time_of_each_frame(kind):
    data = make_video(kind, times=UNEVEN)
    size = measure_video(data)
    assert size.times == pytest.approx(UNEVEN, abs=0.002)
    frames = decode_frames(data, size, [0, 2, 3, 5])
    assert all(is_frame(frame, number) for frame, number in zip(frames, [0, 2, 3, 5], strict=True))


def test_frames_to_decode_count_from_the_key_frame():
    size = VideoSize(64, 48, tuple(range(12)), 12.0, (0, 5, 10), False)
    assert size.by_key([0, 3, 6, 7, 11]) == [(0, [0, 3]), (5, [6, 7]), (10, [11])]
    assert size.frames_to_decode([0, 3, 6, 7, 11]) == 4 + 3 + 2
    assert VideoSize(1, 1, (0.0, 1.0), 2.0, (), False).by_key([1]) == [(0, [1])]


# A frame's upper half is colored: where it is after the turn.
TURNS = {
    "as it is": ((1, 0, 0, 1), (64, 48), "top"),
    "clockwise": ((0, 1, -1, 0), (48, 64), "right"),
    "counterclockwise": ((0, -1, 1, 0), (48, 64), "left"),
    "half": ((-1, 0, 0, -1), (64, 48), "bottom"),
    "upside down": ((1, 0, 0, -1), (64, 48), "bottom"),
}


@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_turned_as_the_camera_was_held(turn):
    matrix, size, side = TURNS[turn]
    data = turned(make_video("h264"), matrix)
    (frame,) = decode_frames(data, measure_video(data), [1])
    assert frame.size == size
    width, height = size
    places = {"top": (width // 2, 2), "bottom": (width // 2, height - 2), "left": (2, height // 2)}
    colors = {name: frame.getpixel(place) for name, place in (places | {"right": (width - 2, height // 2)}).items()}
    colored = [name for name, color in colors.items() if np.abs(np.subtract(color, color_at(1))).max() < 25]
    assert side in colored and len([name for name in colored if name in (side, OPPOSITE[side])]) == 1


OPPOSITE = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}


def test_a_mirrored_frame_is_mirrored_back():
    data = make_video("h264")
    (plain,) = decode_frames(data, measure_video(data), [2])
    mirrored = turned(data, (-1, 0, 0, 1))
    (frame,) = decode_frames(mirrored, measure_video(mirrored), [2])
    assert np.array_equal(np.asarray(frame), np.asarray(plain)[:, ::-1])


def test_a_video_without_an_audio_track_says_so():
    assert not measure_video(make_video("h264", tone=None)).has_audio


# ---- Refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_refused(kind):
    data = make_video(kind)
    for part in range(1, 20):
        with pytest.raises(ValueError):
            measure_video(data[: len(data) * part // 20])


@pytest.mark.parametrize("kind", ["h264", "vp9"])
def test_damaged_frames_are_refused_or_decoded_but_never_missing(kind):
    data, generator, refused = make_video(kind, tone=None), np.random.default_rng(0), 0
    whole = measure_video(data)
    for _ in range(40):
        place = int(generator.integers(60, len(data) - 60))
        damaged = data[:place] + generator.bytes(24) + data[place + 24 :]
        try:
            size = measure_video(damaged)
            assert len(decode_frames(damaged, size, range(len(size.times)))) == len(size.times)
        except ValueError as error:
            assert str(error)
            refused += 1
    assert refused > 10 and len(whole.times) == 10


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def audio_alone() -> bytes:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        track = container.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux([*track.encode(frame), *track.encode(None)])
    return file.getvalue()


def without_frames(kind: str) -> bytes:
    """A video track without frames, in `mkv` beside audio."""
    av = pytest.importorskip("av")
    container_format, codec, audio_codec = KINDS[kind]
    file = io.BytesIO()
    with av.open(file, "w", format=container_format) as container:
        track = container.add_stream(codec, rate=5)
        track.width = track.height = 32
        track.pix_fmt = "yuv420p"
        if container_format == "matroska":
            heard = container.add_stream(audio_codec, rate=48_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 48_000
            container.mux([*heard.encode(frame), *heard.encode(None)])
        container.start_encoding()
    return file.getvalue()


REFUSED = {
    "text": (lambda: b"not a video", "expected a video in an MP4 or Matroska file .* got 11 bytes of another format"),
    "an image": (png, r"convert it \(`ffmpeg -i FILE FILE.mp4`\), or pass an image as an image part"),
    "audio alone": (audio_alone, "the file has no video track; if it is audio, pass it as an audio part"),
    "no frames, mkv": (lambda: without_frames("mkv"), "the video track of the file holds no frames"),
    "no frames, webm": (lambda: without_frames("vp9"), "the video track of the file holds no frames"),
    "two files": (lambda: make_video("h264") * 2, "another file begins at byte"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_files_are_refused_with_the_reason(case):
    make, reason = REFUSED[case]
    with pytest.raises(ValueError, match=reason):
        measure_video(make())


def test_a_cover_of_a_song_is_not_a_video():
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        cover = container.add_stream("png", rate=1)
        cover.width = cover.height = 8
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic.value
        track = container.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48_000
        packet = av.Packet(png())
        packet.stream, packet.pts, packet.dts = cover, 0, 0
        container.mux(packet)
        container.mux([*track.encode(frame), *track.encode(None)])
    with pytest.raises(ValueError, match="no video track"):
        measure_video(file.getvalue())


def test_a_file_of_nothing_but_packets_is_refused(monkeypatch):
    monkeypatch.setattr(video_files, "MOST_PACKETS", 20)
    with pytest.raises(ValueError, match="the file has more than 20 packets; cut it into shorter files"):
        measure_video(make_video("h264"))


def test_frames_before_the_first_one_are_not_made_up():
    class Frame:
        is_corrupt, side_data = False, ()

        def __init__(self, pts):
            self.pts, self.time = pts, pts

        def to_image(self):
            return self.pts

    frames = [Frame(4), Frame(6), Frame(8)]
    assert frames_at(iter(frames), [3]) == [] == frames_at(iter([]), [3])
    assert frames_at(iter(frames), [4, 5, 7, 9, 12]) == [4, 4, 6, 8, 8]
    frames[1].is_corrupt = True
    with pytest.raises(ValueError, match=r"its frame at 6\.00 s is incomplete"):
        frames_at(iter(frames), [7])


def test_without_pyav_the_error_names_the_extra(monkeypatch):
    data = make_video("h264")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r'not installed; `pip install "modeling_mm\[video\]"`, or pass frames'):
        measure_video(data)
