# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
# %% [markdown]
# # Serve a model and ask it with the OpenAI client
#
#     python scripts/tutorials/serve_and_ask.py             # half a minute; needs the extra `serve`
#
# `modeling-mm serve MODEL` speaks OpenAI's protocol: chat completions with images and audio, streamed or not, and
# transcriptions. This tutorial starts it as a separate process, as you would on a server, and asks three things.

# %%
import sys

if {"-h", "--help"} & set(sys.argv):
    print(f"{sys.argv[0]} takes no arguments. Its comments say what it does and what to change.")
    sys.exit()

import base64
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from openai import OpenAI

MODEL = "model_cards/mm-whisper-tiny"
SAMPLE = Path("processing/corpora/sample")
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
server = subprocess.Popen([sys.executable, "scripts/serve.py", MODEL, "--port", str(port)])
base_url = f"http://127.0.0.1:{port}"


def is_up() -> bool:
    try:
        return urlopen(f"{base_url}/health", timeout=5).status == 200
    except URLError:
        return False


deadline = time.monotonic() + 300
while not is_up():
    if server.poll() is not None or time.monotonic() > deadline:
        sys.exit("The server did not start.")
    time.sleep(0.2)

# %% [markdown]
# ## An image
# Media travel as base64. URLs work too when they lead to public addresses; files of the server do not.

# %%
try:
    client = OpenAI(base_url=f"{base_url}/v1", api_key="unused")
    image = base64.b64encode((SAMPLE / "images/cat.png").read_bytes()).decode()
    content: Any = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
        {"type": "text", "text": "What does the picture show?"},
    ]
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}], max_tokens=16
    )
    print("image:", answer.choices[0].message.content)

    # %% [markdown]
    # ## Audio, streamed

    # %%
    audio = base64.b64encode((SAMPLE / "audio/november.flac").read_bytes()).decode()
    content = [
        {"type": "input_audio", "input_audio": {"data": audio, "format": "flac"}},
        {"type": "text", "text": "What is said?"},
    ]
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": content}], max_tokens=16, stream=True
    )
    print("audio:", "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))

    # %% [markdown]
    # ## A transcription

    # %%
    with (SAMPLE / "audio/november.flac").open("rb") as file:
        print("transcription:", client.audio.transcriptions.create(model=MODEL, file=file).text)
finally:
    server.terminate()
    server.wait(timeout=30)
