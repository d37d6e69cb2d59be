"""Videos of chat completions: the processor's inputs, the limits of a request, and answers of a server."""

import base64

import pytest
import torch

from modeling_mm.evaluation import prompt_inputs
from modeling_mm.serving import SourcePolicy, preparing
from modeling_mm.serving.chat_request import check_chat
from modeling_mm.serving.limits import BadRequest
from modeling_mm.serving.preparing import TextRoom, prepare
from tests.fakes.serving_parts import generated, needs_extra, text_part, user, video_part
from tests.fakes.tiny_chats import processor
from tests.fakes.videos import make_video


@pytest.fixture(scope="module")
def data() -> bytes:
    return make_video("h264")


def prepared(part: dict, **limits):
    chat = check_chat({"messages": user(part, text_part("What do you see?"))})
    return prepare(processor(), chat.messages, chat.media, SourcePolicy(**limits), TextRoom())


OPTIONS = {
    "by default": {},
    "a rate": {"fps": 5},
    "a number": {"num_frames": 3},
    "a section": {"start": 0.5, "end": 1.5, "fps": 2},
    "without audio": {"load_audio_from_video": False},
    "without times": {"frame_times": False, "max_frames": 2},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_video_becomes_the_inputs_that_the_processor_makes(data, case):
    options = OPTIONS[case]
    expected = prompt_inputs(
        processor(), [user({"type": "video", "bytes": data, **options}, text_part("What do you see?"))]
    )
    found = prepared(video_part(data, **options))
    assert found.inputs.keys() == expected.keys()
    assert all(torch.equal(torch.from_numpy(found.inputs[name]), expected[name]) for name in expected)
    seconds = {"a section": 1.0, "without audio": 0.0}.get(case, 2.0)
    assert found.audio_seconds == pytest.approx(seconds, abs=0.05)


REFUSED = {
    "not a video": (
        lambda data: b"no video",
        {},
        {},
        "expected a video in an MP4",
    ),
    "cut": (lambda data: data[:-100], {}, {}, "cut short|damaged"),
    "too many frames": (lambda data: data, {"fps": 5, "max_frames": 4}, {}, "10 frames would be taken .* limit of 4"),
    "options": (lambda data: data, {"fps": "fast"}, {}, "`fps` of a video must be a number above 0, got 'fast'"),
    "pixels": (
        lambda data: data,
        {"fps": 5},
        {"max_pixels": 64 * 48 * 9},
        "10 frames of 64x48: expected 27648 pixels",
    ),
    "a side": (lambda data: data, {}, {"max_side": 63}, "a video of 64x48 is longer than 63 pixels"),
    "bytes": (lambda data: data, {}, {"max_bytes": 1000}, "limit of 1000 bytes"),
    "seconds": (lambda data: data, {}, {"max_seconds": 1.5}, "lasts 2 s, more than the limit of 1.5 s"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_or_costs_too_much_is_refused(data, case):
    make, options, limits, reason = REFUSED[case]
    with pytest.raises(BadRequest, match=reason) as caught:
        prepared(video_part(make(data), **options), **limits)
    assert str(caught.value).startswith("`messages[0].content[0].video_url`: ")


def test_frames_between_those_that_are_shown_cost_too(data, monkeypatch):
    monkeypatch.setattr(preparing, "MOST_DECODED", 64 * 48 * 3)
    prepared(video_part(data, start=0.2, end=0.4))
    with pytest.raises(
        BadRequest, match=r"4 frames of 64x48 would be decoded: expected 9216 pixels of videos at most"
    ):
        prepared(video_part(data, start=0.6, end=0.8))
    monkeypatch.undo()
    monkeypatch.setattr(preparing, "MOST_RESIZED", 8 * 8)
    monkeypatch.setattr(processor().image_processor, "size", {"shortest_edge": 80})
    with pytest.raises(BadRequest, match=r"would be resized to \d+ pixels"):
        prepared(video_part(data))


def test_files_and_private_addresses_are_not_opened(tmp_path, data):
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    for source in (str(path), path.as_uri()):
        with pytest.raises(BadRequest, match=r"expected a data: or http\(s\) URL|files may not be named here"):
            prepared({"type": "video_url", "video_url": {"url": source}})
    with pytest.raises(BadRequest, match="leads to a private address"):
        prepared({"type": "video_url", "video_url": {"url": "http://127.0.0.1:9/clip.mp4"}})
    url = base64.b64encode(data).decode()
    assert prepared({"type": "video", "video": url}).inputs["image_mask"].sum() == 2


def test_a_model_that_cannot_see_says_so(data, monkeypatch):
    monkeypatch.setattr(processor(), "image_processor", None)
    with pytest.raises(BadRequest, match="a video is shown as images, but this processor has no `image_processor`"):
        prepared(video_part(data))


@needs_extra
def test_the_server_answers_about_a_video_as_generate_does(server, data):
    messages = user({"type": "video", "bytes": data, "fps": 2}, text_part("What do you see?"))
    asked = user(video_part(data, fps=2), text_part("What do you see?"))
    assert server.says(asked) == generated(messages)
    import openai

    with pytest.raises(openai.BadRequestError, match="expected a video in an MP4 or Matroska file"):
        server.ask(user(video_part(b"no video")))
