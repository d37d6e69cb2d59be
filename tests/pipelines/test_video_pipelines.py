"""`pipeline` with videos: in chats, beside texts, in batches; what reads text alone refuses them."""

import pytest

from tests.fakes.pipeline_parts import GREEDY, build, chat
from tests.fakes.videos import make_video

WHAT = "What do you see?"


@pytest.fixture(scope="module")
def data() -> bytes:
    return make_video("h264", tone=220.0)


def expected(messages) -> str:
    model, processor = build()
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    tokens = model.generate(**inputs, **GREEDY)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def written(rows) -> list[str]:
    return [row[0]["generated_text"] if isinstance(row, list) else row["generated_text"] for row in rows]


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_a_chat_with_a_video_is_answered_as_by_generate(pipes, data, task):
    seen = chat({"type": "video", "bytes": data, "fps": 2}, WHAT)
    listed = chat({"type": "video_url", "video_url": {"url": "processing/sample.mp4"}}, WHAT)
    for messages in (seen, listed):
        answers = written([pipes(task)(text=messages, return_full_text=False, **GREEDY)])
        assert answers == [expected(messages)]
    batch = written(pipes(task)(text=[seen, listed, chat("hello")], return_full_text=False, batch_size=3, **GREEDY))
    assert batch == [expected(seen), expected(listed), expected(chat("hello"))]


def test_options_reach_the_video(pipes, data):
    messages = chat({"type": "video", "bytes": data}, WHAT)
    answers = written([pipes("image-text-to-text")(text=messages, return_full_text=False, num_frames=4, **GREEDY)])
    assert answers == [expected(chat({"type": "video", "bytes": data, "num_frames": 4}, WHAT))]


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_videos_beside_a_text(pipes, data, task):
    model, processor = build()
    inputs = processor(text=f"<|video|>{WHAT}", videos=data, fps=2, return_tensors="pt")
    tokens = model.generate(**inputs, **GREEDY)
    told = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    options = {"return_full_text": False, "fps": 2, **GREEDY}
    assert written([pipes(task)(text=f"<|video|>{WHAT}", videos=data, **options)]) == [told]
    assert written([pipes(task)({"text": f"<|video|>{WHAT}", "videos": [data]}, **options)]) == [told]


def test_text_generation_refuses_a_video(pipes):
    with pytest.raises(ValueError, match="Turn 0 holds video, and this pipeline reads text alone"):
        pipes("text-generation")(chat({"type": "video", "path": "clip.mp4"}, WHAT))
