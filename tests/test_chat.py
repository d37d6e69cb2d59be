"""The chat template and `apply_chat_template`: text, media in every form of a part, exact assistant masks."""

import base64
import json

import numpy as np
import pytest
import soundfile
import torch

from modeling_mm.chat import mark_spans, shift_spans
from modeling_mm.processing_mm import MMProcessor
from tests.fakes.processor_parts import RATE, make, make_vit, make_wordpiece, picture, sound


@pytest.fixture(scope="module")
def processor() -> MMProcessor:
    return make()


def chat(image, audio) -> list[dict]:
    return [
        {"role": "system", "content": "You are brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": image},
                {"type": "text", "text": "What do you see?"},
                {"type": "audio", "audio": audio},
            ],
        },
        {"role": "assistant", "content": "\n a red  square \n"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": [{"type": "text", "text": "hello there"}]},
    ]


def test_template_text(processor):
    assert processor.apply_chat_template(chat(picture(), sound())) == (
        "<|system|>You are brief.<|end|><|user|><|image|>What do you see?<|audio|><|end|>"
        "<|assistant|>\n a red  square \n<|end|><|user|>hello<|end|><|assistant|>hello there<|end|>"
    )
    prompt = [{"role": "user", "content": "hello"}]
    assert processor.apply_chat_template(prompt, add_generation_prompt=True) == "<|user|>hello<|end|><|assistant|>"
    started = [*prompt, {"role": "assistant", "content": "well"}]
    expected = "<|user|>hello<|end|><|assistant|>well"
    assert processor.apply_chat_template([started, started], continue_final_message=True) == [expected] * 2


def test_chat_loads_media(processor):
    out = processor.apply_chat_template(
        chat(picture(), sound(2.5)), tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert list(out) == processor.model_input_names
    assert out.pixel_values[0, 0, :, 0, 0].tolist() == [1, -1, -1]
    assert out.feature_attention_mask.sum(-1).tolist() == [[100, 100, 50]]
    assert processor.decode(out.input_ids[0]).startswith(
        "<|system|>You are brief.<|end|><|user|><|image|>What do you see?<|audio|><|audio|><|audio|><|end|>"
    )


def test_every_form_of_a_part(processor, tmp_path):
    image, wave = tmp_path / "a.png", tmp_path / "a.wav"
    picture().save(image)
    soundfile.write(wave, sound(1.5)[0], RATE)
    image64, wave64 = (base64.b64encode(path.read_bytes()).decode() for path in (image, wave))
    forms = [
        ({"type": "image", "path": str(image)}, {"type": "audio", "path": str(wave)}),
        ({"type": "image", "url": f"file://{image}"}, {"type": "audio", "url": f"data:audio/wav;base64,{wave64}"}),
        ({"type": "image", "base64": image64}, {"type": "audio", "base64": wave64}),
        ({"type": "image", "bytes": image.read_bytes()}, {"type": "audio", "bytes": wave.read_bytes()}),
        ({"type": "image", "image": np.asarray(picture())}, {"type": "audio", "audio": sound(1.5)}),
        (
            {"type": "image", "image": picture(), "text": None},
            {"type": "audio", "audio": sound(1.5)[0], "sampling_rate": RATE},
        ),
        (
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image64}"}},
            {"type": "input_audio", "input_audio": {"data": wave64, "format": "wav"}},
        ),
        ({"type": "image_url", "image_url": str(image)}, {"type": "audio_url", "audio_url": {"url": str(wave)}}),
    ]
    chats = [[{"role": "user", "content": list(parts)}] for parts in forms]
    kept = json.dumps(chats, default=repr)
    out = processor.apply_chat_template(chats, tokenize=True, return_dict=True, return_tensors="pt")
    assert json.dumps(chats, default=repr) == kept  # the caller's messages are left alone
    assert out.pixel_values.shape == (8, 1, 3, 8, 8) and (out.pixel_values == out.pixel_values[:1]).all()
    torch.testing.assert_close(out.input_features, out.input_features[:1].expand(8, -1, -1, -1), atol=1e-3, rtol=0)
    assert (out.input_ids == out.input_ids[:1]).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_assistant_mask_is_exact_with_windows(processor, side):
    """Two rows of different length; before the first answer one audio part grows into three tokens."""
    rows = [chat(picture(), sound(2.5)), [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a dog"}]]
    out = processor.apply_chat_template(
        rows,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding_side": side},
    )
    assert out.assistant_masks.shape == out.input_ids.shape and "offset_mapping" not in out
    answers = ["\n a red  square \n<|end|>hello there<|end|>", "a dog<|end|>"]
    assert [
        processor.decode(row[mask.bool()]) for row, mask in zip(out.input_ids, out.assistant_masks, strict=True)
    ] == answers


OWN_TEMPLATES = {
    "none of its parts": (
        "{% for m in messages %}{{ m.content if m.content is string else m.content[-1].text }}{% endfor %}"
    ),
    "not the first turn": (
        "{% for m in messages[1:] %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}{% endfor %}"
    ),
    "not the last turn": (
        "{% for m in messages[:-1] %}{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
        "{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}{% endif %}{% endfor %}"
    ),
}


@pytest.mark.parametrize(
    "name, message",
    [
        ("none of its parts", r"0 <\|image\|> for 2 images; .* turn 0 \(user\) has 1, turn 2 \(user\) has 1\."),
        ("not the first turn", r"1 <\|image\|> for 2 images; of those it leaves out, turn 0 \(user\) has 1\."),
        ("not the last turn", r"1 <\|image\|> for 2 images; of those it leaves out, turn 2 \(user\) has 1\."),
    ],
)
@pytest.mark.parametrize("tokenize", [True, False])
def test_a_template_that_leaves_media_out_is_refused_with_the_turn(processor, name, message, tokenize):
    turn = {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "a"}]}
    chats = [[{"role": "user", "content": "b"}] * 2, [turn, {"role": "assistant", "content": "cat"}, turn]]
    with pytest.raises(ValueError, match="Conversation 1: .*" + message):
        processor.apply_chat_template(chats, OWN_TEMPLATES[name], tokenize=tokenize)


