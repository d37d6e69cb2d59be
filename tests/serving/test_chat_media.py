"""Images and audio in chat completions with OpenAI's own client: those of `generate`, whole and streamed."""

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import soundfile
import soxr
from PIL import Image

from modeling_mm.modalities import MODALITIES
from modeling_mm.serving.running_batch import RunningBatch
from tests.fakes.serving_parts import needs_extra, run_here, text_part, user
from tests.fakes.writers import SAID, speaking

pytestmark = needs_extra
RATE, PCM_RATE, HOP = 800, 24_000, 40  # of the tiny codec, of the protocol's PCM, and samples of a code
SPOKEN = ["text", "audio"]
WAV = {"voice": "default", "format": "wav"}
TALK = "hello there, you are brief"  # the learned answer to "hello"


def question(text: str, *before) -> list[dict]:
    return [*before, *user(text_part(text))]


@cache
def generated(text: str, *outputs: str, most: int = 60) -> list[dict]:
    """The parts of the answer of `generate` in this process."""
    model, processor = speaking()
    inputs = processor.apply_chat_template(
        question(text), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, output_modalities=outputs, max_new_tokens=most, do_sample=False)
    return processor.decode_media(ids[0, inputs["input_ids"].shape[1] :])


def said(text: str, **options) -> np.ndarray:
    (part,) = generated(text, *SPOKEN, **options)
    return part["audio"][0]


def to_integers(samples: np.ndarray) -> np.ndarray:
    return (np.clip(samples, -1, 1) * 32767).round().astype(np.int16)


def speak(server, text="Say: hello", audio=WAV, modalities=SPOKEN, **options):
    return server.ask(question(text), modalities=modalities, audio=audio, **options)


def read(data: str) -> tuple[np.ndarray, int]:
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="int16")
    return samples, rate


def near(samples: np.ndarray, expected: np.ndarray) -> bool:
    """Libsndfile rounds down the samples of a WAV file."""
    return len(samples) == len(expected) and int(np.abs(samples.astype(int) - expected).max()) <= 2


def joined(chunks, index=0) -> tuple[dict, list[str]]:
    """The audio of a stream as a message has it, and the keys of its deltas in order."""
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices if choice.index == index]
    found = [delta.model_extra.get("audio") or delta.audio for delta in deltas if delta.model_extra or delta.audio]
    parts = [each if isinstance(each, dict) else each.model_dump(exclude_none=True) for each in found]
    audio = {}
    for part in parts:
        data = audio.get("data", b"") + base64.b64decode(part.get("data", ""))
        audio |= {**part, "data": data}
    return audio, [key for part in parts for key in part]


# ---- Audio ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", SAID)
def test_a_message_has_the_audio_that_generate_says(speaker_server, text):
    expected = to_integers(said(f"Say: {text}"))
    for audio_format in ("wav", "flac"):
        answer = speak(speaker_server, f"Say: {text}", {**WAV, "format": audio_format})
        message = answer.choices[0].message
        samples, rate = read(message.audio.data)
        assert rate == RATE and near(samples, expected), audio_format
        assert message.content is None and message.audio.transcript == "" and message.role == "assistant"
        assert message.audio.id.startswith("audio_") and message.audio.expires_at > time.time()
        assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens_details.audio_tokens == SAID[text] + 2
    assert answer.usage.completion_tokens == SAID[text] + 3


def test_other_formats_have_their_rates(speaker_server):
    data = base64.b64decode(speak(speaker_server, audio={**WAV, "format": "pcm16"}).choices[0].message.audio.data)
    assert near(np.frombuffer(data, "<i2"), to_integers(soxr.resample(said("Say: hello"), RATE, PCM_RATE)))
    samples, rate = read(speak(speaker_server, audio={**WAV, "format": "mp3"}).choices[0].message.audio.data)
    assert rate == 8000 and abs(len(samples) - SAID["hello"] * HOP * 10) <= 1152


@pytest.mark.parametrize("audio_format", ["wav", "pcm16", "flac"])
def test_deltas_are_the_audio_in_pieces(speaker_server, audio_format):
    audio = {**WAV, "format": audio_format}
    chunks = list(speak(speaker_server, audio=audio, stream=True))
    found, keys = joined(chunks)
    whole = base64.b64decode(speak(speaker_server, audio=audio).choices[0].message.audio.data)
    head = 44 if audio_format == "wav" else 0  # that of a stream names no length
    if audio_format == "flac":
        assert found["data"] == whole and keys.count("data") == 1
    else:
        expected = np.frombuffer(whole[head:], "<i2")
        assert near(np.frombuffer(found["data"][head:], "<i2"), expected) and keys.count("data") >= 2
    assert keys[0] == "id" and keys.count("id") == 1 and keys[-1] == "expires_at"
    assert found["id"].startswith("audio_") and found["expires_at"] > time.time()
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert chunks[-1].usage.completion_tokens_details.audio_tokens == SAID["hello"] + 2


