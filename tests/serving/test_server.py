"""scripts/serve.py: what is wrong gets a 4xx and its reason, never a dead server; what should not be opened is not."""

import io
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from PIL import Image

from modeling_mm.cli import main
from modeling_mm.serving import SourcePolicy
from modeling_mm.serving.workers import Worker
from tests.fakes.processor_parts import picture
from tests.fakes.ranks import ROOT
from tests.fakes.serving_parts import (
    MISSING,
    SMALL_BODY,
    Server,
    answer,
    audio_part,
    data_url,
    image_part,
    needs_extra,
    png,
    text_part,
    to_openai,
    user,
    video_part,
)
from tests.fakes.tiny_chats import CHATS

# ---- Bad requests ---------------------------------------------------------------------------------------------------


LONG = "a dog " * 500


def bomb() -> bytes:
    """An image of 81 million pixels in some kilobytes."""
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
        (user(image_part(data_url(b"no image"))), {}, "no format that Pillow knows"),
        (user(image_part(data_url(png(picture())[:40]))), {}, "damaged or cut short|no format"),
        (user(image_part("data:image/png;base64,%%%")), {}, r"messages\[0\].content\[0\].image_url"),
        (user(image_part("")), {}, "expected a text, got ''"),
        (user(audio_part(b"no audio")), {}, "cannot be decoded"),
        (user({"type": "input_audio", "input_audio": {}}), {}, "input_audio.data`: expected a text"),
        (user({"type": "file_url", "file_url": {"url": "x"}}), {}, "expected a part of type text, .*image_url"),
        (
            user({"type": "video_url", "video_url": {"url": "x"}}),
            {},
            r"video_url`: 'x': expected a data: or http\(s\)",
        ),
        (user(video_part(b"no video")), {}, r"content\[0\].video_url`: expected a video in an MP4"),
        (user({"type": "file", "file": {"file_id": "x"}}), {}, "expected a part of type"),
        ([{"role": "tool", "content": "x", "tool_call_id": "1"}], {}, "expected a role of system"),
        ([{"role": ["user"], "content": "x"}], {}, "expected a role of system"),
        ([{"role": "user", "content": None}], {}, "expected a text or a list of parts, got None"),
        (user(text_part("a" * 200_001)), {}, "expected 200000 characters of text at most, got 200001"),
        (user(*[image_part("QUJD")] * 17), {}, "expected 16 images, audio files and videos at most, got 17"),
        ([{"role": "user", "content": ""}] * 1025, {}, "expected 1024 messages and parts at most"),
        (user(image_part(data_url(BOMB))), {}, "pixels of images at most in a request"),
        (user(text_part(LONG)), {}, "the model has 128 positions; shorten it"),
        (user(text_part("hello")), {"max_tokens": 500}, "500 tokens are requested after a prompt of"),
        (user(text_part("hello")), {"max_tokens": 0}, "`max_tokens`: expected a whole number of at least 1"),
        (user(text_part("hello")), {"temperature": -1}, "`temperature`: expected a number of at least 0"),
        (user(text_part("hello")), {"temperature": "hot"}, "got 'hot'"),
        (user(text_part("hello")), {"logit_bias": {"99999": 1}}, "`logit_bias`: expected token ids below"),
        (user(text_part("hello")), {"top_p": 0}, "`top_p`: expected a number above 0 and at most 1"),
        (user(text_part("hello")), {"n": 99}, "`n`: expected a whole number of at least 1 and at most 16"),
        (user(text_part("hello")), {"tools": [1]}, "`tools`: .* is not served here: this model calls no tools"),
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
    assert caught.value.type == "invalid_request_error" and caught.value.code == "400"
    named = re.match("`([^`]+)`", caught.value.body["message"])
    assert caught.value.param == (named and named[1])


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
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {SourcePolicy().max_bytes * 2}\r\n\r\n"
        )
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

    def fail(*_, **__):
        raise ValueError("what is in /etc/secret")

    logged = []
    monkeypatch.setattr("modeling_mm.serving.running_batch.RunningBatch.prefill", fail)
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
def test_others_are_served_while_media_are_decoded(server_here):
    workers = [each for each in multiprocessing.active_children() if each.name == Worker.NAME]
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        seeing = pool.submit(server_here.says, to_openai(CHATS[0]))
        assert server_here.says(to_openai(CHATS[2])) == answer(2) and not seeing.done()
        for worker in workers:
            os.kill(worker.pid, signal.SIGCONT)
        assert workers and seeing.result() == answer(0)


@needs_extra
def test_a_hostile_request_gets_400_and_holds_up_nobody(server):
    import openai

    hour = io.BytesIO()
    soundfile.write(hour, np.zeros(3600 * 8000, np.int16), 8000, format="FLAC")
    second = io.BytesIO()
    soundfile.write(second, np.zeros(500, np.int16), 1, format="WAV")
    wide = io.BytesIO()
    Image.new("1", (1_000_000, 1)).save(wide, "PNG")
    for part, reason in (
        (audio_part(hour.getvalue()), "lasts 3600 s, more than the limit of 600 s"),
        (audio_part(second.getvalue()), "at least 100 Hz, got 1"),
        (image_part(data_url(wide.getvalue())), "longer than 65536 pixels"),
        (text_part("a" * 200_000), "the model has 128 positions; shorten it"),
    ):
        start = time.monotonic()
        with pytest.raises(openai.BadRequestError, match=reason):
            server.ask(user(part))
        assert time.monotonic() - start < 10


@needs_extra
def test_sigterm_ends_the_server_whatever_clients_do(folder):
    server = Server(folder)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address) as half, socket.create_connection(address) as silent:
        half.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        silent.sendall(head.encode())
        with server.ask(user(text_part("hello")), stream=True) as stream:
            next(iter(stream))
            server.process.send_signal(signal.SIGTERM)
            start = time.monotonic()
            server.process.wait(30)
    assert time.monotonic() - start < 15


@needs_extra
def test_slow_sources_hold_up_nobody_else_and_end_in_time(server_here, gallery):
    import openai

    from modeling_mm.serving.handlers import FETCHERS

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
            with pytest.raises(openai.BadRequestError, match=r"private address|may not be named|or base64"):
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
        (f"{gallery.url}/blue.png", "HTTP Error 404"),
        (f"{gallery.url}/to?file:///etc/hostname", r"not to an http\(s\) URL"),
        ("file:///etc/hostname", "no such file in the allowed folder"),
        ("../../../../../../etc/hostname", "expected an existing file"),
    ):
        with pytest.raises(openai.BadRequestError, match=word):
            open_server.ask(user(image_part(source), question))


# ---- The script -----------------------------------------------------------------------------------------------------


def test_the_script_says_what_is_missing(tmp_path, capsys, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "mm"}')
    if not MISSING:
        assert main(["serve", str(tmp_path / "nothing")]) == 2
        assert "There is no folder" in capsys.readouterr().err
        assert main(["serve", str(tmp_path), "--allow-files", str(tmp_path / "nothing")]) == 2
        assert "there is no folder" in capsys.readouterr().err
        assert main(["serve", str(tmp_path), "--max-tokens", "0"]) == 2
        assert "--max-tokens: expected at least 1, got 0" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "modeling_mm.cli.serve", raising=False)
    assert main(["serve", str(ROOT / "model_cards" / "mm-whisper-tiny")]) == 1
    assert 'pip install "modeling_mm[serve]"' in capsys.readouterr().err
