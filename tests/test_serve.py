"""scripts/serve.py with OpenAI's own client on the other end: answers with pictures and sounds, streamed or not, equal
to `generate`; what is wrong gets a 4xx and its reason; nothing opens what it should not; many clients at once."""

import base64
import contextlib
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from modeling_mm.serving.sources import MAX_MEDIA_BYTES, Policy
from modeling_mm.training.collator import MMCollator, encode_conversation
from scripts.serve import main
from tests import gallery as galleries
from tests.processor_parts import RATE, picture, sound
from tests.tiny import train
from tests.tiny_chats import CHATS, chat_model, processor

ROOT = Path(__file__).resolve().parents[1]
EXTRA = ("fastapi", "uvicorn", "openai", "python_multipart")
MISSING = [name for name in EXTRA if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"needs the extra `serve`: {', '.join(MISSING)}")
START_SECONDS = 180
ENDLESS = 200_000  # tokens, for which the tiny model takes many minutes
SMALL_BODY = 100_000


# ---- What is said on both ends --------------------------------------------------------------------------------------


def png(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def wav(samples=None, rate=RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound()[0] if samples is None else samples, rate, "FLOAT", format="WAV")
    return file.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(url) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def audio_part(data: bytes) -> dict:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def text_part(text) -> dict:
    return {"type": "text", "text": text}


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def to_openai(chat) -> list[dict]:
    """The question of one of `CHATS` as a client sends it."""
    parts = []
    for part in chat["messages"][0]["content"]:
        if part["type"] == "image":
            parts.append(image_part(data_url(png(part["image"]))))
        elif part["type"] == "audio":
            parts.append(audio_part(wav(part["audio"])))
        else:
            parts.append(text_part(part["text"]))
    return user(*parts)


@cache
def model():
    """A tiny model that has learned `CHATS` by heart, so that its answers are words and end."""
    trained = chat_model()
    rows = [encode_conversation(processor(), chat["messages"]) for chat in CHATS]
    train(trained, [MMCollator(processor().tokenizer.pad_token_id)(rows)], 200)
    return trained


def generated(messages, **options) -> str:
    """What `generate` says in this process."""
    inputs = processor().apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    room = model().config.text_config.n_positions - inputs["input_ids"].shape[1]
    tokens = model().generate(**inputs, **{"max_new_tokens": room, "do_sample": False, **options})
    return processor().decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@cache
def answer(number: int) -> str:
    """What is to be said to the question of a chat."""
    return generated(CHATS[number]["messages"][:1])


# ---- The server -----------------------------------------------------------------------------------------------------


class Server:
    """scripts/serve.py in a process of its own, and a client for it."""

    def __init__(self, folder, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.url = str(folder), f"http://127.0.0.1:{self.port}"
        command = [sys.executable, str(ROOT / "scripts" / "serve.py"), self.folder, "--host", "127.0.0.1"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--device", "cpu", *options],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()
        deadline = time.monotonic() + START_SECONDS
        while not self.is_well():
            assert self.process.poll() is None and time.monotonic() < deadline, "".join(self.log)[-3000:]
            time.sleep(0.2)

    def is_well(self) -> bool:
        try:
            return json.loads(urllib.request.urlopen(f"{self.url}/health", timeout=10).read()) == {"status": "ok"}
        except OSError:
            return False

    @property
    def client(self):
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="-", max_retries=0, timeout=120)

    def ask(self, messages, **options):
        return self.client.chat.completions.create(model=self.folder, messages=messages, **options)

    def says(self, messages, **options) -> str:
        return self.ask(messages, **options).choices[0].message.content

    def streams(self, messages, **options) -> list:
        return list(self.ask(messages, stream=True, **options))

    def post(self, path, body: bytes, content_type="application/json") -> tuple[int, str]:
        request = urllib.request.Request(f"{self.url}{path}", body, {"Content-Type": content_type})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "tiny"
    model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    server = Server(folder)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def open_server(folder, tmp_path_factory):
    """One whose flags allow what the other refuses."""
    files = tmp_path_factory.mktemp("files")
    (files / "red.png").write_bytes(png(picture("red")))
    server = Server(folder, "--allow-private-urls", "--allow-files", str(files))
    server.files = files
    yield server
    server.stop()


@pytest.fixture(scope="module")
def gallery():
    with galleries.gallery() as pictures:
        yield pictures


@pytest.fixture(scope="module")
def endless_server(tmp_path_factory):
    """One of a model whose positions have no end, so that an answer can take minutes."""
    folder = tmp_path_factory.mktemp("endless") / "tiny"
    chat_model(text_position_encoding="sinusoidal").save_pretrained(folder)
    processor().save_pretrained(folder)
    server = Server(folder, "--max-tokens", str(ENDLESS))
    yield server
    server.stop()


@contextlib.contextmanager
def run_here(folder, **options):
    """A server in this process, whose parts a test can replace."""
    import uvicorn

    from modeling_mm.serving.server import build_app

    app = build_app(str(folder), Policy(private_urls=True), "cpu", **options)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        runner = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=runner.run, args=([listening],), daemon=True)
        thread.start()
        server = object.__new__(Server)
        server.folder, server.port = str(folder), listening.getsockname()[1]
        server.url = f"http://127.0.0.1:{server.port}"
        while not runner.started:
            time.sleep(0.05)
        try:
            yield server
        finally:
            runner.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def server_here(folder):
    if MISSING:
        pytest.skip(needs_extra.kwargs["reason"])
    with run_here(folder, max_body_bytes=SMALL_BODY) as server:
        yield server


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
                server.ask(user(image_part(data_url(b"no picture"))), stream=number % 2 == 0)
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
    for path in ("/load_model", "/reset", "/v1/responses", "/v1/completions"):
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
        ({"file": ("a.wav", b"no sound")}, "sound"),
        ({"file": ("a.wav", b"")}, "sound|0 bytes"),
        ({"language": "xx"}, "`language`: expected en, fr"),
        ({"response_format": "srt"}, "`response_format`: expected json or text"),
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
def test_a_form_without_a_sound_gets_400(server, body, content_type):
    status, text = server.post("/v1/audio/transcriptions", body, content_type)
    assert status == 400 and json.loads(text)["error"]["message"], text
    assert server.is_well()


# ---- Bad requests ---------------------------------------------------------------------------------------------------


LONG = "a dog " * 500


def bomb() -> bytes:
    """A picture of 81 million pixels in some kilobytes."""
    file = io.BytesIO()
    Image.new("1", (9000, 9000)).save(file, "PNG")
    return file.getvalue()


BOMB = bomb()


@needs_extra
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("messages", "options", "word"),
    [
        ([], {}, "`messages`: expected a list of at least one message"),
        (user(image_part(data_url(b"no picture"))), {}, "no format that Pillow knows"),
        (user(image_part(data_url(png(picture())[:40]))), {}, "damaged or cut short|no format"),
        (user(image_part("data:image/png;base64,%%%")), {}, r"messages\[0\].content\[0\].image_url"),
        (user(image_part("")), {}, "expected a text, got ''"),
        (user(audio_part(b"no sound")), {}, "sound|audio"),
        (user({"type": "input_audio", "input_audio": {}}), {}, "input_audio.data`: expected a text"),
        (user({"type": "video_url", "video_url": {"url": "x"}}), {}, "expected a part of type text, image_url"),
        (user({"type": "file", "file": {"file_id": "x"}}), {}, "expected a part of type"),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], {}, "expected a role of system"),
        ([{"role": ["user"], "content": "x"}], {}, "expected a role of system"),
        ([{"role": "user", "content": None}], {}, "expected a text or a list of parts, got None"),
        (user(text_part("<|image|>")), {}, "image"),
        (user(text_part("a" * 200_001)), {}, "expected 200000 characters of text at most, got 200001"),
        (user(*[image_part("QUJD")] * 17), {}, "expected 16 pictures and sounds at most, got 17"),
        ([{"role": "user", "content": ""}] * 1025, {}, "expected 1024 messages and parts at most"),
        (user(image_part(data_url(BOMB))), {}, "pixels of pictures at most in a request"),
        (user(text_part(LONG)), {}, "the model has 128 positions; shorten it"),
        (user(text_part("hello")), {"max_tokens": 500}, "500 tokens are asked for after a prompt of"),
        (user(text_part("hello")), {"max_tokens": 0}, "`max_tokens`: expected a whole number of at least 1"),
        (user(text_part("hello")), {"temperature": -1}, "`temperature`: expected a number of at least 0"),
        (user(text_part("hello")), {"temperature": "hot"}, "got 'hot'"),
        (user(text_part("hello")), {"temperature": 0.001}, "`temperature`: expected 0, or at least 0.01"),
        (user(text_part("hello")), {"logit_bias": {"99999": 1}}, "`logit_bias`: expected token ids below"),
        (user(text_part("hello")), {"top_p": 0}, "`top_p`: expected a number above 0 and at most 1"),
        (user(text_part("hello")), {"n": 2}, "`n`: 2 is not served"),
        (user(text_part("hello")), {"logprobs": True}, "`logprobs`: True is not served"),
        (user(text_part("hello")), {"stop": []}, "`stop`: expected a text or a list of texts"),
        (user(text_part("hello")), {"logit_bias": {"dog": 1}}, "`logit_bias`: expected token ids"),
        (
            user(text_part("hello")),
            {"extra_body": {"generation_config": "{}"}},
            "`generation_config`: '{}' is not served",
        ),
    ],
)
def test_a_bad_request_gets_400_and_the_reason(server, messages, options, word, stream):
    import openai

    with pytest.raises(openai.BadRequestError, match=word) as caught:
        server.ask(messages, stream=stream, **options)
    assert caught.value.type == "invalid_request_error"


