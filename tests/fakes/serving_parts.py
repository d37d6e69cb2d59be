"""Parts of the tests of serving: requests, expected answers, a slow model, and the server with its client."""

import base64
import contextlib
import importlib.util
import io
import json
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from functools import cache

import pytest
import soundfile

from modeling_mm.prompts import set_prompts
from modeling_mm.serving import ServerLimits, SourcePolicy
from modeling_mm.training import ChatCollator
from tests.fakes.processor_parts import RATE, picture, sound
from tests.fakes.quick_python import QUICK_PYTHON
from tests.fakes.ranks import ROOT, free_port, quiet_environment
from tests.fakes.tiny import train
from tests.fakes.tiny_chats import CHATS, chat_model, processor

EXTRA = ("fastapi", "uvicorn", "openai", "python_multipart")
MISSING = [name for name in EXTRA if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"needs the extra `serve`: {', '.join(MISSING)}")
START_SECONDS = 180
ENDLESS = 200_000  # tokens, for which the tiny model takes many minutes
SMALL_BODY = 100_000
URL_SECONDS = 6.0  # for the URLs of a request to a server in this process


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


def video_part(data: bytes, **options) -> dict:
    return {"type": "video_url", "video_url": {"url": data_url(data, "video/mp4")}, **options}


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
    set_prompts(trained, {"en": "What is said?", "fr": "Que dit la voix ?"})
    train(trained, [ChatCollator(processor())(CHATS)], 80, lr=6e-3)
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


def media_files(folder) -> dict[str, str]:
    """Write an image and an audio file, by type."""
    picture("blue", (60, 40)).save(folder / "blue.png")
    soundfile.write(folder / "noise.wav", *sound(), "FLOAT")
    return {"image": str(folder / "blue.png"), "audio": str(folder / "noise.wav")}


@contextlib.contextmanager
def counted(model, seconds=0.0):
    """Yield the growing list of the times of a model's steps, each of which takes `seconds` more."""
    steps: list[float] = []

    def wait(*_) -> None:
        steps.append(time.monotonic())
        time.sleep(seconds)

    hook = model.register_forward_pre_hook(wait)
    try:
        yield steps
    finally:
        hook.remove()


@contextlib.contextmanager
def endless(model, seconds=0.0):
    """Let a model end no answer; else as `counted`."""
    ends, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    try:
        with counted(model, seconds) as steps:
            yield steps
    finally:
        model.generation_config.eos_token_id = ends


def settled(steps: list[float]) -> int:
    """Return the number of steps, once a second has passed without one."""
    deadline = time.monotonic() + START_SECONDS
    while not steps or time.monotonic() - steps[-1] < 1:
        assert time.monotonic() < deadline, f"{len(steps)} steps and no end"
        time.sleep(0.1)
    return len(steps)


# ---- The server -----------------------------------------------------------------------------------------------------


class Server:
    """scripts/serve.py in a process of its own, and a client for it."""

    def __init__(self, folder, *options):
        self.port = free_port()
        self.folder, self.url = str(folder), f"http://127.0.0.1:{self.port}"
        command = [QUICK_PYTHON, str(ROOT / "scripts" / "serve.py"), self.folder, "--host", "127.0.0.1"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--device", "cpu", *options],
            env=quiet_environment(),
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


@contextlib.contextmanager
def run_here(folder, **options):
    """A server in this process, whose parts a test can replace."""
    import uvicorn

    from modeling_mm.serving import build_app

    policy = SourcePolicy(private_urls=True, timeout=URL_SECONDS)
    app = build_app(str(folder), policy, "cpu", limits=ServerLimits(**options))
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