def test_a_cut_behind_the_message_to_be_continued_must_leave_its_media(processor):
    image, words = {"type": "image", "image": picture()}, {"type": "text", "text": "like this"}
    start = [{"role": "user", "content": "draw"}]
    kept = [*start, {"role": "assistant", "content": [image, words]}]
    out = processor.apply_chat_template(kept, continue_final_message=True, tokenize=True)
    assert processor.decode(out[0]).endswith("<|assistant|><|image|>like this")
    with pytest.raises(ValueError, match=r"leaves out, turn 1 \(assistant\) has 1\."):
        processor.apply_chat_template(
            [*start, {"role": "assistant", "content": [words, image]}], continue_final_message=True, tokenize=True
        )


def test_a_rendered_conversation_without_its_placeholders_is_refused(processor):
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What do you see?"}]}]
    )
    cut = text[len("<|user|><|image|>What ") :]
    with pytest.raises(
        ValueError, match=r"Row 1 is a conversation, as it has <\|end\|>, without a placeholder for its 1"
    ):
        processor(text=["<|image|>a", cut], images=[[picture()], [picture()]])
    plain = processor(text=["<|endoftext|>What?"], images=picture()).input_ids[0]  # it is not a conversation
    assert processor.decode(plain) == "<|image|><|endoftext|>What?"


@pytest.mark.parametrize(
    "content, message",
    [
        ([{"type": "image", "image": picture()}], "`images` is for conversations whose image parts hold nothing"),
        ("What?", r'images were passed beside conversations without a part for them; write \{"type": "image"\}'),
        ("<|image|>What?", "images were passed beside conversations without a part"),
    ],
)
def test_images_beside_a_conversation_need_parts_that_wait_for_them(processor, content, message):
    chat = [{"role": "user", "content": content}]
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(chat, tokenize=True, processor_kwargs={"images": [picture()]})


