"""Media files with rows that show them, and an encoder cache for them: what the tests of the cache share."""

from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from modeling_mm.data import ChatRow
from modeling_mm.training import EncoderCache
from tests.fakes.processor_parts import RATE
from tests.fakes.tiny_chats import chat_model, processor

SECONDS = {"short": 0.5, "long": 2.3}  # one window and three of `processor`
KINDS = {".png": "image", ".wav": "audio"}


@cache
def frozen_model():
    return chat_model(freeze_vision=True, freeze_audio=True)


def write_media(folder: Path) -> Path:
    """Write three images of noise, `a.png` to `c.png`, and two audio files, `short.wav` and `long.wav`."""
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    for name, seconds in SECONDS.items():
        samples = generator.uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)
        soundfile.write(folder / f"{name}.wav", samples, RATE)
    return folder


def media_part(folder: Path, name: str) -> dict:
    return {"type": KINDS[Path(name).suffix], "path": str(folder / name)}


def row(folder: Path, *names: str, answer: str = "a cat", **fields) -> ChatRow:
    """A row with the media of these names in order, and a text."""
    content = [media_part(folder, name) for name in names]
    user = {"role": "user", "content": [*content, {"type": "text", "text": "What do you see?"}]}
    return ChatRow([user, {"role": "assistant", "content": [{"type": "text", "text": answer}]}], **fields)


def make_cache(folder: Path, **options) -> EncoderCache:
    return EncoderCache(folder / "cache", frozen_model(), processor(), **options)


def filled(folder: Path, *names: str, **options) -> EncoderCache:
    states = make_cache(folder, **options)
    states.fill([row(folder, *names)], progress=False)
    return states
