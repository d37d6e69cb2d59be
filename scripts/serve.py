#!/usr/bin/env python
"""Serve a model to OpenAI's clients: chat completions about images and audio, streamed or not, and transcriptions.

    python scripts/serve.py model_cards/mm-pocket
    python scripts/serve.py MODEL --port 9000 --allow-files images    # requests may name files in this folder

    client = openai.OpenAI(base_url="http://localhost:8000/v1", api_key="-")
    client.chat.completions.create(model="model_cards/mm-pocket", messages=[...])

This is `transformers serve` with our classes known to it. Images and audio come in the request (`data:` URLs,
base64) or from public http(s) addresses; neither private addresses nor files of this machine may be named, unless a
flag allows it. It needs the extra: pip install "modeling_mm[serve]".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import modeling_mm  # noqa: F401  (first: its names go into the tables of transformers before those are read)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        import uvicorn

        from modeling_mm.serving import SourcePolicy, build_app
    except ImportError as error:
        print(f'{error}; serving needs the extra: pip install "modeling_mm[serve]".', file=sys.stderr)
        return 1

    if options.allow_files is not None and not options.allow_files.is_dir():
        print(f"--allow-files: there is no folder {options.allow_files}.", file=sys.stderr)
        return 1
    if options.max_tokens is not None and options.max_tokens < 1:
        print(f"--max-tokens: expected at least 1, got {options.max_tokens}.", file=sys.stderr)
        return 1
    policy = SourcePolicy(private_urls=options.allow_private_urls, files=options.allow_files or False)
    try:
        app = build_app(
            options.model, policy, options.device, options.dtype, options.attn, options.cors, options.max_tokens
        )
    except (OSError, ValueError) as error:
        print(f"{options.model} cannot be served: {error}", file=sys.stderr)
        return 1
    print(f"{options.model} on http://{options.host}:{options.port}/v1", flush=True)
    uvicorn.run(app, host=options.host, port=options.port, log_level=options.log_level)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a joint model; clients name it so too")
    parser.add_argument("--host", default="localhost", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda:0, ... (default: %(default)s)")
    parser.add_argument("--dtype", help="of the weights (default: the checkpoint's on a GPU, float32 on a CPU)")
    parser.add_argument("--attn", help="attention implementation, such as sdpa")
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help="generated for a request at most (default: what fits)"
    )
    parser.add_argument("--cors", action="store_true", help="let pages of any origin ask")
    parser.add_argument("--allow-private-urls", action="store_true", help="URLs may lead to private addresses")
    parser.add_argument("--allow-files", type=Path, metavar="FOLDER", help="requests may name files in this folder")
    parser.add_argument("--log-level", default="warning", help="(default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
