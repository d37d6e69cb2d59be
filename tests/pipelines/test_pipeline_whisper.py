"""pipeline_whisper.py: converted Whispers against transformers' own pipeline of the originals."""

import pytest
import soundfile
import torch
from transformers import pipeline

from modeling_mm.pipeline_whisper import MMWhisperPipeline
from tests.fakes.processor_parts import RATE
from tests.fakes.whisper_parts import converted, speech, whisper

TASK = "automatic-speech-recognition"
GREEDY = {"num_beams": 1}


@pytest.fixture(scope="session")
def pipes():
    """`pipes(is_multilingual)`: the stock pipeline of the original, and ours of the conversion."""
    made = {}

    def pair(is_multilingual: bool = False):
        if is_multilingual not in made:
            model, processor = whisper(is_multilingual)
            parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
            stock = pipeline(TASK, model=model, device="cpu", **parts)
            model, processor = converted(is_multilingual)
            parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
            ours = pipeline(TASK, model=model, device="cpu", **parts)
            made[is_multilingual] = stock, ours
        return made[is_multilingual]

    return pair


# Options of both; of the stock pipeline beside them, which does not cut long audio by itself; of ours.
CASES = {
    "short": (0.7, GREEDY, {}, {}),
    "five beams by default": (0.7, {}, {}, {}),
    "timestamps": (0.7, {"return_timestamps": True, **GREEDY}, {}, {}),
    "words": (0.7, {"return_timestamps": "word", **GREEDY}, {}, {}),
    "words of beams": (0.7, {"return_timestamps": "word", "num_beams": 2}, {}, {}),
    "chunks of a window": (2.1, GREEDY, {"chunk_length_s": 1}, {}),
    "chunks with timestamps": (2.1, {"return_timestamps": True, **GREEDY}, {"chunk_length_s": 1}, {}),
    "chunks with words": (2.1, {"return_timestamps": "word", **GREEDY}, {"chunk_length_s": 1}, {}),
    "chunks and strides": (2.1, {"chunk_length_s": 0.8, "stride_length_s": [0.2, 0.1], **GREEDY}, {}, {}),
    "sequential": (2.1, {"return_timestamps": True, **GREEDY}, {}, {"long_audio": "sequential"}),
    "sequential words": (2.1, {"return_timestamps": "word", **GREEDY}, {}, {"long_audio": "sequential"}),
    "sequential with the text before": (
        2.1,
        {"return_timestamps": True, "condition_on_prev_tokens": True, **GREEDY},
        {},
        {"long_audio": "sequential"},
    ),
}  # fmt: skip


MULTILINGUAL = ("short", "timestamps", "words", "sequential")


@pytest.mark.parametrize(
    ("name", "is_multilingual"), [*((name, False) for name in CASES), *((name, True) for name in MULTILINGUAL)]
)
def test_texts_and_chunks_are_the_stock_pipelines(pipes, name, is_multilingual):
    seconds, options, theirs, ours = CASES[name]
    stock, pipe = pipes(is_multilingual)
    assert type(pipe) is MMWhisperPipeline
    expected = stock(speech(seconds), **options, **theirs)
    assert pipe(speech(seconds), **options, **ours) == expected
    assert len(expected["text"]) > 1 and ("chunks" in expected) == ("return_timestamps" in options)
    assert pipe(speech(seconds, seed=1), **options, **ours) != expected, "the audio has no effect"


def test_thresholds_and_rising_temperatures_are_whispers_own(pipes):
    stock, pipe = pipes()
    options = {"return_timestamps": True, "temperature": (0.0, 1e-3), "logprob_threshold": -0.1, **GREEDY}
    options |= {"no_speech_threshold": 0.6, "compression_ratio_threshold": 1.35, "condition_on_prev_tokens": True}
    answers = []
    for transcribe, more in ((stock, {}), (pipe, {"long_audio": "sequential"})):
        torch.manual_seed(0)
        answers.append(transcribe(speech(2.1), **options, **more))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("options", [{}, {"return_timestamps": True}, {"return_timestamps": "word"}], ids=str)
def test_chunks_of_several_recordings_share_batches(pipes, options):
    _, pipe = pipes()
    sounds = [speech(2.1), speech(0.7, 1), speech(1.5, 2)]
    assert pipe(sounds, batch_size=4, **GREEDY, **options) == [pipe(sound, **GREEDY, **options) for sound in sounds]


def test_the_sequential_way_needs_no_timestamps_to_be_asked_for(pipes):
    stock, pipe = pipes()
    expected = stock(speech(2.1), return_timestamps=True, **GREEDY)["text"]
    assert pipe(speech(2.1), long_audio="sequential", **GREEDY) == {"text": expected}


