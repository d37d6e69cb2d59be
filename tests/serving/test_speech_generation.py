"""`/v1/audio/speech` with OpenAI's own client: what `generate` says, as files and in chunks while it is generated."""

import io
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
import soundfile
import soxr

from modeling_mm.serving.audio_output import FORMATS, wav_head
from modeling_mm.serving.running_batch import RunningBatch
from tests.fakes.serving_parts import needs_extra, run_here, settled, text_part, user
from tests.fakes.writers import SAID, speaking

pytestmark = needs_extra
RATE = 800  # of the tiny codec
PCM_RATE = 24_000


@cache
def said(text: str) -> np.ndarray:
    """The samples of `generate` in this process, (length,)."""
    model, processor = speaking()
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": f"Say: {text}"}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    ids = model.generate(**inputs, output_modalities=("audio",), max_new_tokens=60, do_sample=False)
    (part,) = processor.decode_media(ids[0, inputs["input_ids"].shape[1] :])
    assert "is_cut" not in part and part["audio"][1] == RATE
    return part["audio"][0]


def to_integers(samples: np.ndarray) -> np.ndarray:
    return (np.clip(samples, -1, 1) * 32767).round().astype(np.int16)


def speak(server, text="hello", **options):
    options = {"voice": "default", "response_format": "flac", **options}
    return server.client.audio.speech.create(model=server.folder, input=text, **options)


def streamed(server, text="hello", **options):
    options = {"voice": "default", "response_format": "pcm", **options}
    return server.client.audio.speech.with_streaming_response.create(model=server.folder, input=text, **options)


@pytest.fixture
def steps(monkeypatch) -> list[float]:
    """The growing list of the times of the batch's steps, each of which takes 30 ms more."""
    times, step = [], RunningBatch.step

    def slow(self):
        times.append(time.monotonic())
        time.sleep(0.03)
        return step(self)

    monkeypatch.setattr(RunningBatch, "step", slow)
    return times