HALF = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'  # of a surrogate pair


@needs_extra
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"{}", b'{"messages": 3}', b"\xff\xfe", b"[" * 100_000, HALF]
)
def test_a_body_that_is_no_request_gets_a_4xx(server, body):
    status, text = server.post("/v1/chat/completions", body)
    assert status in (400, 422) and json.loads(text)["error"]["message"], text
    assert server.is_well()


@needs_extra
def test_unknown_fields_get_422_and_large_bodies_413(server):
    status, text = server.post("/v1/chat/completions", b'{"messages": [], "colour": "red"}')
    assert status == 422 and "colour" in text
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    with connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {MAX_MEDIA_BYTES * 2}\r\n\r\n"
        connection.sendall(head.encode())
        assert b" 413 " in connection.recv(4096).split(b"\r\n")[0]
    assert server.is_well()


@needs_extra
def test_a_large_body_that_does_not_say_so_gets_413(server_here):
    """In chunks, whose number nobody knows before."""
    for path in ("/v1/chat/completions", "/v1/audio/transcriptions"):
        with socket.create_connection(("127.0.0.1", server_here.port), timeout=30) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            connection.sendall(b"%x\r\n" % (SMALL_BODY + 1) + b"x" * (SMALL_BODY + 1) + b"\r\n")
            answered = connection.makefile("rb").read()
        assert b" 413 " in answered.split(b"\r\n")[0] and b"is larger than 100000 bytes" in answered
    assert server_here.says(to_openai(CHATS[0])) == answer(0)


