#!/usr/bin/env python
"""Serve a model to OpenAI's clients: chat completions with images and audio, streamed or not, and transcriptions.

    python scripts/serve.py model_cards/mm-whisper-tiny
    python scripts/serve.py MODEL --port 9000 --allow-files images    # requests may name files of this folder

    client = openai.OpenAI(base_url="http://localhost:8000/v1", api_key="-")
    client.chat.completions.create(model="model_cards/mm-whisper-tiny", messages=[...])

This is `transformers serve` with our classes in it. Images and audio come in the request (`data:` URLs, base64) or
from public http(s) addresses; requests may name private addresses or files of this machine only if a flag allows it.
It needs the extra: pip install "modeling_mm[serve]".
"""

import sys

from modeling_mm.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
