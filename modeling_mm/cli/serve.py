# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm serve`: `transformers serve` for a joint model."""

from argparse import Namespace
from pathlib import Path

import uvicorn

from ..serving.limits import ServerLimits
from ..serving.server import build_app
from ..sources import SourcePolicy
from .loading import check_writes, load_config

GRACE_SECONDS = 3  # for answers under way at SIGTERM; then connections are closed, whatever clients do


def run(options: Namespace) -> None:
    """Serve until interrupted."""
    files = None if options.allow_files is None else Path(options.allow_files)
    check_writes(options.model, load_config(options.model))
    policy = SourcePolicy(
        private_urls=options.allow_private_urls, files=files or False, max_seconds=options.max_audio_seconds
    )
    limits = ServerLimits(tokens=options.max_tokens, requests=options.max_requests)
    app = build_app(options.model, policy, options.device, options.dtype, options.attn, options.cors, limits)
    print(f"{options.model} on http://{options.host}:{options.port}/v1", flush=True)
    uvicorn.run(
        app,
        host=options.host,
        port=options.port,
        log_level=options.log_level,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
