"""scripts/serve.py with OpenAI's own client on the other end: answers with pictures and sounds, streamed or not, equal
to `generate`; what is wrong gets a 4xx and its reason; nothing opens what it should not; many clients at once."""

import asyncio
import base64
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
import types
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from modeling_mm.serving.chat_request import check_chat
from modeling_mm.serving.sources import MAX_MEDIA_BYTES, Policy, RefusedSource, inline, is_public
from modeling_mm.training.collator import MMCollator, encode_conversation
from scripts.serve import main
from tests.processor_parts import RATE, picture, sound
from tests.tiny import train
from tests.tiny_chats import CHATS, chat_model, processor

ROOT = Path(__file__).resolve().parents[1]
EXTRA = ("fastapi", "uvicorn", "openai", "python_multipart")
MISSING = [name for name in EXTRA if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"needs the extra `serve`: {', '.join(MISSING)}")
START_SECONDS = 180


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
        self.process.send_signal(signal.SIGINT)
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
    """A server of pictures on loopback: /red.png, and /to?URL, which leads on."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            body = png(picture("red"))
            if self.path.startswith("/to?"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to?"))
                body = b""
            else:
                self.send_response(200 if self.path == "/red.png" else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    gallery = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    gallery.daemon_threads = True
    gallery.asked = []
    gallery.url = f"http://127.0.0.1:{gallery.server_address[1]}"
    threading.Thread(target=gallery.serve_forever, args=(0.05,), daemon=True).start()
    yield gallery
    gallery.shutdown()
    gallery.server_close()


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
    stop = answer(2)[len(answer(2)) // 2 : len(answer(2)) // 2 + 2]
    end = answer(2).index(stop) + len(stop)
    assert server.says(messages, stop=[stop]).startswith(answer(2)[:end])
    assert len(server.says(messages, stop=[stop])) < len(answer(2))


@needs_extra
def test_a_temperature_samples_and_zero_does_not(server):
    messages = to_openai(CHATS[2])
    assert server.says(messages, temperature=0) == answer(2)
    said = {server.says(messages, temperature=2, seed=seed, max_tokens=8) for seed in range(4)}
    assert len(said) > 1, "with a temperature of 2 the tiny model should waver"


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
def test_a_client_that_goes_away_leaves_the_server_well(server):
    stream = server.ask(to_openai(CHATS[3]), stream=True)
    next(iter(stream))
    stream.close()
    assert server.says(to_openai(CHATS[0])) == answer(0)


@needs_extra
def test_the_model_is_listed_and_no_other_is_loaded(server):
    import openai

    assert [each.id for each in server.client.models.list()] == [server.folder]
    with pytest.raises(openai.NotFoundError, match=r"there is no 'gpt-9' here; this server has"):
        server.client.chat.completions.create(model="gpt-9", messages=user(text_part("hello")))
    with pytest.raises(openai.NotFoundError, match=r"there is no 'gpt-9'"):
        server.client.audio.transcriptions.create(model="gpt-9", file=("a.wav", wav()))
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
        ({"prompt": "a" * 2000}, "positions"),
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
        (user(text_part(LONG)), {}, "the model has 128 positions; shorten it"),
        (user(text_part("hello")), {"max_tokens": 500}, "500 tokens are asked for after a prompt of"),
        (user(text_part("hello")), {"max_tokens": 0}, "`max_tokens`: expected a whole number of at least 1"),
        (user(text_part("hello")), {"temperature": -1}, "`temperature`: expected a number of at least 0"),
        (user(text_part("hello")), {"temperature": "hot"}, "got 'hot'"),
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


@needs_extra
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b'{"messages": 3}', b"\xff\xfe", b"[" * 100_000])
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


def test_only_public_addresses_are_public():
    public = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
    private = ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"]
    private += ["224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1"]
    private += ["64:ff9b::7f00:1", "2002:7f00:1::"]
    assert [address for address in public if not is_public(address)] == []
    assert [address for address in private if is_public(address)] == []


def test_a_redirect_to_a_private_address_is_refused(monkeypatch, gallery):
    """The first address counts as public here, what it leads to does not."""
    monkeypatch.setattr("modeling_mm.serving.sources.is_public", lambda address: address == "127.0.0.1")
    assert inline(f"{gallery.url}/red.png", Policy()).startswith("data:;base64,")
    with pytest.raises(RefusedSource, match="private address"):
        inline(f"{gallery.url}/to?http://127.0.0.2:1/x", Policy())
    with pytest.raises(RefusedSource, match="leads on more than 3 times"):
        inline(f"{gallery.url}/to?{gallery.url}/to?{gallery.url}/to?{gallery.url}/to?/red.png", Policy())


def test_a_name_is_looked_up_once(monkeypatch, gallery):
    """Else it could stand for a public address when it is checked, and for another when it is opened."""
    calls = []

    def lookup(host, port, *_, **__):
        calls.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr("modeling_mm.serving.sources.socket.getaddrinfo", lookup)
    port = gallery.server_address[1]
    with pytest.raises(RefusedSource, match="private address"):
        inline(f"http://pictures.example:{port}/red.png", Policy())
    assert inline(f"http://pictures.example:{port}/red.png", Policy(private_urls=True))
    assert calls.count("pictures.example") == 2


def test_large_and_slow_sources_are_refused(monkeypatch, gallery, tmp_path):
    (tmp_path / "red.png").write_bytes(png(picture("red")))
    policy = Policy(private_urls=True, files=tmp_path)
    monkeypatch.setattr("modeling_mm.serving.sources.FETCH_SECONDS", -1.0)
    with pytest.raises(RefusedSource, match="took longer"):
        inline(f"{gallery.url}/red.png", policy)
    monkeypatch.setattr("modeling_mm.serving.sources.MAX_MEDIA_BYTES", 10)
    for source in (f"{gallery.url}/red.png", "red.png", data_url(png(picture()))):
        with pytest.raises(RefusedSource, match=r"is larger than 10|expected 1 to 10"):
            inline(source, policy)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "files" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(RefusedSource, match="no such file"):
        inline(f"file://{tmp_path}/files/link", Policy(files=tmp_path / "files"))


# ---- Parts ----------------------------------------------------------------------------------------------------------


def test_what_asks_for_nothing_passes_and_the_request_is_left_as_it_was():
    body = {"messages": user(image_part("QUJD"), text_part("x")), "n": 1, "tools": [], "logit_bias": {}, "stop": "a"}
    before = json.dumps(body)
    checked = check_chat(body, Policy())
    assert json.dumps(body) == before and checked["logit_bias"] is None
    assert checked["messages"][0]["content"][0]["image_url"] == {"url": "data:;base64,QUJD"}
    spoken = check_chat({"messages": user(audio_part(b"ABC"))}, Policy())["messages"][0]["content"][0]
    assert spoken == {"type": "input_audio", "input_audio": {"data": "data:;base64,QUJD"}}


def test_only_what_is_known_is_handed_on():
    body = {"messages": user(text_part("x")), "seed": 1, "user": "me", "stream_options": {"include_usage": True}}
    assert set(check_chat({**body, "reasoning_effort": None}, Policy())) == {"messages", "seed"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chat_template_kwargs", {"processor_kwargs": {"images": ["/etc/passwd"]}}),
        ("chat_template_kwargs", {"chat_template": "{% for i in range(99999) %}{% endfor %}"}),
        ("generation_config", '{"num_beams": 100000}'),
        ("stop", ["a"] * 5),
        ("stop", "a" * 65),
        ("logit_bias", {"5": float("inf")}),
        ("logit_bias", {"5": float("nan")}),
        ("logit_bias", {"5": 101}),
    ],
)
def test_what_could_open_files_or_hold_the_server_up_is_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}`: "):
        check_chat({"messages": user(text_part("x")), name: value}, Policy())


@pytest.mark.parametrize("value", [True, "1", float("nan"), 3, [1]])
def test_numbers_are_numbers(value):
    with pytest.raises(ValueError, match="`temperature`: expected a number"):
        check_chat({"messages": user(text_part("x")), "temperature": value}, Policy())


@needs_extra
def test_errors_in_a_stream_are_json_and_a_stream_has_an_end():
    from modeling_mm.serving.handlers import as_events

    closed = []

    async def stream():
        try:
            yield "data: {}\n\n"
            yield 'data: {"a": 1}\n\ndata: {"error": "it said "no"\nand went"}\n\n'
        finally:
            closed.append(True)

    async def read(count=None):
        events = as_events(stream())
        found = [await anext(events) for _ in range(count)] if count else [event async for event in events]
        await events.aclose()
        return found

    found = asyncio.run(read())
    assert found[0] == "data: {}\n\n" and found[-1] == "data: [DONE]\n\n"
    before, error = found[1].split("\n\n")[:2]
    assert before == 'data: {"a": 1}'
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == 'it said "no"\nand went'
    asyncio.run(read(1))
    assert len(closed) == 2, "what a client leaves is ended"


@needs_extra
def test_lengths_follow_the_positions():
    from transformers import GenerationConfig

    from modeling_mm.serving.handlers import fit

    def fitted(length, wanted=None, kind="learned"):
        text = types.SimpleNamespace(n_positions=10)
        fake = types.SimpleNamespace(config=types.SimpleNamespace(text_config=text, text_position_encoding=kind))
        config = GenerationConfig(max_new_tokens=wanted)
        fit(config, fake, {"input_ids": torch.zeros(1, length)})
        return config.max_new_tokens

    assert [fitted(4), fitted(4, 6), fitted(4, 2), fitted(40, 20, "sinusoidal"), fitted(40, None, "sinusoidal")] == [
        *(6, 6, 2, 20, 10)
    ]
    with pytest.raises(ValueError, match="ask for 6 at most"):
        fitted(4, 7)
    with pytest.raises(ValueError, match="takes 10 tokens, and the model has 10 positions"):
        fitted(10)


def test_the_script_says_what_is_missing(tmp_path, capsys, monkeypatch):
    if not MISSING:
        assert main([str(tmp_path / "nothing")]) == 1
        assert "cannot be served" in capsys.readouterr().err
        assert main([str(tmp_path), "--allow-files", str(tmp_path / "nothing")]) == 1
        assert "there is no folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main([str(tmp_path)]) == 1
    assert 'pip install "modeling_mm[serve]"' in capsys.readouterr().err


def test_the_sounds_of_the_tests_survive_a_file():
    samples, rate = soundfile.read(io.BytesIO(wav()), dtype="float32")
    assert rate == RATE and np.array_equal(samples, sound()[0])
