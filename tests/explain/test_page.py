"""The page: everything in one file, text escaped, each method, word and modality shown."""

import re
from dataclasses import replace

import numpy as np
import torch

from modeling_mm.explain import Band, Contributions, Explanation, write_page


def band(truth: str | None = "a cat", **fields) -> Band:
    seen = Explanation(
        words=["a", "<cat>"],
        patches=torch.tensor([[[[0.5, 0.0]]], [[[0.0, 0.25]]]]),
        moments=torch.tensor([[0.5, 0.0, 0.0], [0.25, 0.25, 0.25]]),
        seconds=0.5,
        shares={"image": torch.tensor([0.5, 0.25]), "audio": torch.tensor([0.5, 0.75])},
        method="occlusion",
        prompt_words=["What", "<b>is</b>"],
        text=torch.tensor([[1.0, 0.0], [0.5, 0.5]]),
    )
    image = np.zeros((20, 40, 3), dtype=np.uint8)
    wave = np.sin(np.arange(8000) / 8).astype(np.float32)
    return Band("What <b>is</b> it?", truth, seen, [image], wave, **fields)


def test_a_page_is_one_file_with_all_media_and_escaped_text(tmp_path) -> None:
    found = Contributions({"image": torch.tensor([0.5, 0.25])}, torch.tensor([0.1, 0.1]), torch.tensor([0.6, 0.35]))
    other = replace(band().attention, method="attention", text=None)
    bands = [band(contributions=found, others=[other]), band("a <cat>"), band(None)]
    path = write_page(bands, "Cats & dogs", tmp_path / "new" / "page.html")
    text = path.read_text(encoding="utf-8")
    assert "<p>1 answer</p>" in write_page([band(None)], "t", tmp_path / "one.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', text) and "<script" not in text
    assert "<b>" not in text and "&lt;cat&gt;" in text and "Cats &amp; dogs" in text
    assert "3 answers, 1 of 2 exactly right" in text and "\u2717 truth: a cat" in text
    assert text.count("<audio") == 3 and text.count("<img") == 3 * (1 + 2) + 2 and text.count("<svg") == 8
    assert "<h3>occlusion</h3>" in text and "<h3>attention</h3>" in text
    assert "image 25%, audio 75%" in text
    assert "image +0.38" in text and "<th>+ image</th><td>0.50</td><td>0.25</td>" in text


def test_the_words_of_the_prompt_are_shaded_by_their_weight(tmp_path) -> None:
    text = write_page([band()], "t", tmp_path / "page.html").read_text(encoding="utf-8")
    marks = re.findall(r'rgba\(255,120,0,([\d.]+)\)">([^<]+)', text)
    assert [word for _, word in marks] == ["What", "&lt;b&gt;is&lt;/b&gt;"] * 2
    assert [heat for heat, _ in marks] == ["0.75", "0.00", "0.75", "0.75"]


def test_silent_audio_and_images_alone_are_drawn(tmp_path) -> None:
    seen = band().attention
    silent = Band("?", None, replace(seen, patches=None), wave=np.zeros(4, dtype=np.float32))
    still = Band("?", None, replace(seen, moments=None), [np.zeros((1, 300, 3), dtype=np.uint8)])
    text = write_page([silent, still], "t", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "nan" not in text and text.count("<img") == 3
