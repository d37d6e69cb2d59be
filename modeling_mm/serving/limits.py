# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Limits of a server, and the fault of a request that goes beyond one."""

import os
from dataclasses import dataclass, field


class BadRequest(ValueError):
    """Fault in a request, which the client reads with status 400. No other error's text reaches a client."""


@dataclass(frozen=True)
class ServerLimits:
    """
    Limits on the work that one server does at once, and on its patience. `SourcePolicy` has those of a request.

    Args:
        tokens: of an answer; by default the positions of the model
        rows: answers that are generated at once; the others wait
        requests: requests at once, read, waiting or answered; more get 429
        body_bytes: of the body of a request; by default media of the largest size, in base64, and a conversation
        bodies_bytes: of the bodies of all requests at once; more get 429
        body_seconds: for a client to send its body; then it gets 408
        prepare_seconds: for the media of a request to be decoded; then it gets 400
        workers: processes that decode media; by default one for each processor, four at most
    """

    tokens: int | None = None
    rows: int = 64
    requests: int = 256
    body_bytes: int | None = None
    bodies_bytes: int = 256 << 20
    body_seconds: float = 60.0
    prepare_seconds: float = 30.0
    workers: int = field(default_factory=lambda: max(1, min(4, os.cpu_count() or 1)))