@needs_extra
def test_a_fault_of_the_server_is_logged_and_not_told(server_here, monkeypatch, caplog):
    import openai

    def fail(*_):
        raise ValueError("what is in /etc/secret")

    logged = []
    monkeypatch.setattr("modeling_mm.serving.handlers.generate", fail)
    monkeypatch.setattr("modeling_mm.serving.answering.logger.error", lambda *_, exc_info: logged.append(exc_info))
    with pytest.raises(openai.InternalServerError, match="its log says why") as caught:
        server_here.ask(to_openai(CHATS[0]))
    assert "secret" not in str(caught.value.response.text)
    deadline = time.monotonic() + 20
    while "what is in /etc/secret" not in caplog.text:  # logged once the answer has been sent
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.05)
    with pytest.raises(openai.APIError, match="its log says why") as caught:
        server_here.streams(to_openai(CHATS[0]))
    assert "secret" not in str(caught.value) and "what is in /etc/secret" in str(logged[0])
    monkeypatch.undo()
    assert server_here.says(to_openai(CHATS[0])) == answer(0)


@needs_extra
def test_others_are_served_while_a_message_is_read(server_here, monkeypatch):
    from modeling_mm.serving import handlers

    is_reading, may_go_on, encode = threading.Event(), threading.Event(), handlers.encode

    def slow(*arguments):
        is_reading.set()
        assert may_go_on.wait(30)
        return encode(*arguments)

    monkeypatch.setattr(handlers, "encode", slow)
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(server_here.says, to_openai(CHATS[0]))
        assert is_reading.wait(30) and server_here.is_well()
        may_go_on.set()
        assert said.result() == answer(0)


