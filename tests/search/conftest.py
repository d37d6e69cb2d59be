"""A tiny retrieval model, files to index, and both stores."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from modeling_mm import MMForRetrieval, MMProcessor
from modeling_mm.search import Embedder, default_store
from tests.fakes.pipeline_parts import build
from tests.fakes.processor_parts import RATE

SIZE = 8
WITHOUT_MILVUS = "the extra `index` (pymilvus and milvus-lite) is not installed"
needs_milvus = pytest.mark.skipif(default_store() != "milvus", reason=WITHOUT_MILVUS)
STORES = ("exact", pytest.param("milvus", marks=needs_milvus))


def save_stripes(path: Path, seed: int) -> Path:
    """An image with something in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def save_tone(path: Path, hertz: float, seconds: float = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)
    soundfile.write(path, wave.astype(np.float32), RATE)
    return path


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "retriever"
    model, processor = build(MMForRetrieval, projection_dim=SIZE)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedder(model_folder) -> Embedder:
    return Embedder(MMForRetrieval.from_pretrained(model_folder), MMProcessor.from_pretrained(model_folder))


@pytest.fixture
def files(tmp_path) -> Path:
    """Three images, two recordings and a text, in folders."""
    folder = tmp_path / "files"
    for number, name in enumerate(("a.png", "b.png", "more/c.jpg")):
        save_stripes(folder / name, number)
    for name, hertz in (("low.wav", 200), ("more/high.flac", 3000)):
        save_tone(folder / name, hertz)
    (folder / "hello.txt").write_text("hello there", encoding="utf-8")
    return folder
