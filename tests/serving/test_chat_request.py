"""Checks of chat requests, without a server: the conversation and options, and refusals with their reason."""

import base64
import inspect
import json

import pytest

from modeling_mm.chat import media_source, normalize_conversations, normalize_part
from modeling_mm.serving import SourcePolicy
from modeling_mm.serving.chat_request import check_chat
from modeling_mm.serving.fields import CHAT_FIELDS, EMBEDDING_FIELDS, RESPONSE_FIELDS, TRANSCRIPTION_FIELDS
from modeling_mm.serving.kept_audio import KeptAudio
from modeling_mm.serving.limits import BadRequest
from modeling_mm.serving.preparing import read
from modeling_mm.serving.sampling import Sampling
from modeling_mm.sources import read_bytes
from tests.fakes.gallery import red

RED = base64.b64encode(red()).decode()


def text(words) -> dict:
    return {"type": "text", "text": words}


def image(source) -> dict:
    return {"type": "image_url", "image_url": {"url": source}}


def chat(*parts, **fields) -> dict:
    return {"messages": [{"role": "user", "content": list(parts) or "x"}], **fields}


def test_what_asks_for_nothing_passes_and_the_request_is_left_as_it_was():
    body = chat(image(RED), text("x"), n=1, tools=[], logit_bias={}, stop="a")
    before = json.dumps(body)
    checked = check_chat(body)
    assert checked.messages[0]["content"] == [{"type": "image"}, text("x")]
    assert [(media.where, media.source) for media in checked.media] == [("messages[0].content[0].image_url", RED)]
    assert checked.sampling == Sampling(stop=("a",)) and not checked.stream
    assert json.dumps(body) == before


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": RED}},
        {"type": "image_url", "image_url": f"data:image/png;base64,{RED}", "detail": "low"},
        {"type": "input_image", "image_url": RED},
        {"type": "image", "image": RED},
        {"type": "image", "url": f"data:;base64,{RED}"},
        {"type": "image", "base64": RED, "path": None},
        {"type": "image", "path": RED},  # what is no file is base64
        {"type": "audio_url", "audio_url": {"url": RED}},
        {"type": "input_audio", "input_audio": {"data": RED, "format": "wav"}},
        {"type": "input_audio", "input_audio": RED},
        {"type": "audio", "audio": RED},
        {"type": "video_url", "video_url": {"url": RED}},
        {"type": "video", "path": RED},
    ],
)
def test_the_server_takes_the_parts_that_the_processor_takes(part):
    kind = next(name for name in ("image", "audio", "video") if name in part["type"])
    ((ours,),), _ = normalize_conversations([{"role": "developer", "content": [part]}])
    assert ours["role"] == "system"
    assert (ours["content"][0]["type"], read_bytes(media_source(ours["content"][0]))) == (kind, red())
    (media,) = check_chat(chat(part)).media
    assert media.part == {"type": kind} and read(media, SourcePolicy(), 1000) == red()


def test_texts_of_the_other_protocol_are_texts():
    for kind in ("text", "input_text", "output_text"):
        part = {"type": kind, "text": "x"}
        assert check_chat(chat(part)).messages[0]["content"] == [text("x")] == [normalize_part(part)]


def test_paths_are_no_way_to_the_files_of_the_server(tmp_path):
    (tmp_path / "a.png").write_bytes(red())
    for part in (
        {"type": "image", "path": str(tmp_path / "a.png")},
        {"type": "image", "url": f"file://{tmp_path}/a.png"},
    ):
        with pytest.raises(BadRequest, match=r"messages\[0\].content\[0\].image`: .* as a data: URL"):
            read(check_chat(chat(part)).media[0], SourcePolicy(), 1000)