def test_deltas_come_while_codes_are_generated(speaker_server, monkeypatch):
    steps, step = [], RunningBatch.step

    def slow(self):
        steps.append(time.monotonic())
        time.sleep(0.03)
        return step(self)

    monkeypatch.setattr(RunningBatch, "step", slow)
    seen = [
        len(steps)
        for chunk in speak(speaker_server, stream=True)
        if chunk.choices and chunk.choices[0].delta.model_dump(exclude_none=True).get("audio", {}).get("data")
    ]
    assert len(seen) >= 2 and seen[0] < SAID["hello"] - 5, seen


def test_an_answer_in_text_is_text(speaker_server):
    for options in ({"modalities": SPOKEN, "audio": WAV}, {"modalities": ["text", *MODALITIES], "audio": WAV}):
        message = speaker_server.ask(question("hello"), **options).choices[0].message
        assert message.content == TALK and message.audio is None and not message.model_extra
        deltas = [chunk.choices[0].delta for chunk in speaker_server.streams(question("hello"), **options)]
        assert "".join(delta.content or "" for delta in deltas) == TALK
        assert not any("audio" in delta.model_dump(exclude_none=True) for delta in deltas)


def test_audio_alone_is_one_block(speaker_server):
    """Even of a question that is answered in text otherwise."""
    (part,) = generated("hello", "audio", most=40)
    answer = speak(speaker_server, "hello", modalities=["audio"], max_tokens=40)
    assert near(read(answer.choices[0].message.audio.data)[0], to_integers(part["audio"][0]))
    assert answer.choices[0].message.content is None


def test_audio_that_is_cut_says_so(speaker_server):
    answer = speak(speaker_server, max_tokens=11)
    samples, _ = read(answer.choices[0].message.audio.data)
    assert answer.choices[0].finish_reason == "length" and near(samples, to_integers(said("Say: hello", most=11)))
    chunks = list(speak(speaker_server, max_tokens=11, stream=True))
    assert near(np.frombuffer(joined(chunks)[0]["data"][44:], "<i2"), samples)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"


# ---- Images ---------------------------------------------------------------------------------------------------------


def image_of(part: dict) -> Image.Image:
    head, _, data = part["image_url"]["url"].partition(",")
    assert part["type"] == "image_url" and head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_message_has_the_image_that_generate_draws(speaker_server):
    (part,) = generated("Draw a dog", "text", "image")
    answer = speaker_server.ask(question("Draw a dog"), modalities=["image", "text"])
    (image,) = answer.choices[0].message.images
    assert np.array_equal(np.asarray(image_of(image)), np.asarray(part["image"]))
    assert answer.choices[0].message.content is None and answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens_details.model_extra["image_tokens"] == 18
    deltas = [
        chunk.choices[0].delta
        for chunk in speaker_server.streams(question("Draw a dog"), modalities=["text", "image"])
    ]
    assert [image for delta in deltas for image in delta.model_extra.get("images", [])] == [image]


def test_an_image_that_is_cut_is_its_whole_rows(speaker_server):
    (part,) = generated("Draw a dog", "text", "image", most=11)
    answer = speaker_server.ask(question("Draw a dog"), modalities=["text", "image"], max_tokens=11)
    (image,) = answer.choices[0].message.images
    assert part["is_cut"] and answer.choices[0].finish_reason == "length"
    assert image_of(image).size == part["image"].size == (16, 8)
    cut = speaker_server.ask(question("Draw a dog"), modalities=["text", "image"], max_tokens=3)
    assert not cut.choices[0].message.model_extra and cut.choices[0].message.content == ""


def test_answers_of_all_kinds_share_the_batch(speaker_server):
    every = {"modalities": ["text", *MODALITIES], "audio": WAV}
    with ThreadPoolExecutor(6) as pool:
        asked = [
            pool.submit(speaker_server.ask, question(text), stream=stream, **every)
            for stream in (False, True)
            for text in ("Say: hello", "Draw a dog", "hello")
        ]
        spoken, drawn, talked, *streams = [each.result() for each in asked]
    assert near(read(spoken.choices[0].message.audio.data)[0], to_integers(said("Say: hello")))
    assert talked.choices[0].message.content == TALK
    streams = [list(stream) for stream in streams]
    assert near(np.frombuffer(joined(streams[0])[0]["data"][44:], "<i2"), to_integers(said("Say: hello")))
    images = [image for chunk in streams[1] for image in chunk.choices[0].delta.model_extra.get("images", [])]
    assert images == drawn.choices[0].message.images and len(images) == 1


