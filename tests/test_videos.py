"""Frames that are taken of a video, their times, its audio, and the limits."""

import base64
import math
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from modeling_mm import videos
from modeling_mm.chat import VIDEO_OPTIONS
from modeling_mm.video_files import VideoSize
from modeling_mm.videos import Video, VideoOptions, choose_frames, load_video, take_options
from tests.fakes.videos import make_video

TIMES = tuple(number / 5 for number in range(10))
EVEN = VideoSize(64, 48, TIMES, 2.0, (0, 5), True)
UNEVEN = VideoSize(64, 48, (0.0, 0.1, 0.5, 0.55, 1.7, 3.0), 3.2, (0,), True)

CHOICES = {
    "one a second": (EVEN, {}, [0.0, 1.0]),
    "two a second, as they are shown then": (EVEN, {"fps": 2}, [0.0, 0.4, 1.0, 1.4]),
    "the video's rate": (EVEN, {"fps": 5}, list(TIMES)),
    "more than it has": (EVEN, {"fps": 1000.0}, list(TIMES)),
    "less than one": (EVEN, {"fps": 0.1}, [0.0]),
    "by number": (EVEN, {"num_frames": 3}, [0.2, 1.0, 1.6]),
    "one by number": (EVEN, {"num_frames": 1}, [1.0]),
    "all by number": (EVEN, {"num_frames": 10}, list(TIMES)),
    "a greater number": (EVEN, {"num_frames": 50}, list(TIMES)),
    "from within": (EVEN, {"start": 1.05, "fps": 5}, [1.0, 1.2, 1.4, 1.6, 1.8]),
    "from a frame on": (EVEN, {"start": 1.2, "fps": 5}, [1.2, 1.4, 1.6, 1.8]),
    "a section": (EVEN, {"start": 0.5, "end": 1.1, "fps": 10}, [0.4, 0.6, 0.8, 1.0]),
    "a section by number": (EVEN, {"start": 1.0, "end": 1.4, "num_frames": 2}, [1.0, 1.2]),
    "beyond the end": (EVEN, {"start": 1.5, "end": 100}, [1.4]),
    "uneven, each once": (UNEVEN, {"fps": 2}, [0.0, 0.5, 0.55, 1.7, 3.0]),
    "uneven, one a second": (UNEVEN, {"fps": 1}, [0.0, 0.55, 1.7, 3.0]),
    "a single frame without a length": (VideoSize(8, 8, (0.0,), 0.0, (0,), False), {}, [0.0]),
    "frames that begin late": (VideoSize(8, 8, (0.5, 1.0), 1.5, (0,), False), {"fps": 4}, [0.5, 1.0]),
}


@pytest.mark.parametrize("case", CHOICES)
def test_frames_are_those_that_are_shown_at_the_wanted_times(case):
    size, options, times = CHOICES[case]
    assert [size.times[number] for number in choose_frames(size, VideoOptions(**options))] == times


@pytest.mark.parametrize("rate", [24, 25, 30, 30000 / 1001, 60])
def test_rounded_times_of_usual_rates_neither_lose_nor_double_frames(rate):
    times = tuple(round(number / rate, 3) for number in range(int(20 * rate)))  # webm rounds to milliseconds
    size = VideoSize(8, 8, times, 20.0, (0,), False)
    chosen = choose_frames(size, VideoOptions(fps=1))
    assert len(chosen) == 20 and all(abs(size.times[n] - k) < 1.01 / rate for k, n in enumerate(chosen))
    assert len(choose_frames(size, VideoOptions(num_frames=20))) == 20


def test_a_long_video_is_refused_and_what_the_error_says_helps():
    size = VideoSize(64, 48, tuple(n / 25 for n in range(25 * 600)), 600.0, (0,), True)
    with pytest.raises(ValueError, match=r"600 frames would be taken of 600\.0 s of video, more than the limit of 64"):
        choose_frames(size, VideoOptions())
    with pytest.raises(ValueError, match=r"`num_frames=64`.*lower `fps` \(0\.1 fits\), a section by `start`"):
        choose_frames(size, VideoOptions())
    for options in ({"num_frames": 64}, {"fps": 0.1}, {"start": 60, "end": 120}, {"max_frames": 600}):
        assert 0 < len(choose_frames(size, VideoOptions(**options))) <= options.get("max_frames", 64)
    with pytest.raises(ValueError, match="100 frames would be taken"):
        choose_frames(size, VideoOptions(num_frames=100))
    with pytest.raises(ValueError, match=r"begins at 700 s, but the video ends at 600\.00 s"):
        choose_frames(size, VideoOptions(start=700))


@pytest.mark.parametrize(
    ("value", "cut"), [(0.1067, 0.1), (2.96, 2.9), (64 / 93.2, 0.68), (20.0, 20.0), (0.0089, 0.0089)]
)
def test_the_rate_that_fits_is_rounded_down(value, cut):
    assert videos.lower(value) == pytest.approx(cut)


