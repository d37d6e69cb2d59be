"""pipeline_speech.py: what is taken, long audio in chunks, and what is refused."""

import numpy as np
import pytest
import soundfile
import torch
from transformers import AutoModelForSpeechSeq2Seq, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from modeling_mm import MMForConditionalGeneration
from modeling_mm import pipeline_speech as speech
from modeling_mm.prompts import DEFAULT_TRANSCRIPTION_PROMPT
from modeling_mm.transcripts import merge_transcripts
from tests.fakes.pipeline_parts import GREEDY, NEW_TOKENS, answer_of, audio, build, chat, noise
from tests.fakes.processor_parts import RATE


def test_speech_is_transcribed_from_all_that_the_stock_pipeline_takes(pipes, tmp_path):
    pipe, path = pipes("automatic-speech-recognition"), tmp_path / "sound.wav"
    soundfile.write(path, noise(), RATE, subtype="FLOAT")
    expected = answer_of(pipe, chat(audio(), DEFAULT_TRANSCRIPTION_PROMPT))
    raw = {"raw": noise(), "sampling_rate": RATE}
    sources = [
        str(path),
        path.read_bytes(),
        noise(),
        torch.from_numpy(noise()),
        raw,
        {"array": noise(), "sampling_rate": RATE, "path": None},
        {"bytes": path.read_bytes(), "path": None},
        (noise(), RATE),
    ]
    assert [pipe(source, **GREEDY) for source in sources] == [{"text": expected}] * len(sources)
    assert set(raw) == {"raw", "sampling_rate"}, "the caller's dict was changed"
    assert pipe(sources, batch_size=3, **GREEDY) == [{"text": expected}] * len(sources)
    assert pipe(noise(), generate_kwargs=dict(GREEDY)) == {"text": expected}


def test_audio_of_another_rate_is_resampled_and_several_channels_mixed(pipes):
    pipe = pipes("automatic-speech-recognition")
    tone = np.sin(np.arange(8000) / 5).astype(np.float32)
    stereo = {"raw": np.stack([tone, tone]), "sampling_rate": 8000}
    expected = answer_of(
        pipe,
        chat({"type": "audio", "audio": (tone, 8000)}, DEFAULT_TRANSCRIPTION_PROMPT),
        max_new_tokens=NEW_TOKENS,
    )
    assert pipe(stereo, **GREEDY) == {"text": expected}


def test_the_prompt_of_speech_recognition_is_the_callers_to_choose(pipes):
    pipe = pipes("automatic-speech-recognition")
    assert pipe(noise(), prompt="hello there", **GREEDY) == {"text": answer_of(pipe, chat(audio(), "hello there"))}


def test_the_prompt_of_speech_recognition_is_the_models_own_for_a_language(pipes, monkeypatch):
    pipe, prompts = pipes("automatic-speech-recognition"), {"en": "hello there", "fr": "a bird"}
    monkeypatch.setattr(pipe.model.generation_config, "transcription_prompts", prompts, raising=False)
    for options, prompt in (({}, "hello there"), ({"language": "fr"}, "a bird")):
        assert pipe(noise(), **options, **GREEDY) == {"text": answer_of(pipe, chat(audio(), prompt))}
    with pytest.raises(ValueError, match="a language among en, fr, got 'de'"):
        pipe(noise(), language="de", **GREEDY)


def test_long_audio_without_chunks_goes_whole_into_its_windows(pipes, monkeypatch):
    pipe, asked = pipes("automatic-speech-recognition"), []
    ask = pipe.ask
    monkeypatch.setattr(pipe, "ask", lambda content: asked.append(ask(content)) or asked[-1])
    pipe(noise(3.4), **GREEDY)
    assert len(asked) == 1 and asked[0]["input_features"].shape[1] == 4


def test_long_audio_is_cut_into_chunks_by_chunk_length_s(pipes, monkeypatch):
    pipe, asked = pipes("automatic-speech-recognition"), []
    ask = pipe.ask
    monkeypatch.setattr(pipe, "ask", lambda content: asked.append(content[0]["audio"][0]) or ask(content))
    sound = noise(3.2)
    options = {"chunk_length_s": 1.0, "stride_length_s": 0.2, **GREEDY}
    alone = pipe(sound, **options)
    starts = [0.0, 0.6, 1.2, 1.8, 2.4]  # each begins 0.4 s before the end of the last one
    assert len(asked) == len(starts)
    for start, chunk in zip(starts, asked, strict=True):
        assert np.array_equal(chunk, sound[round(start * RATE) : round((start + 1.0) * RATE)])
    said = [answer_of(pipe, chat({"type": "audio", "audio": (c, RATE)}, DEFAULT_TRANSCRIPTION_PROMPT)) for c in asked]
    assert alone == {"text": merge_transcripts(said, [0.4 * RATE / len(chunk) for chunk in asked])}
    assert pipe(sound, batch_size=3, **options) == alone
    # Chunks of several audio inputs share batches and find back to their own.
    other = pipe(noise(1.5, seed=1), **options)
    assert pipe([sound, noise(1.5, seed=1), sound], batch_size=4, **options) == [alone, other, alone]


