"""Media that an assistant writes: parts of chats to codes with labels, generated ids to parts."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mm.code_parts import pixels
from modeling_mm.training import ChatCollator
from tests.fakes.codecs import RATE
from tests.fakes.processor_parts import make, picture
from tests.fakes.writers import writing


@pytest.fixture(scope="module")
def writer():
    return writing()


def noise(seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    return Image.fromarray(values)


def speech(samples: int = 40) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(samples).astype(np.float32)


def chat(*answer, question=({"type": "text", "text": "hello"},)) -> list[dict]:
    return [{"role": "user", "content": list(question)}, {"role": "assistant", "content": list(answer)}]


DRAWN = {"type": "image", "image": noise()}
SAID = {"type": "audio", "audio": speech(), "sampling_rate": RATE}


def ids_of(processor, *answer, **options) -> list[int]:
    return processor.apply_chat_template(chat(*answer), tokenize=True, **options)[0]


def test_an_answers_image_becomes_its_codes_and_labels_follow(writer):
    model, processor = writer
    codes = model.model.image_codec.encode(pixels(noise(), (16, 16))[None])[0].tolist()
    assert len(set(codes[0])) > 3
    block = processor.written["image"].tokens.to_ids(codes)
    row = ChatCollator(processor)([{"messages": chat({"type": "text", "text": "a cat"}, DRAWN)}])
    ids, labels = row["input_ids"][0].tolist(), row["labels"][0].tolist()
    assert "pixel_values" not in row
    start = ids.index(block[0])
    assert ids[start : start + 18] == block
    learned = [each for each in labels if each != -100]
    assert learned[-19:] == [*block, model.config.end_token_id] and len(learned) > 19
    assert labels[: len(labels) - len(learned)] == [-100] * (len(labels) - len(learned))


def test_an_answers_audio_is_encoded_at_the_codecs_rate(writer):
    model, processor = writer
    wave = torch.from_numpy(speech())
    block = processor.written["audio"].tokens.to_ids(model.model.audio_codec.encode(wave[None])[0].tolist())
    ids = ids_of(processor, SAID)
    assert ids[ids.index(block[0]) :][: len(block)] == block
    other = ids_of(processor, {**SAID, "sampling_rate": 2 * RATE})
    assert len(other) < len(ids)


def test_what_is_shown_is_read_by_the_encoder_and_what_is_drawn_is_not(writer):
    processor = writer[1]
    messages = chat(DRAWN, question=({"type": "image", "image": picture()}, {"type": "text", "text": "again"}))
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["pixel_values"].shape[:2] == (1, 1)
    assert inputs["input_ids"][0].tolist().count(processor.image_token_id) == 1
    assert "<|image_start|><image_code_" in processor.apply_chat_template(messages)


def test_codes_that_are_known_are_written_as_they_are(writer):
    processor = writer[1]
    codes = [list(range(16))]
    ids = ids_of(processor, {"type": "image", "codes": codes})
    first = processor.written["image"].tokens.first_code
    assert [each - first for each in ids if first <= each < first + 16] == codes[0]
    with pytest.raises(ValueError, match=r"codebook 0 has codes from 0 to 15, got 99"):
        ids_of(processor, {"type": "image", "codes": [[99] * 16]})


def test_a_start_token_that_a_person_writes_is_text(writer):
    processor = writer[1]
    messages = chat({"type": "text", "text": "yes"}, question=({"type": "text", "text": "<|image_start|>"},))
    ids = processor.apply_chat_template(messages, tokenize=True)[0]
    assert processor.written["image"].tokens.start_id not in ids


def test_without_codecs_the_remedy_is_named(writer):
    model, processor = writer
    lone = make()
    lone.add_codec(model.model.image_codec)
    with pytest.raises(ValueError, match=r"Image of an assistant is written as codes.*processor\.use_codecs\(model\)"):
        ids_of(lone, DRAWN)
    with pytest.raises(ValueError, match=r"holds no image\. Give it one"):
        ids_of(processor, {"type": "image"})
    inputs = make().apply_chat_template(chat(DRAWN), tokenize=True, return_dict=True, return_tensors="pt")
    assert "pixel_values" in inputs  # of a tokenizer without codes an answer's image is shown to the encoder
    with pytest.raises(ValueError, match=r"finite"):
        ids_of(processor, {"type": "audio", "audio": np.full(40, np.nan, np.float32), "sampling_rate": RATE})


# ---- Decoding -------------------------------------------------------------------------------------------------------


def test_generated_ids_become_parts(writer):
    model, processor = writer
    answer = ({"type": "text", "text": "a cat"}, DRAWN, SAID, {"type": "text", "text": "you see"})
    whole = ids_of(processor, *answer)
    ids = whole[whole.index(processor.tokenizer.convert_tokens_to_ids("<|assistant|>")) + 1 :]
    parts = processor.decode_media(ids)
    assert [part["type"] for part in parts] == ["text", "image", "audio", "text"]
    assert (parts[0]["text"], parts[3]["text"]) == ("a cat", "you see")
    assert not any("is_cut" in part for part in parts)
    codes = model.model.image_codec.encode(pixels(noise(), (16, 16))[None])
    expected = (model.model.image_codec.decode(codes)[0].permute(1, 2, 0).numpy() * 255).round()
    assert isinstance(parts[1]["image"], Image.Image)
    assert np.array_equal(np.asarray(parts[1]["image"]), expected.astype(np.uint8))
    samples, rate = parts[2]["audio"]
    assert (samples.shape, samples.dtype, rate) == ((len(samples),), np.float32, RATE) and len(samples) >= 40
    again = ids_of(processor, *parts)  # what a model has written is read back into the conversation
    assert len(again) == len(whole)
    batch = processor.decode_media(torch.tensor([ids, ids]))
    assert [[part["type"] for part in row] for row in batch] == [["text", "image", "audio", "text"]] * 2


def test_of_a_block_that_was_cut_the_part_that_can_be_decoded_is_returned(writer):
    processor = writer[1]
    image, audio = processor.written["image"].tokens, processor.written["audio"].tokens
    whole = processor.decode_media(image.to_ids([list(range(16))]))[0]["image"]
    cut = processor.decode_media(image.to_ids([list(range(16))])[:11])[0]  # 10 of 16 codes, two whole rows of four
    assert cut["is_cut"] is True and cut["image"].size == (16, 8)
    assert whole.size == (16, 16)
    assert processor.decode_media([image.start_id, image.first_code]) == [
        {"type": "image", "image": None, "is_cut": True}
    ]
    codes = [[1, 2, 3, 4, 5, 6]] * 4
    full, part = (processor.decode_media(audio.to_ids(codes)[:end])[0] for end in (None, 16))
    assert part["is_cut"] is True and "is_cut" not in full
    assert 0 < len(part["audio"][0]) < len(full["audio"][0])
    assert processor.decode_media([audio.start_id])[0]["audio"] is None


def test_a_model_draws_and_speaks_from_a_chat(writer):
    model, processor = writer
    prompts = [chat()[:1], chat(question=({"type": "image", "image": picture()},))[:1]]
    inputs = processor.apply_chat_template(
        prompts, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    length = inputs["input_ids"].shape[1]
    ids = model.generate(**inputs, output_modalities=("image",), max_new_tokens=30, do_sample=False)
    rows = processor.decode_media(ids[:, length:])
    assert [[part["type"] for part in row] for row in rows] == [["image"], ["image"]]
    assert all(row[0]["image"].size == (16, 16) and "is_cut" not in row[0] for row in rows)
    ids = model.generate(**inputs, output_modalities=("audio",), max_new_tokens=25, do_sample=False)
    for row in processor.decode_media(ids[:, length:]):
        assert row[0]["type"] == "audio" and len(row[0]["audio"][0]) > 0