WRONG = {
    "both": ({"fps": 1, "num_frames": 2}, r"both `fps` \(1\) and `num_frames` \(2\)"),
    "no rate": ({"fps": 0}, "`fps` of a video must be a number above 0, got 0"),
    "endless rate": ({"fps": math.inf}, "`fps` of a video must be a number above 0, got inf"),
    "text": ({"fps": "2"}, "`fps` of a video must be a number above 0, got '2'"),
    "no frames": ({"num_frames": 0}, "`num_frames` of a video must be a whole number of at least 1, got 0"),
    "half a frame": ({"num_frames": 1.5}, "whole number of at least 1, got 1.5"),
    "no limit": ({"max_frames": None}, "`max_frames` of a video must be a whole number of at least 1, got None"),
    "before the start": ({"start": -1}, "`start` of a video must be a number of seconds from 0 on, got -1"),
    "not a number": ({"start": math.nan}, "from 0 on, got nan"),
    "the end before the start": ({"start": 3, "end": 2}, r"must be after its `start` \(3 s\), got 2 s"),
    "a number for a choice": ({"load_audio_from_video": 1}, "must be True or False, got 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_of_no_meaning_are_refused(case):
    options, reason = WRONG[case]
    with pytest.raises(ValueError, match=reason):
        VideoOptions(**options)


def test_options_of_a_call_are_taken_out_of_the_others():
    given = {"fps": 2, "max_frames": None, "padding": True, "start": "of a template", "videos_kwargs": {"end": 9}}
    assert take_options(given) == VideoOptions(fps=2, end=9)
    assert given == {"padding": True, "start": "of a template"}
    with pytest.raises(ValueError, match=r"expected `videos_kwargs` among fps, .*; got size too"):
        take_options({"videos_kwargs": {"size": 3}})
    assert tuple(field.name for field in fields(VideoOptions)) == VIDEO_OPTIONS
    assert VideoOptions(fps=2).update({"num_frames": 3}) == VideoOptions(num_frames=3)


# ---- Loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["h264", "vp9"])
def test_a_video_has_frames_times_and_audio(kind):
    video = load_video(make_video(kind), VideoOptions(fps=5))
    assert len(video.frames) == 10 and video.times == pytest.approx(TIMES, abs=0.002)
    samples, rate = video.audio["array"], video.audio["sampling_rate"]
    assert rate == 48_000 and samples.ndim == 1 and len(samples) == pytest.approx(2 * rate, rel=0.05)
    heard = samples[rate // 2 : rate // 2 + rate]
    assert np.argmax(np.abs(np.fft.rfft(heard * np.hanning(rate)))) == 440


def test_a_section_cuts_the_audio_too():
    data = make_video("h264")
    part = load_video(data, VideoOptions(start=0.5, end=1.25, num_frames=2))
    assert len(part.audio["array"]) == 36_000 and part.times == pytest.approx([0.6, 1.0])
    whole = load_video(data).audio["array"]
    assert np.array_equal(part.audio["array"], whole[24_000:60_000])
    short = make_video("h264", seconds=0.5)
    assert load_video(short, VideoOptions(start=1.5)).audio is None


def test_the_audio_is_left_out_without_a_track_and_on_demand():
    assert load_video(make_video("h264", tone=None)).audio is None
    assert load_video(make_video("h264"), with_audio=False).audio is None
    with pytest.raises(ValueError, match=r"lasts 2 s, more than the limit of 1 s.*`load_audio_from_video=False`"):
        load_video(make_video("h264"), max_seconds=1)


def test_sources(tmp_path):
    data, path = make_video("mpeg4"), tmp_path / "clip.mp4"
    path.write_bytes(data)
    url = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    expected = load_video(data)
    for source in (str(path), path, path.as_uri(), url, bytearray(data), {"bytes": data}, {"path": str(path)}):
        video = load_video(source)
        assert video.times == expected.times and video.frames[0].tobytes() == expected.frames[0].tobytes()
    assert load_video(expected) is expected and load_video(expected, with_audio=False).audio is None


def test_errors_name_the_source(tmp_path):
    path = tmp_path / "notes.mp4"
    path.write_text("these are notes")
    with pytest.raises(ValueError, match=r"notes\.mp4': expected a video in an MP4 or Matroska file"):
        load_video(path)
    with pytest.raises(ValueError, match=r"missing\.mp4': expected an existing file"):
        load_video("missing.mp4")
    with pytest.raises(ValueError, match=r"expected a path, a URL.*got an object of type list\. Pass decoded frames"):
        load_video([Image.new("RGB", (2, 2))])
    with pytest.raises(ValueError, match="got 1 frames and 0 times"):
        load_video(Video([Image.new("RGB", (2, 2))], []))
    with pytest.raises(ValueError, match="got 0 frames"):
        load_video(Video([], []))