def test_padding_side_of_chats(processor):
    rows = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "a cat, a dog"}]]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    first = [
        processor.apply_chat_template(rows, **options, **kwargs).attention_mask[0, 0].item()
        for kwargs in (
            {},
            {"add_generation_prompt": True},
            {"add_generation_prompt": True, "padding_side": "right"},
            {"add_generation_prompt": True, "processor_kwargs": {"text_kwargs": {"padding_side": "right"}}},
        )
    ]
    assert first == [1, 0, 1, 1]
    assert processor.tokenizer.padding_side == "left"


def test_chat_without_sources_takes_media_from_the_options(processor):
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "audio"}]}]
    out = processor.apply_chat_template(
        turns, tokenize=True, return_dict=True, processor_kwargs={"images": picture(), "audio": [sound(2)]}
    )
    assert processor.decode(out.input_ids[0]) == "<|user|><|image|><|audio|><|audio|><|end|>"
    with pytest.raises(ValueError, match=r"Row 0: .* has 1 and 0 were given"):
        processor.apply_chat_template(turns, tokenize=True)


@pytest.mark.parametrize(
    "turns, message",
    [
        ([{"role": "robot", "content": "a"}], "Unknown role robot: expected system, user or assistant"),
        (
            [{"role": "user", "content": [{"type": "smell"}]}],
            "Unknown content type smell: expected text, image or audio",
        ),
        ([{"role": "user"}], "content of a message must be a string or a list"),
        ([], "The conversation is empty"),
    ],
)
def test_chats_that_make_no_sense(processor, turns, message):
    with pytest.raises(Exception, match=message):
        processor.apply_chat_template(turns)


def test_templates_by_name():
    several = make(chat_template={"default": "{{ messages[0].content }}", "loud": "{{ messages[0].content | upper }}"})
    turns = [{"role": "user", "content": "a cat"}]
    assert several.apply_chat_template(turns) == "a cat"
    assert several.apply_chat_template(turns, chat_template="loud") == "A CAT"
    several.chat_template = {"loud": "x"}
    with pytest.raises(ValueError, match=r"one of \['loud'\]"):
        several.apply_chat_template(turns)
    several.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        several.apply_chat_template(turns)


def test_wordpiece_text_is_encoded_as_written():
    """No [CLS] or [SEP] around a prompt, no token types, and special tokens survive lower-casing."""
    wordpiece = MMProcessor(make_vit(), None, make_wordpiece())
    chat = [
        {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "你看到 A Cat"}]},
        {"role": "assistant", "content": "a dog"},
    ]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "return_assistant_tokens_mask": True}
    out = wordpiece.apply_chat_template(chat, **options)
    tokens = wordpiece.tokenizer.convert_ids_to_tokens(out.input_ids[0].tolist())
    assert tokens[:5] == ["<|user|>", "<|image|>", "你", "看", "到"] and tokens[-1] == "<|end|>"
    assert {"[CLS]", "[SEP]", "[UNK]"}.isdisjoint(tokens)
    assert set(out) == {*wordpiece.model_input_names, "assistant_masks"}
    assert wordpiece.decode(out.input_ids[0][out.assistant_masks[0].bool()]) == "a dog <|end|>"
    assert wordpiece(text="a cat", add_special_tokens=True).input_ids[0][0] == wordpiece.tokenizer.cls_token_id


def test_spans():
    replacements = [{"span": (2, 4), "new_span": (2, 8)}, {"span": (6, 8), "new_span": (10, 16)}]
    assert shift_spans([(0, 2), (4, 6), (8, 9)], replacements) == [(0, 2), (8, 10), (16, 17)]
    offsets = [(0, 0), (0, 2), (2, 3), (4, 4), (4, 6), (7, 7), (7, 8)]
    assert mark_spans(offsets, [(2, 6)]) == [0, 0, 1, 1, 1, 0, 0]