def test_a_model_of_few_windows_gets_long_audio_in_chunks(pipes, monkeypatch):
    pipe = pipes("automatic-speech-recognition")
    expected = pipe(noise(2.4), chunk_length_s=1, **GREEDY)
    whole = pipe(noise(2.4), **GREEDY)
    monkeypatch.setattr(pipe.model.generation_config, "max_windows", 1, raising=False)
    assert pipe(noise(2.4), **GREEDY) == expected != whole
    assert pipe(noise(1.0), **GREEDY) == pipe(noise(1.0), chunk_length_s=1, **GREEDY), "one window is whole"
    monkeypatch.setattr(pipe.model.generation_config, "max_windows", 3)
    assert pipe(noise(2.4), **GREEDY) == whole


def test_a_key_dataset_is_streamed(pipes):
    pipe = pipes("automatic-speech-recognition")
    seen = []

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            if i >= 4:
                raise IndexError(i)
            seen.append(i)
            return {"sound": {"array": noise(seed=i), "sampling_rate": RATE}}

    streamed = pipe(KeyDataset(Rows(), "sound"), batch_size=2, **GREEDY)
    first = next(iter(streamed))
    assert max(seen) < 3, "more was read than the first batch needs"
    assert first == pipe(noise(seed=0), **GREEDY)
    assert list(pipe(KeyDataset(Rows(), "sound"), batch_size=3, **GREEDY)) == [
        pipe(noise(seed=i), **GREEDY) for i in range(4)
    ]


def outputs_for(pipe, *transcripts: str, share: float = 1 / 3) -> list[dict]:
    end = pipe.processor.tokenizer.eos_token_id
    tokens = [[*pipe.processor.tokenizer(t, add_special_tokens=False).input_ids, end] for t in transcripts]
    return [{"tokens": torch.tensor([[ids]]), "share": share} for ids in tokens]


def test_what_two_chunks_both_say_is_written_once(pipes):
    pipe = pipes("automatic-speech-recognition")
    outputs = outputs_for(pipe, "the cat sat on the ma", "at on the mat and slept.")
    assert pipe.postprocess(outputs) == {"text": "the cat sat on the mat and slept."}


def test_an_answer_that_was_cut_off_is_warned_of(pipes, monkeypatch):
    pipe, warnings = pipes("automatic-speech-recognition"), []
    monkeypatch.setattr(speech.logger, "warning", warnings.append)
    pipe.postprocess(outputs_for(pipe, "whole", "too"))
    assert warnings == []
    pipe(noise(), **GREEDY)
    assert len(warnings) == 1
    assert f"1 of 1 transcripts of one audio input were cut off after {NEW_TOKENS} tokens" in warnings[0]
    assert "max_new_tokens" in warnings[0] and "chunk_length_s" in warnings[0]


WRONG_SPEECH = {
    "no such file": ("no/such.wav", {}, "expected an existing file"),
    "no sound": (b"no sound at all", {}, "cannot be decoded"),
    "no rate": ({"raw": noise()}, {}, "sampling_rate.*got them without"),
    "a stride": ({"raw": noise(), "sampling_rate": RATE, "stride": (1, 1)}, {}, "CTC.*chunk_length_s"),
    "another key": ({"raw": noise(), "sampling_rate": RATE, "partial": True}, {}, r"got \['partial'\] too"),
    "nothing": (np.zeros(0, dtype=np.float32), {}, "holds no samples"),
    "not finite": (np.full(10, np.nan, dtype=np.float32), {}, "NaN"),
    "strides too long": (noise(), {"chunk_length_s": 1, "stride_length_s": 0.5}, "longer than its two strides"),
    "negative": (noise(), {"chunk_length_s": -1}, "must be positive"),
    "three strides": (noise(), {"chunk_length_s": 1, "stride_length_s": [0.1] * 3}, "one `stride_length_s` or two"),
    "timestamps": (noise(), {"return_timestamps": True}, "`return_timestamps` is not possible"),
    "several answers": (noise(), {"num_return_sequences": 2, "num_beams": 2}, "one transcript for each .*, got 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_SPEECH)
def test_wrong_speech_is_a_value_error_with_the_remedy(pipes, name):
    source, options, message = WRONG_SPEECH[name]
    with pytest.raises(ValueError, match=message):
        pipes("automatic-speech-recognition")(source, **{**GREEDY, **options})


def test_a_model_that_does_not_hear_is_refused():
    model, processor = build(audio=None)
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    with pytest.raises(ValueError, match="with an audio encoder"):
        pipeline("automatic-speech-recognition", model=model, device="cpu", **parts)


def test_speech_recognition_of_a_model_in_memory_makes_its_processor_of_the_parts(pipes):
    model, processor = build()
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    pipe = pipeline("automatic-speech-recognition", model=model, device="cpu", **parts)
    assert pipe(noise(), **GREEDY) == pipes("automatic-speech-recognition")(noise(), **GREEDY)


def test_speech_to_text_has_its_auto_class(folders):
    assert type(AutoModelForSpeechSeq2Seq.from_pretrained(folders / "model")) is MMForConditionalGeneration
