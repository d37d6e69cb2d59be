"""scripts/serve.py with OpenAI's own client on the other end: answers about images and audio, streamed or not, equal
to `generate`; many clients at once; transcriptions."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fakes.processor_parts import RATE, sound
from tests.fakes.serving_parts import (
    ENDLESS,
    answer,
    data_url,
    generated,
    image_part,
    needs_extra,
    text_part,
    to_openai,
    user,
    wav,
)
from tests.fakes.tiny_chats import CHATS

# ---- Answers --------------------------------------------------------------------------------------------------------


def test_the_answers_that_are_asked_for_are_words_and_differ():
    answers = [answer(i) for i in range(len(CHATS))]
    assert len(set(answers)) >= 4 and all(text.isascii() and 0 < len(text) < 60 for text in answers), answers


@needs_extra
@pytest.mark.parametrize("number", range(len(CHATS)))
def test_an_answer_is_what_generate_says_streamed_and_not(server, number):
    messages = to_openai(CHATS[number])
    whole = server.ask(messages)
    assert whole.choices[0].message.content == answer(number) and whole.choices[0].finish_reason == "stop"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = server.streams(messages)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer(number)
    assert chunks[-1].choices[0].finish_reason == "stop" and len(chunks) >= 3
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@needs_extra
def test_a_conversation_goes_on_with_system_messages_and_earlier_answers(server):
    turns = [{"role": "system", "content": "You are brief."}, *user(text_part("hello"))]
    turns += [{"role": "assistant", "content": "a bird"}, {"role": "user", "content": "hello there"}]
    expected = generated([{**turn, "content": turn["content"]} for turn in turns])
    assert server.says(turns) == expected
    assert server.says([{**turns[0], "role": "developer"}, *turns[1:]]) == expected


@needs_extra
def test_lengths_and_stop_strings(server):
    messages = to_openai(CHATS[2])
    for options in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
        short = server.ask(messages, **options)
        assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 2
    chunks = server.streams(messages, max_tokens=2)
    assert chunks[-1].choices[0].finish_reason == "length" and chunks[-1].usage.completion_tokens == 2


@needs_extra
def test_an_answer_ends_before_its_stop_string_streamed_and_not(server):
    messages, whole = to_openai(CHATS[2]), answer(2)
    middle = len(whole) // 2
    for stop in (whole[middle : middle + 5], [whole[middle : middle + 2], "never"], whole[0], whole[-1]):
        expected = whole[: whole.index(stop if isinstance(stop, str) else stop[0])]
        chat = server.ask(messages, stop=stop)
        assert chat.choices[0].message.content == expected and chat.choices[0].finish_reason == "stop"
        chunks = server.streams(messages, stop=stop)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert chunks[-1].usage.completion_tokens == chat.usage.completion_tokens
    almost = whole[middle : middle + 3] + "\0"  # its beginning is held back, and told in the end
    assert server.says(messages, stop=almost) == whole


@needs_extra
def test_a_temperature_samples_and_zero_does_not(server):
    messages = to_openai(CHATS[2])
    assert server.says(messages, temperature=0) == answer(2)
    said = {server.says(messages, temperature=2, seed=seed, max_tokens=8) for seed in range(4)}
    assert len(said) > 1, "with a temperature of 2 the tiny model should waver"


@needs_extra
def test_a_seed_gives_the_same_answer_whoever_else_asks(server):
    """The server draws in one thread; a seed that is set elsewhere would be used up by others."""
    messages = user(text_part("hello"))

    def one(seed):
        return server.says(messages, temperature=2, seed=seed, max_tokens=40)

    alone = [one(seed) for seed in range(10)]
    assert len(set(alone)) > 5
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(one, range(10))) == alone


@needs_extra
def test_a_seed_leaves_the_draws_of_others_to_chance(server):
    messages, said = user(text_part("hello")), set()
    for _ in range(4):
        server.says(messages, temperature=2, seed=1, max_tokens=2)
        said.add(server.says(messages, temperature=2, max_tokens=40))
    assert len(said) > 1


@needs_extra
def test_ten_clients_at_once_all_get_their_own_answers(server):
    def one(number):
        messages = to_openai(CHATS[number % len(CHATS)])
        if number % 2:
            return server.says(messages)
        return "".join(chunk.choices[0].delta.content or "" for chunk in server.streams(messages))

    with ThreadPoolExecutor(10) as pool:
        said = list(pool.map(one, range(30)))
    assert said == [answer(number % len(CHATS)) for number in range(30)]


@needs_extra
def test_ten_clients_of_whom_some_are_wrong_or_leave_all_get_their_own_answers(server):
    import openai

    def one(number):
        if number % 3 == 1:
            with pytest.raises(openai.BadRequestError, match="no format that Pillow knows"):
                server.ask(user(image_part(data_url(b"no image"))), stream=number % 2 == 0)
            return None
        if number % 3 == 2:
            with server.ask(to_openai(CHATS[3]), stream=True) as stream:
                next(iter(stream))
            return None
        return server.says(to_openai(CHATS[number % len(CHATS)]))

    with ThreadPoolExecutor(10) as pool:
        said = list(pool.map(one, range(30)))
    assert said == [None if number % 3 else answer(number % len(CHATS)) for number in range(30)]


@needs_extra
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_answer(endless_server, stream):
    """Else the next one would wait for an answer of minutes."""
    import openai

    bias = {str(token): -100 for token in ends_of(endless_server)}
    asked = {"logit_bias": bias, "max_tokens": ENDLESS}
    messages = user(text_part("hello"))
    if stream:
        with endless_server.ask(messages, stream=True, **asked) as chunks:
            for _ in range(5):
                next(chunks)
    else:
        with pytest.raises(openai.APITimeoutError):
            endless_server.ask(messages, timeout=3, **asked)
    start = time.monotonic()
    endless_server.says(messages, max_tokens=2)
    assert time.monotonic() - start < 20


def ends_of(server) -> list[int]:
    ends = json.loads((Path(server.folder) / "generation_config.json").read_text())["eos_token_id"]
    return ends if isinstance(ends, list) else [ends]


@needs_extra
def test_a_server_has_its_own_limit_of_tokens(endless_server):
    import openai

    messages = user(text_part("hello"))
    with pytest.raises(openai.BadRequestError, match=f"this server generates {ENDLESS} at most"):
        endless_server.ask(messages, max_tokens=ENDLESS + 1)


@needs_extra
def test_the_model_is_listed_and_no_other_is_loaded(server, open_server, gallery):
    import openai

    assert [each.id for each in server.client.models.list()] == [server.folder]
    with pytest.raises(openai.NotFoundError, match=r"there is no 'gpt-9' here; this server has"):
        server.client.chat.completions.create(model="gpt-9", messages=user(text_part("hello")))
    with pytest.raises(openai.NotFoundError, match=r"there is no 'gpt-9'"):
        server.client.audio.transcriptions.create(model="gpt-9", file=("a.wav", wav()))
    asked = len(gallery.asked)
    with pytest.raises(openai.NotFoundError, match=r"there is no 'gpt-9'"):
        open_server.client.chat.completions.create(
            model="gpt-9", messages=user(image_part(f"{gallery.url}/red.png"), {"type": "none"})
        )
    assert len(gallery.asked) == asked, "the name comes first"
    for path in ("/load_model", "/reset", "/v1/systemone", "/v1/completions"):
        status, text = server.post(path, b'{"model": "/etc", "input": "x", "prompt": "x"}')
        assert status == 404 and f"There is no POST {path} here" in text


# ---- Transcriptions -------------------------------------------------------------------------------------------------


def heard(question) -> str:
    content = [{"type": "audio", "audio": sound()[0], "sampling_rate": RATE}, text_part(question)]
    return generated([{"role": "user", "content": content}])


@needs_extra
def test_a_transcription_is_the_answer_to_what_is_said(server):
    create, file = server.client.audio.transcriptions.create, ("a.wav", wav())
    assert create(model=server.folder, file=file).text == heard("What is said?")
    assert create(model=server.folder, file=file, language="fr").text == heard("Que dit la voix ?")
    assert create(model=server.folder, file=file, prompt="What do you hear?").text == heard("What do you hear?")
    assert create(model=server.folder, file=file, response_format="text").strip() == heard("What is said?").strip()
    events = list(create(model=server.folder, file=file, prompt="What do you hear?", stream=True))
    assert [event.type for event in events] == ["transcript.text.delta"] * (len(events) - 1) + ["transcript.text.done"]
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == heard("What do you hear?")


@needs_extra
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"file": ("a.wav", b"no audio")}, "cannot be decoded"),
        ({"file": ("a.wav", b"")}, "cannot be decoded|no samples|0 bytes"),
        ({"language": "xx"}, "`language`: expected a language among en, fr, got 'xx'"),
        ({"response_format": "srt"}, "`response_format`: srt needs timestamps .*; expected json, text, verbose_json"),
        ({"response_format": "xml"}, "`response_format`: expected json, text, verbose_json, got 'xml'"),
        ({"timestamp_granularities": ["word"]}, "`timestamp_granularities`: .* gives no timestamps"),
        ({"chunking_strategy": "auto"}, "`chunking_strategy`: .* takes the audio whole"),
        ({"extra_body": {"stream": "maybe"}}, "`stream`: expected true or false, got 'maybe'"),
        ({"temperature": 9}, "`temperature`: expected a number of at least 0 and at most 2"),
        ({"temperature": "hot"}, "`temperature`: expected a number, got 'hot'"),
        ({"prompt": "a" * 2000}, "positions"),
        ({"prompt": "a" * 200_001}, "`prompt`: expected 200000 characters at most"),
    ],
)
def test_a_bad_transcription_request_gets_400_and_the_reason(server, options, word):
    import openai

    with pytest.raises(openai.BadRequestError, match=word):
        server.client.audio.transcriptions.create(**{"model": server.folder, "file": ("a.wav", wav()), **options})
    assert server.is_well()


@needs_extra
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{}", "application/json"),
        (b"", "multipart/form-data; boundary=x"),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
    ],
)
def test_a_form_without_a_file_gets_400(server, body, content_type):
    status, text = server.post("/v1/audio/transcriptions", body, content_type)
    assert status == 400 and json.loads(text)["error"]["message"], text
    assert server.is_well()
