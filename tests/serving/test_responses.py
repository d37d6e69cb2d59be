"""`/v1/responses` with OpenAI's own client: the answers of `generate`, whole and as events."""

import pytest

from tests.fakes.serving_parts import answer, audio_part, data_url, generated, needs_extra, png, text_part, user, wav
from tests.fakes.tiny_chats import CHATS


def as_input(number: int) -> list[dict]:
    """Return the question of one of `CHATS` as input of this route."""
    parts = []
    for part in CHATS[number]["messages"][0]["content"]:
        if part["type"] == "image":
            parts.append({"type": "input_image", "image_url": data_url(png(part["image"])), "detail": "auto"})
        elif part["type"] == "audio":
            parts.append(audio_part(wav(part["audio"])))
        else:
            parts.append({"type": "input_text", "text": part["text"]})
    return [{"role": "user", "content": parts}]


def create(server, given, **options):
    return server.client.responses.create(model=server.folder, input=given, **options)


@needs_extra
@pytest.mark.parametrize("number", [0, 2, 3, 4])
def test_an_answer_is_what_generate_says_streamed_and_not(server, number):
    whole = create(server, as_input(number))
    assert (whole.output_text, whole.status, whole.error) == (answer(number), "completed", None)
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    events = list(create(server, as_input(number), stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == answer(number) and [event.sequence_number for event in events] == [*range(len(events))]
    assert events[-1].response.output_text == answer(number) and events[-1].response.usage == whole.usage
    names = [event.type.removeprefix("response.") for event in events if "delta" not in event.type]
    opened = ["created", "in_progress", "output_item.added", "content_part.added"]
    assert names == [*opened, "output_text.done", "content_part.done", "output_item.done", "completed"]


@needs_extra
def test_the_clients_helper_reads_the_stream(server):
    with server.client.responses.stream(model=server.folder, input="hello") as stream:
        assert stream.get_final_response().output_text == answer(2)


@needs_extra
def test_text_instructions_and_earlier_answers(server):
    assert create(server, "hello").output_text == answer(2)
    system = {"role": "system", "content": "You are brief."}
    expected = generated([system, *user(text_part("hello"))])
    response = create(server, "hello", instructions="You are brief.", metadata={"a": "b"})
    assert (response.output_text, response.instructions) == (expected, "You are brief.")
    assert response.metadata == {"a": "b"}
    first = create(server, "hello")
    turns = [{"role": "user", "content": "hello"}, *first.output, {"role": "user", "content": "hello there"}]
    said = {"role": "assistant", "content": answer(2)}
    expected = generated([*user(text_part("hello")), said, {"role": "user", "content": "hello there"}])
    assert create(server, turns).output_text == expected


@needs_extra
def test_options_of_an_answer(server):
    short = create(server, "hello", max_output_tokens=2)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert short.usage.output_tokens == 2 and answer(2).startswith(short.output_text)
    *_, last = create(server, "hello", max_output_tokens=2, stream=True)
    assert last.type == "response.incomplete" and last.response.output_text == short.output_text
    said = {create(server, "hello", temperature=2, extra_body={"seed": seed}).output_text for seed in range(4)}
    assert len(said) > 1
    harmless = {
        "include": ["reasoning.encrypted_content"],
        "parallel_tool_calls": True,
        "prompt_cache_key": "a",
        "reasoning": {"effort": None},
        "safety_identifier": "b",
        "store": True,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "truncation": "disabled",
    }
    assert create(server, "hello", extra_body=harmless).output_text == answer(2)


@needs_extra
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"input": []}, "`input`: expected a text or a list of messages"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, r"`input\[0\]`: expected an item of type message"),
        ({"input": [{"role": "tool", "content": "x"}]}, r"`input\[0\].role`: expected system"),
        ({"input": user(text_part("x"))}, r"`input\[0\].content\[0\]`: expected a part of type input_text"),
        ({"input": user({"type": "input_image", "file_id": "x"})}, "file_id`: this server keeps no files"),
        ({"input": user({"type": "input_image", "image_url": "%%"})}, r"`input\[0\].content\[0\]`: .*base64"),
        ({"previous_response_id": "resp_1"}, "`previous_response_id`: .* keeps no conversation; send all messages"),
        ({"background": True}, "`background`: .* keeps no answer"),
        ({"tools": [{"type": "web_search"}]}, "`tools`: .* calls no tools"),
        ({"text": {"format": {"type": "json_object"}}}, "`text`: answers are free text"),
        ({"include": ["all"]}, "`include`: expected a list of message.output_text.logprobs"),
        ({"metadata": {"a": 1}}, "`metadata.a`: expected a text, got 1"),
        ({"instructions": ["x"]}, "`instructions`: expected a text"),
        ({"max_output_tokens": 0}, "`max_output_tokens`: expected a whole number"),
        ({"input": "a dog " * 500}, "the model has 128 positions"),
    ],
)
def test_a_bad_request_gets_400_and_the_reason(server, options, word, stream):
    import openai

    with pytest.raises(openai.BadRequestError, match=word):
        server.client.responses.create(**{"model": server.folder, "input": "hello", "stream": stream, **options})


@needs_extra
def test_a_fault_of_the_server_ends_the_stream_and_is_not_told(server_here, monkeypatch):
    def fail(*_):
        raise ValueError("what is in /etc/secret")

    monkeypatch.setattr("modeling_mm.serving.running_batch.RunningBatch.prefill", fail)
    events = list(create(server_here, "hello", stream=True))
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]
    assert "its log says why" in events[-1].response.error.message and "secret" not in str(events)
