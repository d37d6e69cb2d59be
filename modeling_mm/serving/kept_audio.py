# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Audio of earlier answers, which later turns of a conversation name by its id."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

KEPT_SECONDS = 3600
MOST_KEPT = 256  # some ten kilobytes each


@dataclass(frozen=True)
class Kept:
    """
    Audio of one answer.

    Args:
        codes: tokens of its blocks, as a text
        expires_at: Unix time
    """

    codes: str
    expires_at: int


class KeptAudio:
    """
    Store of the codes of audio, in memory; the oldest go first.

    Args:
        seconds: that audio is kept
        most: that are kept
    """

    def __init__(self, seconds: int = KEPT_SECONDS, most: int = MOST_KEPT):
        self.seconds, self.most = seconds, most
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def keep(self, audio_id: str, codes: str) -> int:
        """Keep the codes of audio; return the Unix time until which they are kept."""
        expires_at = int(time.time()) + self.seconds
        with self._lock:
            self._kept[audio_id] = Kept(codes, expires_at)
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)
        return expires_at

    def get(self, audio_id: str) -> str | None:
        """Return the codes of audio; None if the id is unknown, or has expired."""
        with self._lock:
            kept = self._kept.get(audio_id)
            if kept is not None and kept.expires_at <= time.time():
                del self._kept[audio_id]
                kept = None
        return None if kept is None else kept.codes
