#!/usr/bin/env python
"""Start the server, drive it by many clients at once and by hostile requests, and print what they wait.

    python scripts/serving/load_server.py model_cards/mm-whisper-tiny
    python scripts/serving/load_server.py model_cards/mm-whisper-tiny --clients 10 --no-hostile
    python scripts/serving/load_server.py model_cards/mm-whisper-tiny --build before=../before --build after=.

With several builds (folders of the repository) every measurement runs on one after the other, so that their ratio
holds when the machine's speed drifts. Two of four questions are of text, one shows an image, one is heard; every
answer has 48 tokens. Memory is that of the server and its processes, shared pages once. It needs the extra `serve`,
and Linux.
"""

import argparse
import base64
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLE = ROOT / "processing" / "corpora" / "sample"
ANSWER_TOKENS = 48
START_SECONDS, LONGEST_SECONDS = 300, 400
HEAD_START = 0.3  # of a hostile request before the questions beside it


@dataclass
class Build:
    """Server of one checkout."""

    name: str
    folder: Path
    model: str
    port: int = 0
    process: subprocess.Popen | None = None
    peak: int = 0
    figures: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, str(self.folder / "scripts" / "serve.py"), self.model, "--host", "127.0.0.1"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), "--device", "cpu"],
            env={**os.environ, "PYTHONPATH": str(self.folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if self.post("GET", "/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.2)
        raise SystemExit(f"The server of {self.name} did not start; run scripts/serve.py to see why.")

    def post(self, method: str, path: str, body: bytes = b"", timeout: float = LONGEST_SECONDS) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ask(self, content: str | list, **options: object) -> tuple[float, int]:
        """Return the seconds and the status of a question."""
        request = {"model": self.model, "messages": [{"role": "user", "content": content}], **options}
        body, start = json.dumps(request).encode(), time.monotonic()
        status, _ = self.post("POST", "/v1/chat/completions", body)
        return time.monotonic() - start, status

    def memory(self) -> int:
        """Return the bytes of the server and the processes it has started, shared pages once."""
        assert self.process is not None
        total, open_pids = 0, [self.process.pid]
        while open_pids:
            pid = open_pids.pop()
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                tasks = Path(f"/proc/{pid}/task").iterdir()
                open_pids += [int(child) for task in tasks for child in (task / "children").read_text().split()]
            except (OSError, ProcessLookupError):  # ended meanwhile
                continue
            total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024
        return total

    def watch_memory(self, stopped: threading.Event) -> None:
        while not stopped.wait(0.2):
            self.peak = max(self.peak, self.memory())


# ---- Requests -------------------------------------------------------------------------------------------------------


def data_url(data: bytes, kind: str) -> dict:
    name = kind.partition("/")[0]
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": f"{name}_url", f"{name}_url": {"url": url}}


def questions() -> list[str | list]:
    images, audio = sorted((SAMPLE / "images").glob("*.png")), sorted((SAMPLE / "audio").glob("*.flac"))
    asked: list[str | list] = []
    for number in range(8):
        image = data_url(images[number % len(images)].read_bytes(), "image/png")
        sound = data_url(audio[number % len(audio)].read_bytes(), "audio/flac")
        asked += ["What is a cat?", [image, {"type": "text", "text": "What does the picture show?"}]]
        asked += [f"What are {number + 2} dogs?", [sound, {"type": "text", "text": "Transcribe the speech."}]]
    return asked


def audio_file(samples: int, rate: int, kind: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(samples, np.int16), rate, format=kind)
    return file.getvalue()


def image_file(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.MAX_IMAGE_PIXELS = None
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


def hostile_requests() -> dict[str, str | list]:
    return {
        "WAV of 1,044 bytes at 1 Hz": [data_url(audio_file(500, 1, "WAV"), "audio/wav")],
        "2 h of silence in FLAC": [data_url(audio_file(7200 * 16000, 16000, "FLAC"), "audio/flac")],
        "200,000 characters": "a" * 200_000,
        "PNG of 60,000,000 x 1": [data_url(image_file(60_000_000, 1), "image/png")],
        "PNG of 8,000 x 8,000": [data_url(image_file(8000, 8000), "image/png")],
        "10 min of silence in FLAC": [data_url(audio_file(600 * 16000, 16000, "FLAC"), "audio/flac")],
    }


# ---- Measurements ---------------------------------------------------------------------------------------------------


def measure_load(build: Build, clients: int, count: int, options: dict) -> None:
    """Ask `count` questions by `clients` at once; note answers a second and latencies."""
    asked = questions()
    start = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        done = list(pool.map(lambda number: build.ask(asked[number % len(asked)], **options), range(count)))
    seconds = time.monotonic() - start
    failed = sum(status != 200 for _, status in done)
    times = sorted(took for took, _ in done)
    build.figures[f"answers/s, {clients} clients"] = count / seconds
    build.figures[f"p50 s, {clients} clients"] = statistics.median(times)
    build.figures[f"p95 s, {clients} clients"] = times[int(0.95 * (len(times) - 1))]
    build.figures[f"failed, {clients} clients"] = failed


def measure_hostile(build: Build, name: str, content: str | list) -> None:
    """Note how long a question of two tokens takes beside a hostile request."""
    with ThreadPoolExecutor(1) as pool:
        hostile = pool.submit(build.ask, content, max_tokens=2)
        time.sleep(HEAD_START)
        beside = [build.ask("hello", max_tokens=2)[0] for _ in range(3)]
        took, status = hostile.result()
    build.figures[f"beside {name} ({status})"] = max(beside)
    build.figures[f"{name} itself"] = took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder of a model")
    parser.add_argument("--build", action="append", metavar="NAME=FOLDER", help="a checkout to serve with")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10, 40], help="clients at once")
    parser.add_argument("--questions", type=int, default=3, metavar="N", help="by each client (default: %(default)s)")
    parser.add_argument("--no-hostile", action="store_true", help="leave the hostile requests out")
    options = parser.parse_args()
    model = str(Path(options.model).resolve())
    given = options.build or [f"this={ROOT}"]
    builds = [
        Build(name, Path(folder).resolve(), model) for name, _, folder in (each.partition("=") for each in given)
    ]
    end = json.loads((Path(model) / "generation_config.json").read_text()).get("eos_token_id")
    ends = end if isinstance(end, list) else [end]
    asked = {"max_tokens": ANSWER_TOKENS, "logit_bias": {str(token): -100 for token in ends}}
    stopped = threading.Event()
    try:
        for build in builds:
            build.start()
            for content in questions()[:4]:  # warm up
                build.ask(content, **asked)
            build.figures["idle MB"] = build.memory() / 1e6
            threading.Thread(target=build.watch_memory, args=(stopped,), daemon=True).start()
        for clients in options.clients:
            for build in builds:
                measure_load(build, clients, max(clients, 4) * options.questions, asked)
                print(f"{build.name}: {clients} clients done", file=sys.stderr, flush=True)
        for build in builds:
            build.figures["peak MB under load"] = build.peak / 1e6
        for name, content in {} if options.no_hostile else hostile_requests().items():
            for build in builds:
                measure_hostile(build, name, content)
                print(f"{build.name}: {name} done", file=sys.stderr, flush=True)
        for build in builds:
            build.figures["peak MB with hostile requests"] = build.peak / 1e6
    finally:
        stopped.set()
        for build in builds:
            if build.process is not None:
                build.process.kill()
        names = dict.fromkeys(name for build in builds for name in build.figures)
        print("| |", " | ".join(build.name for build in builds), "|")
        print("|---" * (len(builds) + 1) + "|")
        for name in names:
            print(f"| {name} |", " | ".join(f"{build.figures.get(name, float('nan')):.2f}" for build in builds), "|")


if __name__ == "__main__":
    main()
