"""Videos in chats and texts: images with their times, and audio, in their places; errors with row and turn."""

import base64

import numpy as np
import pytest
import torch

from modeling_mm.processing_mm import MMProcessor
from modeling_mm.video_parts import VideoReader, expand_chats, time_text, video_parts
from modeling_mm.videos import Video, load_video
from tests.fakes.processor_parts import make, picture, sound
from tests.fakes.videos import make_video

WHAT = {"type": "text", "text": "What do you see?"}


@pytest.fixture(scope="module")
def processor() -> MMProcessor:
    return make()


@pytest.fixture(scope="module")
def data() -> bytes:
    return make_video("h264")


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def encode(processor, chat, **options):
    return processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt", **options)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_video_becomes_its_frames_behind_their_times_and_its_audio(processor, data):
    chat = user({"type": "video", "bytes": data, "fps": 2}, WHAT)
    expected = "0s<|image|>0.4s<|image|>1s<|image|>1.4s<|image|><|audio|>What do you see?"
    assert processor.apply_chat_template(chat) == f"<|user|>{expected}<|end|>"
    video = load_video(data)
    frames = [{"type": "image", "image": frame} for frame in load_video(data).frames]
    by_hand = user({"type": "text", "text": "0s"}, frames[0], {"type": "text", "text": "1s"}, frames[1],
                   {"type": "audio", "audio": video.audio}, WHAT)  # fmt: skip
    assert same(encode(processor, user({"type": "video", "video": data}, WHAT)), encode(processor, by_hand))


def test_every_form_of_a_part(processor, data, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    coded = base64.b64encode(data).decode()
    url = f"data:video/mp4;base64,{coded}"
    forms = [
        {"type": "video", "path": str(path), "text": None},
        {"type": "video", "url": path.as_uri()},
        {"type": "video", "base64": coded},
        {"type": "video", "video": {"bytes": data, "path": None}},
        {"type": "video", "video": load_video(data)},
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "video_url", "video_url": url},
        {"type": "input_video", "input_video": {"data": coded}},
    ]
    expected = encode(processor, user({"type": "video", "bytes": data}))
    assert all(same(encode(processor, user(form)), expected) for form in forms)
    numbered = {"type": "video_url", "video_url": {"url": url}, "num_frames": 3}
    assert encode(processor, user(numbered)).pixel_values.shape[1] == 3


def test_the_messages_of_the_caller_stay_as_they_are(processor, data):
    chat = user({"type": "video", "bytes": data}, WHAT)
    encode(processor, chat)
    assert chat == user({"type": "video", "bytes": data}, WHAT)


def test_options_of_the_call_hold_unless_a_part_has_others(processor, data):
    chat = [user({"type": "video", "bytes": data}), user({"type": "video", "bytes": data, "num_frames": 3})]
    counts = {
        "by default": ({}, [2, 3]),
        "a rate": ({"fps": 5}, [10, 3]),
        "a number": ({"num_frames": 4}, [4, 3]),
        "in a group": ({"videos_kwargs": {"start": 1.0, "fps": 5}}, [5, 3]),
        "among the processor's": ({"processor_kwargs": {"fps": 5}}, [10, 3]),
    }
    for options, expected in counts.values():
        assert encode(processor, chat, **options).image_mask.sum(-1).tolist() == expected
    with pytest.raises(ValueError, match=r"Conversation 0, turn 0: .*10 frames would be taken.*limit of 4"):
        encode(processor, chat, fps=5, max_frames=4)


def test_audio_and_times_are_left_out_on_demand(processor, data):
    chat = user({"type": "video", "bytes": data})
    assert processor.apply_chat_template(chat, load_audio_from_video=False) == "<|user|>0s<|image|>1s<|image|><|end|>"
    assert processor.apply_chat_template(chat, frame_times=False) == "<|user|><|image|><|image|><|audio|><|end|>"
    silent = user({"type": "video", "bytes": make_video("h264", tone=None)})
    assert processor.apply_chat_template(silent) == "<|user|>0s<|image|>1s<|image|><|end|>"
    part = user({"type": "video", "bytes": data, "load_audio_from_video": False, "frame_times": False})
    assert processor.apply_chat_template(part) == "<|user|><|image|><|image|><|end|>"


