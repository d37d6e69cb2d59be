"""Videos in training data: read from files and columns, packed, cleaned, and written as images and audio."""

import json

import pytest
import soundfile
import torch
from PIL import Image

from modeling_mm.data import ChatRow, clean, load_chats, media_parts, to_row, without_parts, write_videos
from modeling_mm.video_parts import VideoReader, expand_chats
from modeling_mm.videos import load_video
from tests.fakes.processor_parts import picture
from tests.fakes.serving_parts import png
from tests.fakes.tiny_chats import processor
from tests.fakes.videos import make_video


@pytest.fixture(scope="module")
def data() -> bytes:
    return make_video("h264")


def sample(answer: str = "a red square", words: str = "What moves?", **part) -> dict:
    content = [{"type": "video", **part}, {"type": "text", "text": words}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def encoded(row: ChatRow):
    return processor().apply_chat_template([row], tokenize=True, return_dict=True, return_tensors="pt")


def test_a_part_keeps_its_options_and_starts_in_the_folder(tmp_path):
    row = to_row(sample(path="clip.mp4", fps=2, start=1, other="x"), tmp_path)
    assert media_parts(row.messages) == [{"type": "video", "path": f"{tmp_path}/clip.mp4", "fps": 2, "start": 1}]
    url = to_row(sample(type="video_url", video_url={"url": "http://x/clip.mp4"}, num_frames=4))
    assert media_parts(url.messages) == [{"type": "video", "url": "http://x/clip.mp4", "num_frames": 4}]


def test_columns_fill_the_parts_and_go_in_front_of_plain_text(data):
    row = to_row({**sample(), "videos": [{"bytes": data, "path": None}]})
    assert media_parts(row.messages)[0]["video"]["bytes"] == data
    plain = to_row({"prompt": "What moves?", "completion": "a square", "video": {"bytes": None, "path": "clip.mp4"}})
    assert plain.messages[0]["content"][0] == {"type": "video", "path": "clip.mp4"}
    with pytest.raises(ValueError, match="1 video parts hold no video, and the column `videos` has 2"):
        to_row({**sample(), "videos": ["a.mp4", "b.mp4"]})


@pytest.mark.parametrize("streaming", [False, True])
def test_a_jsonl_file_with_videos_is_read(tmp_path, data, streaming):
    (tmp_path / "clip.mp4").write_bytes(data)
    (tmp_path / "train.jsonl").write_text(json.dumps(sample(path="clip.mp4", fps=2)) + "\n")
    (row,) = list(load_chats(tmp_path, streaming=streaming))
    whole = encoded(to_row(sample(video=data, fps=2)))
    read = encoded(row)
    assert all(torch.equal(read[name], whole[name]) for name in whole) and whole.pixel_values.shape[1] == 4


def test_writing_in_a_video_marks_its_frames(data):
    row = to_row({**sample(bytes=data), "has_text": True})
    (messages,) = expand_chats([row.messages], VideoReader.of(processor()))
    marked = [part["type"] for part in messages[0]["content"] if part.get("has_text")]
    assert marked == ["image", "image"]


def test_times_go_with_the_frames(data):
    (messages,) = expand_chats([to_row(sample(bytes=data)).messages], VideoReader.of(processor()))
    row = ChatRow(messages)
    assert [part["type"] for part in row.messages[0]["content"]] == ["text", "image"] * 2 + ["audio", "text"]
    heard = without_parts(row, {"image"}).messages[0]["content"]
    assert [part.get("text") for part in heard] == [None, "What moves?"]
    assert len(without_parts(row, {"audio"}).messages[0]["content"]) == 5


def test_cleaning_reads_videos(tmp_path, data):
    (tmp_path / "clip.mp4").write_bytes(data)
    (tmp_path / "cut.mp4").write_bytes(data[:-50])
    (tmp_path / "image.mp4").write_bytes(png(picture()))
    samples = [
        sample(path="clip.mp4"),
        sample(path="clip.mp4"),  # again
        sample(path="clip.mp4", start=1),
        sample(path="cut.mp4"),
        sample(path="missing.mp4"),
        sample(path="image.mp4"),
        sample(),
        sample(video=load_video(data), words="Which sound is in the picture?"),
    ]
    rows, report = clean(samples, tmp_path, progress=False)
    reasons = [(each.number, each.reason) for each in report.left_out]
    assert reasons == [(1, "duplicate"), (3, "unreadable"), (4, "missing"), (5, "wrong modality"), (6, "malformed")]
    assert len(rows) == 3


def test_videos_are_written_as_images_and_audio(tmp_path, data):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(data)
    rows = [
        to_row(sample(path=str(clip), fps=2)),
        to_row(sample(bytes=data)),
        to_row({"prompt": "a", "completion": "b"}),
    ]
    written = write_videos(rows, tmp_path / "frames", processor(), progress=False)
    assert written[2] is rows[2] and len(list((tmp_path / "frames").iterdir())) == 2
    parts = media_parts(written[0].messages)
    assert [part["type"] for part in parts] == ["image"] * 4 + ["audio"]
    assert Image.open(parts[0]["path"]).size == (64, 48) and soundfile.info(parts[-1]["path"]).samplerate == 48_000
    for row, files in zip(rows, written, strict=True):
        one, other = encoded(row), encoded(files)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    places = sorted((tmp_path / "frames").glob("*/*"))
    before = [path.stat().st_mtime_ns for path in places]
    assert write_videos(rows, tmp_path / "frames", processor(), progress=False) == written
    assert [path.stat().st_mtime_ns for path in places] == before, "nothing is written twice"


def test_a_video_that_cannot_be_written_is_named(tmp_path, data):
    row = ChatRow(to_row(sample(bytes=data[:-50])).messages, id="seven")
    with pytest.raises(ValueError, match=r"Example seven: .*cut short|Example seven: .*damaged"):
        write_videos([row], tmp_path, processor(), progress=False)
    with pytest.raises(ValueError, match="Example 0: expected a video that is a file, got an object of type Video"):
        write_videos([to_row(sample(video=load_video(data)))], tmp_path, processor(), progress=False)