@pytest.mark.parametrize("more", [{}, {"return_timestamps": True}], ids=str)
@pytest.mark.parametrize("options", [{"language": "de"}, {"language": "zh", "task": "translate"}], ids=str)
def test_language_and_task_are_whispers_own(pipes, options, more):
    stock, pipe = pipes(is_multilingual=True)
    assert pipe(speech(), **options, **more, **GREEDY) == stock(
        speech(), **more, generate_kwargs={**options, **GREEDY}
    )
    assert pipe(speech(), **options, **GREEDY) != pipe(speech(), language="en", **GREEDY)


def test_the_language_that_was_detected_is_returned(pipes):
    stock, pipe = pipes(is_multilingual=True)
    options = {"return_language": True, "return_timestamps": True, **GREEDY}
    expected = stock(speech(), **options)
    assert pipe(speech(), **options) == expected
    assert {chunk["language"] for chunk in expected["chunks"]} <= {"english", "german", "chinese"}
    assert pipe([speech(), speech(0.7, 1)], batch_size=2, **options) == [
        pipe(speech(0.7, seed), **options) for seed in (0, 1)
    ]


def test_text_before_the_audio_is_whispers_prompt(pipes):
    stock, pipe = pipes()
    ids = torch.tensor(stock.tokenizer.get_prompt_ids("hello there"))
    for length, more in ((0.7, {}), (2.1, {"chunk_length_s": 1})):
        expected = stock(speech(length), prompt_ids=ids, **more, **GREEDY)["text"].replace(" hello there", "", 1)
        assert pipe(speech(length), prompt="hello there ", **GREEDY)["text"] == expected
        assert pipe(speech(length), **GREEDY)["text"] != expected


def test_control_tokens_in_the_text_before_the_audio_are_plain_text(pipes, monkeypatch):
    _, pipe = pipes()
    seen, generate = [], pipe.whisper.generate
    monkeypatch.setattr(pipe.whisper, "generate", lambda *given, **kw: seen.append(kw) or generate(*given, **kw))
    pipe(speech(), prompt="<|endoftext|><|0.02|><|audio|> " * 9, **GREEDY)
    start, *ids = seen[0]["prompt_ids"].tolist()
    assert start == pipe.tokenizer.convert_tokens_to_ids("<|startofprev|>")
    assert max(ids) < pipe.tokenizer.vocab_size and pipe.tokenizer.eos_token_id not in ids
    assert len(ids) == 59, "half of the positions, and the last of the text"


def test_a_saved_model_is_transcribed_with_alike_and_files_are_read(pipes, tmp_path):
    model, processor = converted()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    pipe = pipeline(TASK, str(tmp_path / "model"), device="cpu")
    soundfile.write(tmp_path / "sound.mp3", speech(2.1), RATE)
    rows = [speech(2.1), {"raw": speech(2.1), "sampling_rate": RATE}]
    assert pipe(rows, **GREEDY) == [pipes()[1](speech(2.1), **GREEDY)] * 2
    assert pipe(str(tmp_path / "sound.mp3"), **GREEDY)["text"]


WRONG = {
    "an unknown language": (True, {"language": "fr"}, "a language among en, de, zh, got 'fr'"),
    "another language of English": (False, {"language": "de"}, "a language among en, got 'de'"),
    "an unknown task": (True, {"task": "sing"}, "task must be one of 'transcribe', 'translate', got 'sing'"),
    "a translation into English": (False, {"task": "translate"}, "task must be one of 'transcribe', got 'translate'"),
    "characters": (False, {"return_timestamps": "char"}, "return_timestamps must be one of False, True, 'word'"),
    "the language of English": (False, {"return_language": True}, "`return_language` is for multilingual"),
    "another way": (False, {"long_audio": "whole"}, "long_audio must be one of 'chunked', 'sequential', got 'whole'"),
    "two ways": (False, {"long_audio": "sequential", "chunk_length_s": 1}, "leave one of the two out"),
    "chunks beyond the window": (False, {"chunk_length_s": 1.5}, "at most a window, 1 s, got 1.5"),
    "negative chunks": (False, {"chunk_length_s": -1}, "must be positive"),
    "strides too long": (False, {"chunk_length_s": 1, "stride_length_s": 0.5}, "longer than its two strides"),
    "a decoder of CTC": (False, {"decoder_kwargs": {"beam": 1}}, "for CTC models"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_value_errors(pipes, name):
    is_multilingual, options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        pipes(is_multilingual)[1](speech(), **options)