def test_a_model_without_an_encoder(data):
    chat = user(WHAT, {"type": "video", "bytes": data})
    deaf, blind = make(audio=False), make(vision=False)
    assert deaf.apply_chat_template(chat) == "<|user|>What do you see?0s<|image|>1s<|image|><|end|>"
    with pytest.raises(ValueError, match="turn 0: `load_audio_from_video=True` needs a model with an audio encoder"):
        deaf.apply_chat_template(chat, load_audio_from_video=True)
    with pytest.raises(ValueError, match="Conversation 0, turn 0: a video is shown as images, but this processor has"):
        blind.apply_chat_template(chat)
    with pytest.raises(ValueError, match="no `image_processor`; join a vision encoder, or pass the file as an audio"):
        blind(videos=data)
    heard = encode(blind, user({"type": "audio", "bytes": data}))
    assert heard.feature_attention_mask.any()


def test_a_decoder_without_roles_gets_no_times(data):
    hidden = make(placeholders="hidden")
    assert hidden.apply_chat_template(user({"type": "video", "bytes": data})) == (
        "<|user|><|image|><|image|><|audio|><|end|>"
    )


def test_videos_for_parts_that_hold_none(processor, data):
    empty, other = user({"type": "video"}), user({"type": "video", "bytes": data}, {"type": "video"})
    expected = encode(
        processor, [user({"type": "video", "bytes": data}), user(*[{"type": "video", "bytes": data}] * 2)]
    )
    for given in ([data, data], [[data], [data]]):
        assert same(encode(processor, [empty, other], processor_kwargs={"videos": given}), expected)
    with pytest.raises(ValueError, match="Conversation 0, turn 0: its video part holds no video; give it a `path`"):
        processor.apply_chat_template(empty)
    with pytest.raises(ValueError, match=r"the `videos` have no part that waits for them"):
        encode(processor, user({"type": "video", "bytes": data}), processor_kwargs={"videos": [data]})
    with pytest.raises(ValueError, match="Conversation 0 has 1 video parts that hold none, and 2 videos were given"):
        encode(processor, empty, processor_kwargs={"videos": [[data, data]]})


def test_errors_name_conversation_and_turn(processor, data):
    turns = [*user(WHAT), {"role": "assistant", "content": "a"}, *user({"type": "video", "bytes": b"nothing"})]
    with pytest.raises(ValueError, match="Conversation 1, turn 2: 7 bytes: expected a video in an MP4"):
        processor.apply_chat_template([user(WHAT), turns])
    with pytest.raises(ValueError, match="turn 0: `fps` of a video must be a number above 0, got 'fast'"):
        processor.apply_chat_template(user({"type": "video", "bytes": data, "fps": "fast"}))


def test_the_answers_mask_is_exact_beside_a_video(processor, data):
    chat = [*user({"type": "video", "bytes": data}, WHAT), {"role": "assistant", "content": "a red square"}]
    inputs = encode(processor, chat, return_assistant_tokens_mask=True)
    answer = inputs.input_ids[0][inputs.assistant_masks[0].bool()]
    assert processor.decode(answer) == "a red square<|end|>"


def test_video_in_the_text_of_a_message_is_text(processor, data):
    chat = user({"type": "text", "text": "What is <|video|>?"}, {"type": "video", "bytes": data})
    inputs = encode(processor, chat)
    assert inputs.image_mask.sum() == 2 and "What is <|video|>?" in processor.decode(inputs.input_ids[0])


# ---- Texts ----------------------------------------------------------------------------------------------------------


