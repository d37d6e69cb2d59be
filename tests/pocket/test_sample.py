"""The small real sample in processing/corpora/sample: complete, decodable, licensed, small, and fit to ask about."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from PIL import Image

SAMPLE = Path(__file__).resolve().parents[2] / "processing" / "corpora" / "sample"
LICENCE_FILES = {
    "Apache-2.0": "Apache-2.0.txt",
    "Unicode-3.0": "Unicode-3.0.txt",
    "CC-BY-SA-3.0": "CC-BY-SA-3.0-asterisk-core-sounds.txt",
}
TEXTS = {"pictures": "caption", "sounds": "transcript"}


def rows(kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SAMPLE / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()]


def pixels(row: dict[str, Any]) -> np.ndarray:
    with Image.open(SAMPLE / row["file"]) as image:
        image.load()
        assert (image.mode, image.size) == ("RGB", (64, 64)), row["file"]
        return np.asarray(image, dtype=np.float32) / 255


def test_at_least_120_pictures_and_40_sounds() -> None:
    assert len(rows("pictures")) >= 120
    assert len(rows("sounds")) >= 40


def test_under_6_mb() -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 6e6


def test_readme_states_the_counts() -> None:
    readme = (SAMPLE / "README.md").read_text(encoding="utf-8")
    assert f"{len(rows('pictures'))} pictures" in readme
    assert f"{len(rows('sounds'))} sounds" in readme


@pytest.mark.parametrize("kind", TEXTS)
def test_no_orphan_and_no_missing_file(kind: str) -> None:
    on_disk = {path.relative_to(SAMPLE).as_posix() for path in (SAMPLE / kind).iterdir()}
    assert on_disk == {row["file"] for row in rows(kind)}


@pytest.mark.parametrize("kind", TEXTS)
def test_every_row_names_its_source_and_a_licence_whose_text_is_here(kind: str) -> None:
    text = TEXTS[kind]
    for row in rows(kind):
        assert list(row) == ["file", text, "category", "source", "licence", f"{text}_source", f"{text}_licence"]
        assert all(isinstance(value, str) and value == value.strip() != "" for value in row.values()), row
        for licence in (row["licence"], row[f"{text}_licence"]):
            assert (SAMPLE / "LICENSES" / LICENCE_FILES[licence]).stat().st_size > 1000, row


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_are_distinct_and_short(kind: str) -> None:
    texts = [row[TEXTS[kind]] for row in rows(kind)]
    repeated = [text for text, count in Counter(text.lower() for text in texts).items() if count > 1]
    assert not repeated
    assert max(len(text.split()) for text in texts) <= (3 if kind == "pictures" else 7)


@pytest.mark.parametrize(("kind", "least"), [("pictures", 8), ("sounds", 7)])
def test_every_category_has_several_items(kind: str, least: int) -> None:
    counts = Counter(row["category"] for row in rows(kind))
    assert 5 <= len(counts) <= 10
    assert min(counts.values()) >= least, counts


def test_pictures_decode_on_white_and_no_two_look_alike() -> None:
    pictures = np.stack([pixels(row) for row in rows("pictures")])
    border = np.concatenate(
        [pictures[:, [0, -1]].reshape(len(pictures), -1, 3), pictures[:, :, [0, -1]].reshape(len(pictures), -1, 3)],
        axis=1,
    )
    assert (border.mean(axis=(1, 2)) > 0.5).all()
    assert (pictures.std(axis=(1, 2, 3)) > 0.02).all()
    small = pictures.reshape(len(pictures), 16, 4, 16, 4, 3).mean(axis=(2, 4)).reshape(len(pictures), -1)
    distance = np.sqrt(((small[:, None] - small[None]) ** 2).mean(axis=-1)) + np.eye(len(small))
    assert distance.min() > 0.08, "the closest two pictures, scaled to 16x16, root mean square difference"


def test_sounds_decode_at_8_khz_and_speak_for_0_4_to_3_seconds() -> None:
    for row in rows("sounds"):
        samples, rate = sf.read(SAMPLE / row["file"], dtype="float32")
        assert (rate, samples.ndim) == (8000, 1), row["file"]
        assert 0.4 <= len(samples) / rate <= 3.0, row["file"]
        assert np.sqrt((samples**2).mean()) > 0.03, f"{row['file']} is almost silent"