def test_audio_is_read_from_each_kind_of_part():
    for part in (
        {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,QUJD"}},
        {"type": "audio_url", "audio_url": "QUJD"},
    ):
        (media,) = check_chat(chat(part)).media
        assert read(media, SourcePolicy(), 100) == b"ABC"


def test_only_what_is_known_is_handed_on():
    body = chat(seed=1, user="me", stream_options={"include_usage": True}, reasoning_effort=None)
    checked = check_chat(body)
    assert checked.sampling == Sampling(temperature=1.0, seed=1) and checked.include_usage


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template_kwargs", {"processor_kwargs": {"images": ["/etc/passwd"]}}),
        ("chat_template_kwargs", {"chat_template": "{% for i in range(99999) %}{% endfor %}"}),
        ("generation_config", '{"num_beams": 100000}'),
        ("stop", ["a"] * 5),
        ("stop", "a" * 65),
        ("stop", [""]),
        ("logit_bias", {"5": float("inf")}),
        ("logit_bias", {"5": float("nan")}),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"-5": 1}),
        ("logit_bias", {"9" * 5000: 1}),
        ("logit_bias", {str(token): 1 for token in range(1025)}),
        ("logit_bias", []),
        ("temperature", -0.001),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("temperature", True),
        ("temperature", "1"),
        ("temperature", [1]),
        ("frequency_penalty", -2.1),
        ("presence_penalty", 2.1),
        ("n", 0),
        ("n", 17),
        ("n", True),
        ("top_k", 0),
        ("top_logprobs", 21),
        ("top_logprobs", 2),
        ("logprobs", 1),
        ("stream_options", []),
        ("stream_options", {"include_usage": 1}),
        ("stream_options", {"usage": True}),
        ("response_format", {"type": "json_object"}),
        ("seed", 2**63),
        ("max_tokens", 1.5),
        ("model", ["gpt"]),
        ("stream", 1),
        ("messages", "hello"),
    ],
)
def test_what_could_open_files_or_hold_the_server_up_is_refused(name, value):
    with pytest.raises(BadRequest, match=f"`{name}[^`]*`: "):
        check_chat({**chat(), name: value})


HARMLESS = {
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "parallel_tool_calls": True,
    "prompt_cache_key": "a",
    "prompt_cache_options": {"mode": "x"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "none",
    "response_format": {"type": "text"},
    "safety_identifier": "a",
    "service_tier": "auto",
    "store": True,
    "stream_options": {"include_obfuscation": False},
    "tool_choice": "auto",
    "tools": [],
    "user": "me",
    "verbosity": "medium",
}


def test_fields_that_change_no_answer_are_ignored():
    assert check_chat(chat(**HARMLESS)) == check_chat(chat())


def test_every_field_of_the_official_client_is_decided():
    """A new client may send more; then this test says which."""
    completions = pytest.importorskip("openai.resources.chat.completions")
    transcriptions = pytest.importorskip("openai.resources.audio.transcriptions")
    for create, fields in (
        (completions.Completions.create, CHAT_FIELDS),
        (pytest.importorskip("openai.resources.responses").Responses.create, RESPONSE_FIELDS),
        (pytest.importorskip("openai.resources.embeddings").Embeddings.create, EMBEDDING_FIELDS),
        (transcriptions.Transcriptions.create, TRANSCRIPTION_FIELDS),
    ):
        sent = set(inspect.signature(create).parameters)
        sent -= {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
        assert sent <= {*fields.served, *fields.ignored, *fields.refused}


@pytest.mark.parametrize("value", [0, 1e-300, 1e-8, 0.009, 0.01, 1, 2, None])
def test_temperatures_that_are_served(value):
    assert check_chat(chat(temperature=value)).sampling.temperature == value


def test_audio_of_earlier_answers_counts_as_the_text_of_its_codes():
    kept = KeptAudio()
    kept.keep("a", "<audio_code_1>" * 5000)
    spoken = {"role": "assistant", "audio": {"id": "a"}}
    (message, _) = check_chat({"messages": [{**spoken, "content": "hi"}, *chat()["messages"]]}, kept).messages
    assert message == {"role": "assistant", "content": [text("hi"), {**text(""), "codes": "<audio_code_1>" * 5000}]}
    with pytest.raises(BadRequest, match="200000 characters of text at most, got 210000"):
        check_chat({"messages": [spoken] * 3}, kept)
    with pytest.raises(BadRequest, match=r"messages\[0\].audio.id`: this server has no audio 'a', or not any more"):
        check_chat({"messages": [spoken]})
    (silent,) = check_chat(chat({**text("x"), "codes": "<audio_code_1>"})).messages
    assert silent["content"] == [text("x")], "no client writes codes"


def test_at_the_limits_requests_pass_and_beyond_them_they_do_not():
    check_chat(chat(*[image(RED)] * 16, text("a" * 200_000), stop=["a" * 64] * 4, logit_bias={"5": -100}))
    check_chat(chat(*[text("")] * 1023))
    for parts, reason in (
        ([image(RED)] * 17, "16 images, audio files and videos at most, got 17"),
        ([text("a" * 100_000)] * 3, "200000 characters of text at most, got 300000"),
        ([text("")] * 1024, "1024 messages and parts at most, got 1025"),
        ([text("\ud800")], r"messages\[0\].content\[0\].text`: holds half of a surrogate pair"),
    ):
        with pytest.raises(BadRequest, match=reason):
            check_chat(chat(*parts))