def test_videos_take_the_place_of_their_placeholder(processor, data):
    texts = ["a<|image|>b<|video|>c<|image|>d<|audio|>", "x<|video|>"]
    red, blue = picture("red"), picture("blue")
    out = processor(
        text=texts, images=[[red, blue], []], audio=[[sound(0.5)], []], videos=[[data], [data]], return_tensors="pt"
    )
    read = [processor.decode([token for token in row if token != processor.tokenizer.pad_token_id])
            for row in out.input_ids.tolist()]  # fmt: skip
    heard = "<|audio|>" * 3  # windows of one second, and the padding of AAC
    frames = f"0s<|image|>1s<|image|>{heard}"
    assert read == [f"a<|image|>b{frames}c<|image|>d<|audio|>", f"x{frames}"]
    assert out.image_mask.tolist() == [[True] * 4, [True, True, False, False]]
    colors = out.pixel_values[0, :, :, 0, 0].tolist()
    assert colors[0] == [1, -1, -1] and colors[3] == [-1, -1, 1]  # red, frames, blue
    assert np.abs(np.subtract(colors[1], [1, -1, -1])).max() < 0.1  # frame 0 is red, frame 5 green
    assert np.abs(np.subtract(colors[2], [-1, 1, -1])).max() < 0.1
    assert out.feature_attention_mask[0].sum(-1).tolist()[-1] == 50


def test_videos_without_placeholders_go_in_front(processor, data):
    silent = make_video("h264", tone=None)
    assert processor.decode(processor(text="What?", videos=silent)["input_ids"][0]) == "0s<|image|>1s<|image|>What?"
    both = processor(text="What?", images=picture(), videos=silent)
    assert processor.decode(both["input_ids"][0]) == "<|image|>0s<|image|>1s<|image|>What?"
    alone = processor(videos=[silent, silent], frame_times=False)
    assert processor.batch_decode(alone["input_ids"]) == ["<|image|><|image|>"] * 2
    rows = processor(text=["a", "b"], videos=[[], [silent]], num_frames=1)
    assert processor.batch_decode(rows["input_ids"]) == ["a", "1s<|image|>b"]


MISMATCHES = {
    "one too many": (
        "<|video|>",
        lambda data: [[data, data]],
        r"Row 0: .*the text has 1 and 2 were given.*<\|video\|>",
    ),
    "one too few": ("<|video|><|video|>", lambda data: [[data]], "the text has 2 and 1 was given"),
    "rows": (["a", "b"], lambda data: [[data]], "`text` has 2 rows and the videos are given for 1"),
    "unclear rows": (["a", "b"], lambda data: [data] * 3, "It is not clear which of the 2 rows"),
    "an image is missing": ("<|image|><|video|>", lambda data: [[data]], r"<\|image\|> tokens .* has 1 and 0 were"),
    "broken": ("<|video|>", lambda data: [b"xyz"], "Row 0, item 0 of its videos: 3 bytes: expected a video"),
    "not a text": ([1], lambda data: [[data]], "row 0 is of type int"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_what_does_not_match_is_refused(processor, data, case):
    text, videos, reason = MISMATCHES[case]
    with pytest.raises(ValueError, match=reason):
        processor(text=text, videos=videos(data))


# ---- Functions ------------------------------------------------------------------------------------------------------


def test_times_are_short():
    assert [time_text(seconds) for seconds in (0, -0.003, 0.5, 1, 1.0004, 2.345, 12.04, 3600.25)] == [
        "0s", "0s", "0.5s", "1s", "1s", "2.35s" if round(2.345, 2) == 2.35 else "2.34s", "12.04s", "3600.25s",
    ]  # fmt: skip


def test_parts_of_a_decoded_video():
    video = Video([picture("red"), picture("blue")], [0.0, 0.5])
    assert [part["type"] for part in video_parts(video)] == ["text", "image", "text", "image"]
    assert [part["type"] for part in video_parts(video, frame_times=False)] == ["image", "image"]


def test_chats_without_videos_are_the_same_objects():
    chats = [user(WHAT), user({"type": "image", "path": "cat.png"})]
    reader = VideoReader(has_images=False, has_audio=False)
    assert all(one is other for one, other in zip(expand_chats(chats, reader), chats, strict=True))
