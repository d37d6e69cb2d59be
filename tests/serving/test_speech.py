"""speech.py: transcripts of a converted Whisper, in every form that OpenAI's clients read."""

import io

import pytest
import soundfile
from transformers import pipeline

from modeling_mm.serving.speech import clock, subtitles, timed
from tests.fakes.processor_parts import RATE
from tests.fakes.serving_parts import Server, needs_extra
from tests.fakes.whisper_parts import converted, speech

SECONDS = 2.1  # more than two windows


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """`servers(is_multilingual)`: a server of a converted Whisper, started once."""
    started = {}

    def server(is_multilingual: bool = True):
        if is_multilingual not in started:
            folder = tmp_path_factory.mktemp("served") / "whisper"
            model, processor = converted(is_multilingual)
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            started[is_multilingual] = Server(folder)
        return started[is_multilingual]

    yield server
    for each in started.values():
        each.stop()


def wav(seed: int = 0, seconds: float = SECONDS) -> tuple[str, bytes]:
    file = io.BytesIO()
    soundfile.write(file, speech(seconds, seed), RATE, "FLOAT", format="WAV")
    return "a.wav", file.getvalue()


def said(is_multilingual: bool = True, **options):
    """Answers of the pipeline in this process."""
    model, processor = converted(is_multilingual)
    parts = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    pipe = pipeline("automatic-speech-recognition", model=model, device="cpu", **parts)
    return pipe(speech(SECONDS), num_beams=1, **options)


@needs_extra
def test_transcripts_are_the_pipelines(servers):
    server = servers()
    create = server.client.audio.transcriptions.create
    base = {"model": server.folder, "file": wav()}
    text = said(return_language=True)["text"].strip()
    assert create(**base).text == text
    assert create(**base, response_format="text") == text
    assert create(**base, language="de").text == said(language="de")["text"].strip()
    assert (
        create(**base, prompt="hello there").text == said(prompt="hello there", return_language=True)["text"].strip()
    )
    events = list(create(**base, stream=True))
    assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
    assert events[0].delta == events[1].text == text


@needs_extra
def test_timestamps_are_the_pipelines(servers):
    server = servers()
    create = server.client.audio.transcriptions.create
    base = {"model": server.folder, "file": wav(), "language": "en"}
    chunks = said(return_timestamps=True, language="en")["chunks"]
    verbose = create(**base, response_format="verbose_json")
    assert [each.text for each in verbose.segments] == [chunk["text"] for chunk in chunks]
    expected = [timed(chunk, SECONDS) for chunk in chunks]
    assert [{"start": each.start, "end": each.end} for each in verbose.segments] == expected
    assert (verbose.language, verbose.duration) == ("en", SECONDS) and verbose.words is None
    words = said(return_timestamps="word", language="en")["chunks"]
    both = create(**base, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert [each.word for each in both.words] == [word["text"].strip() for word in words]
    assert [each.start for each in both.words] == [word["timestamp"][0] for word in words]
    assert [each.text for each in both.segments] == [chunk["text"] for chunk in chunks]
    segments = [{**timed(chunk, SECONDS), "text": chunk["text"]} for chunk in chunks]
    for form in ("srt", "vtt"):
        assert create(**base, response_format=form) == subtitles(segments, form)


@needs_extra
def test_a_translation_has_its_own_route(servers):
    server = servers()
    made = server.client.audio.translations.create(model=server.folder, file=wav())
    assert made.text == said(task="translate", return_language=True)["text"].strip() != said()["text"].strip()


@needs_extra
@pytest.mark.parametrize(
    ("is_multilingual", "route", "options", "word"),
    [
        (True, "transcriptions", {"language": "fr"}, "`language`: expected a language among de, en, zh, got 'fr'"),
        (True, "transcriptions", {"timestamp_granularities": ["word"]}, "`timestamp_granularities`: they need"),
        (
            True,
            "transcriptions",
            {"timestamp_granularities": ["letter"], "response_format": "verbose_json"},
            "`timestamp_granularities`: expected segment or word, got 'letter'",
        ),
        (True, "transcriptions", {"response_format": "diarized_json"}, "needs timestamps or speakers"),
        (True, "transcriptions", {"file": ("a.wav", b"no audio")}, "cannot be decoded"),
        (False, "translations", {}, "`model`: it does not translate speech"),
    ],
)
def test_bad_requests_get_400_and_the_reason(servers, is_multilingual, route, options, word):
    import openai

    server = servers(is_multilingual)
    create = getattr(server.client.audio, route).create
    with pytest.raises(openai.BadRequestError, match=word):
        create(**{"model": server.folder, "file": wav(), **options})
    assert server.is_well()


SEGMENTS = [{"start": 0.0, "end": 1.52, "text": " A --> b"}, {"start": 3661.0, "end": 3662.999, "text": "c"}]


def test_subtitles():
    assert subtitles(SEGMENTS, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,520\nA -> b\n\n2\n01:01:01,000 --> 01:01:02,999\nc\n"
    )
    assert subtitles(SEGMENTS, "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.520\nA -> b\n\n01:01:01.000 --> 01:01:02.999\nc\n"
    )
    assert clock(59.9996, ",") == "00:01:00,000"
    assert timed({"timestamp": (None, None)}, 2.5) == {"start": 0.0, "end": 2.5}