def test_several_answers_have_their_own_audio(speaker_server):
    options = {"n": 2, "seed": 3, "temperature": 2.0, "max_tokens": 40, "modalities": ["audio"]}
    first, second = (choice.message.audio for choice in speak(speaker_server, **options).choices)
    assert first.id != second.id and first.data != second.data
    chunks = list(speak(speaker_server, stream=True, **options))
    for index, audio in enumerate((first, second)):
        assert near(np.frombuffer(joined(chunks, index)[0]["data"][44:], "<i2"), read(audio.data)[0])


# ---- Earlier answers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_audio_of_an_earlier_answer_is_read_as_its_codes(speaker_server, stream):
    model, processor = speaking()
    answer = speak(speaker_server, stream=stream)
    audio_id = joined(answer)[0]["id"] if stream else answer.choices[0].message.audio.id
    before = [*question("Say: hello"), {"role": "assistant", "audio": {"id": audio_id}}]
    follow = speaker_server.ask(question("hello", *before), max_tokens=12)
    asked = processor.apply_chat_template(
        question("Say: hello"), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**asked, output_modalities=SPOKEN, max_new_tokens=60, do_sample=False)
    codes = processor.written["audio"].tokens.to_codes(ids[0, asked["input_ids"].shape[1] + 1 : -2].tolist())[0]
    spoken = {"role": "assistant", "content": [{"type": "audio", "codes": codes}]}
    whole = processor.apply_chat_template(
        question("hello", *question("Say: hello"), spoken), add_generation_prompt=True, tokenize=True,
        return_dict=True, return_tensors="pt",
    )  # fmt: skip
    assert follow.usage.prompt_tokens == whole["input_ids"].shape[1] > asked["input_ids"].shape[1] + SAID["hello"]
    expected = model.generate(**whole, max_new_tokens=12, do_sample=False)[0, whole["input_ids"].shape[1] :]
    assert follow.choices[0].message.content == processor.decode(expected, skip_special_tokens=True)


def test_audio_that_is_not_kept_is_refused(speaker_server):
    import openai

    for message, word in (
        (
            {"role": "assistant", "audio": {"id": "audio_1"}},
            r"`messages\[0\].audio.id`: this server has no audio 'aud",
        ),
        ({"role": "assistant", "audio": {}}, r"`messages\[0\].audio.id`: this server has no audio None"),
        ({"role": "user", "content": "a", "audio": {"id": "x"}}, "is for an assistant's message; send it as an `inpu"),
        ({"role": "assistant", "content": "a", "images": [{}]}, r"`messages\[0\].images`: they are not read; send"),
        (
            {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
            r"`messages\[0\].content`: this model writes images as codes, .*; send them in a user's message",
        ),
    ):
        with pytest.raises(openai.BadRequestError, match=word):
            speaker_server.ask([message, *user(text_part("hello"))])


# ---- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"modalities": []}, r"`modalities`: expected a list of text, image, audio, got \[\]"),
        ({"modalities": "audio"}, "`modalities`: expected a list of text, image, audio, got 'audio'"),
        ({"modalities": ["text", "video"]}, "`modalities`: expected a list"),
        ({"modalities": [["text"]]}, "`modalities`: expected a list"),
        ({"modalities": SPOKEN}, "`audio`: expected an object such as .*, got None"),
        ({"modalities": SPOKEN, "audio": "wav"}, "`audio`: expected an object such as"),
        ({"audio": WAV}, "`audio`: it needs `modalities` with 'audio'; add that, or leave it out"),
        ({"modalities": SPOKEN, "audio": {"voice": "default"}}, r"`audio.format`: expected wav, .*pcm16, got None"),
        ({"modalities": SPOKEN, "audio": {**WAV, "format": "opus"}}, "`audio.format`: expected wav, .*, got 'opus'"),
        ({"modalities": SPOKEN, "audio": {**WAV, "voice": "alloy"}}, "`audio.voice`: this model has one voice"),
        ({"modalities": SPOKEN, "audio": {**WAV, "speed": 2}}, "`audio`: expected `voice` and `format`, got 'speed'"),
        ({"modalities": SPOKEN, "audio": WAV, "logprobs": True}, "`logprobs`: only of answers in text alone"),
    ],
)
def test_a_bad_request_gets_400_and_the_reason(speaker_server, options, word):
    import openai

    with pytest.raises(openai.BadRequestError, match=word) as caught:
        speaker_server.ask(question("hello"), **options)
    assert caught.value.code == "400" and caught.value.param == word.split("`")[1]


def test_a_model_without_the_codec_names_the_remedy(server_here):
    import openai

    for name, options in (("image", {}), ("audio", {"audio": WAV})):
        with pytest.raises(
            openai.BadRequestError,
            match=rf"`model`: it writes no {name}.*; use a model with a codec of {name} \(`model",
        ):
            server_here.ask(question("hello"), modalities=["text", name], **options)


def test_the_room_of_a_server_limits_an_answer(speaker_folder):
    with run_here(speaker_folder, tokens=15) as server:
        answer = speak(server)
        assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 15