def test_texts_are_said_differently():
    assert {text: len(said(text)) // 40 for text in SAID} == SAID
    assert all(np.abs(said(text)).max() > 0.01 for text in SAID)


@pytest.mark.parametrize("text", SAID)
def test_files_hold_what_generate_says(speaker_server, text):
    expected = to_integers(said(text))
    for audio_format in ("flac", "wav"):
        samples, rate = soundfile.read(io.BytesIO(speak(speaker_server, text, response_format=audio_format).read()),
                                       dtype="int16")  # fmt: skip
        assert rate == RATE and samples.shape == expected.shape
        assert np.abs(samples.astype(int) - expected).max() <= 1, audio_format


def test_mp3_is_the_default_and_has_the_next_rate_of_its_kind(speaker_server):
    answer = speaker_server.client.audio.speech.create(model=speaker_server.folder, input="hello", voice="default")
    data = answer.read()
    assert (
        answer.response.headers["content-type"] == "audio/mpeg"
        and data == speak(speaker_server, response_format="mp3").read()
    )
    samples, rate = soundfile.read(io.BytesIO(data))
    expected = soxr.resample(said("hello"), RATE, rate)
    assert rate == 8000 and abs(len(samples) - len(expected)) <= 1152
    length = min(len(samples), len(expected))
    assert np.corrcoef(samples[:length], expected[:length])[0, 1] > 0.9


def test_pcm_has_the_rate_of_the_protocol_and_wav_a_header_without_length(speaker_server):
    data = speak(speaker_server, response_format="pcm").read()
    expected = to_integers(soxr.resample(said("hello"), RATE, PCM_RATE))
    assert np.abs(np.frombuffer(data, "<i2").astype(int) - expected).max() <= 1
    data = speak(speaker_server, response_format="wav").read()
    assert data[:44] == wav_head(RATE) and data[40:44] == b"\xff" * 4
    assert wav_head(RATE, 8)[4:8] == (44).to_bytes(4, "little") and wav_head(RATE, 8)[40:] == (8).to_bytes(4, "little")


@pytest.mark.parametrize("audio_format", ["wav", "pcm"])
def test_chunks_come_while_codes_are_generated(speaker_server, steps, audio_format):
    """The first one has a tenth of a second; the resampler of PCM holds back more than this audio of 800 Hz has."""
    codec = speaking()[1].written["audio"].codec
    first = 100 if audio_format == "pcm" else 0.1 * codec.rate + codec.reach[1] + 5
    assert first < SAID["hello"] or audio_format == "pcm"
    with streamed(speaker_server, response_format=audio_format) as response:
        assert response.headers["content-type"] == FORMATS[audio_format]
        seen = [(len(chunk), len(steps)) for chunk in response.iter_bytes()]
    assert seen[0][1] < first and len(seen) >= 2, seen
    alone = speak(speaker_server, response_format=audio_format).read()
    assert sum(size for size, _ in seen) == len(alone)


def test_seeds_and_temperatures(speaker_server):
    def data(**options) -> bytes:
        return speak(speaker_server, extra_body=options).read()

    assert data(seed=3, temperature=2.0) == data(seed=3, temperature=2.0)
    assert len({data(seed=seed, temperature=2.0) for seed in range(3)}) > 1
    assert data(temperature=0) == data()


def test_rows_that_speak_share_the_batch_with_rows_that_talk(speaker_server):
    chat = user(text_part("hello"))
    with ThreadPoolExecutor(4) as pool:
        talks = [pool.submit(speaker_server.says, chat) for _ in range(2)]
        speeches = [pool.submit(lambda text: speak(speaker_server, text).read(), text) for text in SAID]
        assert {each.result() for each in talks} == {"hello there, you are brief"}
        for text, speech in zip(SAID, speeches, strict=True):
            samples, _ = soundfile.read(io.BytesIO(speech.result()), dtype="int16")
            assert np.abs(samples.astype(int) - to_integers(said(text))).max() <= 1


def test_the_generation_ends_when_the_client_leaves(speaker_folder, steps):
    with run_here(speaker_folder) as server:
        with streamed(server, extra_body={"seed": 1, "temperature": 2.0}) as response:
            next(response.iter_bytes())
            begun = len(steps)
        assert settled(steps) < begun + 20
        assert len(soundfile.read(io.BytesIO(speak(server).read()))[0]) == SAID["hello"] * 40


# ---- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("audio_format", "tokens"), [("flac", 15), ("pcm", 8)])  # before the first chunk
def test_speech_that_does_not_fit_is_refused(speaker_folder, audio_format, tokens):
    import openai

    with run_here(speaker_folder, tokens=tokens) as server:
        left = rf"`input`: its speech .* the {tokens} tokens, {tokens / 20:.1f} s, that are left"
        with pytest.raises(openai.BadRequestError, match=left):
            speak(server, response_format=audio_format)
        if tokens > SAID["a dog"]:
            assert len(soundfile.read(io.BytesIO(speak(server, "a dog").read()))[0]) == SAID["a dog"] * 40


def test_a_stream_that_has_begun_and_does_not_fit_breaks_off(speaker_folder):
    import openai

    with run_here(speaker_folder, tokens=25) as server:
        with pytest.raises(openai.APIConnectionError):
            speak(server, response_format="wav").read()
        assert len(soundfile.read(io.BytesIO(speak(server, "a dog").read()))[0]) == SAID["a dog"] * 40


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"text": ""}, "`input`: expected 1 to 200000 characters, got 0"),
        ({"text": "a dog " * 1000}, r"The prompt has 600\d characters"),
        ({"text": "hello there " * 120}, r"The prompt takes \d+ tokens, and the model has 256 positions; shorten it"),
        ({"voice": "alloy"}, "`voice`: this model has one voice; expected default, got 'alloy'"),
        ({"voice": {"id": "voice_1"}}, "`voice`: this model has one voice"),
        ({"response_format": "opus"}, "`response_format`: expected mp3, flac, wav, pcm, got 'opus'"),
        ({"speed": 2.0}, r"`speed`: 2\.0 is not served here: the model has one speed; leave it out"),
        ({"instructions": "whisper"}, "`instructions`: 'whisper' is not served here"),
        ({"stream_format": "sse"}, "`stream_format`: 'sse' is not served here"),
        ({"extra_body": {"seed": 1.5}}, "`seed`: expected a whole number"),
    ],
)
def test_a_bad_request_gets_400_and_the_reason(speaker_server, options, word):
    import openai

    with pytest.raises(openai.BadRequestError, match=word) as caught:
        speak(speaker_server, **options)
    assert caught.value.type == "invalid_request_error" and caught.value.code == "400"
    named = re.match("`([^`]+)`", caught.value.body["message"])
    assert caught.value.param == (named and named[1])


def test_what_asks_for_nothing_is_taken(speaker_server):
    options = {"speed": 1.0, "instructions": "", "stream_format": "audio"}
    assert speak(speaker_server, **options).read() == speak(speaker_server).read()


def test_unknown_fields_models_and_a_model_that_writes_no_audio(speaker_server, server_here):
    import openai

    with pytest.raises(openai.UnprocessableEntityError, match="`pitch`: this route has no such field"):
        speak(speaker_server, extra_body={"pitch": 2})
    with pytest.raises(openai.NotFoundError, match="there is no 'tts-1' here"):
        speaker_server.client.audio.speech.create(model="tts-1", input="hello", voice="default")
    with pytest.raises(openai.BadRequestError, match="`model`: it writes no audio; use a model with a codec of audio"):
        speak(server_here)