@needs_extra
def test_slow_sources_hold_up_nobody_else_and_end_in_time(server_here, gallery, monkeypatch):
    import openai

    from modeling_mm.serving.handlers import FETCHERS

    monkeypatch.setattr("modeling_mm.serving.handlers.FETCH_SECONDS", 6.0)

    def slow(_):
        start = time.monotonic()
        with pytest.raises(openai.BadRequestError, match="took longer"):
            server_here.ask(user(image_part(f"{gallery.url}/drip-body"), image_part(f"{gallery.url}/drip-body")))
        return time.monotonic() - start

    with ThreadPoolExecutor(FETCHERS * 2) as pool:
        waits = [pool.submit(slow, number) for number in range(FETCHERS * 2)]
        while sum(path == "/drip-body" for path in gallery.asked) < FETCHERS:
            time.sleep(0.05)
        assert server_here.says(to_openai(CHATS[0])) == answer(0)
        assert not any(wait.done() for wait in waits)
        assert max(wait.result() for wait in waits) < 20


@needs_extra
def test_after_all_that_the_server_answers_as_before(server):
    assert server.says(to_openai(CHATS[0])) == answer(0)
    assert server.process.poll() is None


# ---- What may not be opened -----------------------------------------------------------------------------------------


@needs_extra
def test_private_addresses_files_and_paths_are_refused(server, gallery, tmp_path):
    import openai

    (tmp_path / "red.png").write_bytes(png(picture("red")))
    port = gallery.server_address[1]
    sources = [f"{gallery.url}/red.png", f"http://localhost:{port}/red.png", f"http://127.1:{port}/red.png"]
    sources += ["http://169.254.169.254/latest/meta-data", "http://[::1]/x", "http://10.0.0.1/x"]
    sources += [str(tmp_path / "red.png"), f"file://{tmp_path}/red.png", "/etc/hostname", "ftp://127.0.0.1/x"]
    asked = len(gallery.asked)
    for source in sources:
        for part in (
            image_part(source),
            {"type": "audio_url", "audio_url": {"url": source}},
            {"type": "input_audio", "input_audio": {"data": source}},
            {"type": "input_audio", "input_audio": source},
        ):
            with pytest.raises(
                openai.BadRequestError, match=r"private address|may not be named|must be sent|or base64"
            ):
                server.ask(user(part, text_part("What do you see?")))
    assert len(gallery.asked) == asked


@needs_extra
def test_flags_allow_them(open_server, gallery):
    import openai

    question = text_part("What do you see?")
    sources = [f"{gallery.url}/red.png", f"{gallery.url}/to?/red.png", "red.png"]
    sources += [str(open_server.files / "red.png"), f"file://{open_server.files}/red.png"]
    for source in sources:
        assert open_server.says(user(image_part(source), question)) == answer(0), source
    for source, word in (
        (f"{gallery.url}/blue.png", "answered 404"),
        (f"{gallery.url}/to?file:///etc/hostname", "something else than an http"),
        ("file:///etc/hostname", "no such file in the folder"),
        ("../../../../../../etc/hostname", "must be sent in the request"),
    ):
        with pytest.raises(openai.BadRequestError, match=word):
            open_server.ask(user(image_part(source), question))


# ---- The script -----------------------------------------------------------------------------------------------------


def test_the_script_says_what_is_missing(tmp_path, capsys, monkeypatch):
    if not MISSING:
        assert main([str(tmp_path / "nothing")]) == 1
        assert "cannot be served" in capsys.readouterr().err
        assert main([str(tmp_path), "--allow-files", str(tmp_path / "nothing")]) == 1
        assert "there is no folder" in capsys.readouterr().err
        assert main([str(tmp_path), "--max-tokens", "0"]) == 1
        assert "--max-tokens: expected at least 1, got 0" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main([str(tmp_path)]) == 1
    assert 'pip install "modeling_mm[serve]"' in capsys.readouterr().err


def test_the_sounds_of_the_tests_survive_a_file():
    samples, rate = soundfile.read(io.BytesIO(wav()), dtype="float32")
    assert rate == RATE and np.array_equal(samples, sound()[0])
