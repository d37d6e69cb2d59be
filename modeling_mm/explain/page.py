# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""One self-contained HTML page of explained answers: media, heat and audio players are in the file itself."""

import base64
import io
import os
import wave
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..utils.files import write_text
from .contributions import Contributions
from .explanation import Explanation
from .figure import WAVE_RATE, Band, envelope, scaled

# Shape legend: W words, I images, h x w patches, T moments.

HEAT_COLOR = np.array([255.0, 120.0, 0.0])
HEAT_OPACITY = 0.75  # of the greatest heat
SHOWN_WIDTH = 180  # pixels of an image
STRIP_POINTS = 240  # pairs of least and greatest sample of a wave

NOTES = {
    "attention": "Cross-attention, mean over heads and blocks: where the decoder read.",
    "gradient-attention": "Attention times its gradient: what the decoder read that raised the score.",
    "integrated-gradients": "Gradients of the score from blank media to the real ones.",
    "occlusion": "Fall of the score when a place is blank.",
}

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1d2433;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.05rem;margin:0 0 .3rem}h3{font-size:.95rem;margin:1rem 0 .2rem}
p{margin:.2rem 0;color:#5a6275}section{border-top:1px solid #e3e6ec;padding:1.2rem 0}
.row{display:flex;flex-wrap:wrap;gap:.8rem;align-items:flex-end}figure{margin:0;text-align:center}
figcaption{font-weight:600;font-size:.85rem}small{display:block;font-weight:400;color:#7a8294}
img,svg{border:1px solid #e3e6ec;display:block}.right{color:#2e7d32}.wrong{color:#b3261e}
table{border-collapse:collapse;font-size:.85rem}td,th{padding:.15rem .7rem;text-align:right}
th:first-child{text-align:left}
mark{padding:.1rem .2rem;border-radius:.2rem;color:inherit}
"""


def write_page(bands: Sequence[Band], title: str, path: str | os.PathLike, noun: str = "answer") -> Path:
    """
    Write explained answers of an example or of a whole evaluation as one HTML page, in one step.

    Args:
        bands: each an answer with its media; see [`read_band`]
        noun: for a band

    Returns:
        the path, as a `Path`

    Example:
        >>> band = read_band(prompt, explain(model, processor, prompt, method="occlusion"), truth="a cat")
        >>> write_page([band], "Cats", "outputs/cats.html")
    """
    path = Path(path)
    write_text(path, page(bands, title, noun))
    return path


def page(bands: Sequence[Band], title: str, noun: str = "answer") -> str:
    """Return the page as text."""
    known = [band for band in bands if band.truth is not None]
    right = sum(band.attention.answer == band.truth for band in known)
    summary = f"{len(bands)} {noun}{'s' * (len(bands) != 1)}" + (
        f", {right} of {len(known)} exactly right" if known else ""
    )
    means = mean_contributions([band.contributions for band in bands if band.contributions is not None])
    sections = "\n".join(section(band) for band in bands)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1><p>{summary}</p>{means}\n{sections}\n</body></html>\n"
    )


def mean_contributions(found: Sequence[Contributions]) -> str:
    """Return the mean of each modality's contributions over the answers that have it, as one line."""
    if not found:
        return ""
    names = dict.fromkeys(name for each in found for name in each.values)
    means = {
        name: torch.cat([each.values[name] for each in found if name in each.values]).mean().item() for name in names
    }
    told = ", ".join(f"{escape(name)} {mean:+.2f}" for name, mean in means.items())
    return f"<p>Mean contribution to {escape(found[0].measure)}: {told}</p>"


def section(band: Band) -> str:
    """Return one answer: the question, the truth, each method, and the contributions of the modalities."""
    answer, truth = band.attention.answer, ""
    if band.truth is not None:
        is_right = answer == band.truth
        truth = (
            ' <span class="right">\u2713</span>'
            if is_right
            else (f' <span class="wrong">\u2717 truth: {escape(band.truth)}</span>')
        )
    media = "".join(f"<figure>{image_element(image)}</figure>" for image in band.images)
    if band.wave is not None:
        media += f'<figure><audio controls src="{audio_uri(band.wave)}"></audio></figure>'
    methods = "".join(method_block(band, each) for each in (band.attention, *band.others))
    return (
        f"<section><h2>{escape(band.question)} \u2192 {escape(answer)}{truth}</h2>"
        f'<div class="row">{media}</div>{methods}{contribution_table(band)}</section>'
    )


def method_block(band: Band, explanation: Explanation) -> str:
    """Return the heat of each word on images, audio and text, by one method."""
    patches, moments = scaled(explanation)
    cells = []
    for number, word in enumerate(explanation.words):
        parts = []
        if patches is not None:
            parts += [image_element(image, heat) for image, heat in zip(band.images, patches[number], strict=True)]
        if moments is not None and band.wave is not None:
            parts.append(strip(band.wave, moments[number], explanation.seconds))
        if patches is not None and moments is not None:
            shares = {name: share[number].item() for name, share in explanation.shares.items()}
            told = ", ".join(f"{escape(name)} {share:.0%}" for name, share in shares.items())
        else:
            told = ""
        cells.append(f"<figure>{''.join(parts)}<figcaption>{escape(word)}<small>{told}</small></figcaption></figure>")
    text = "".join(text_line(explanation, number) for number in range(len(explanation.words)))
    silent = " It shows no words." if patches is None and moments is None and not text else ""
    return (
        f"<h3>{escape(explanation.method)}</h3><p>{NOTES.get(explanation.method, '')}{silent}</p>"
        f'<div class="row">{"".join(cells)}</div>{text}'
    )


def text_line(explanation: Explanation, number: int) -> str:
    """Return the prompt's words under the heat that one word of the answer gives them; nothing without weights."""
    if explanation.text is None or not explanation.prompt_words:
        return ""
    weights = explanation.text[number]
    heats = (HEAT_OPACITY * weights / weights.max().clamp(min=1e-12)).tolist()
    marks = " ".join(
        f'<mark style="background:rgba(255,120,0,{heat:.2f})">{escape(word)}</mark>'
        for word, heat in zip(explanation.prompt_words, heats, strict=True)
    )
    return f"<p>{escape(explanation.words[number])}: {marks}</p>"


def contribution_table(band: Band) -> str:
    """Return what each modality adds to the probability of each word; nothing if it was not measured."""
    found = band.contributions
    if found is None:
        return ""
    head = "".join(f"<th>{escape(word)}</th>" for word in band.attention.words)
    rows = {"nothing": found.base, **{f"+ {name}": values for name, values in found.values.items()}, "all": found.full}
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{value:.2f}</td>' for value in values.tolist())}</tr>"
        for name, values in rows.items()
    )
    return f"<h3>probability by modality</h3><table><tr><th></th>{head}</tr>{body}</table>"


def image_element(image: np.ndarray, heat: np.ndarray | None = None) -> str:
    """Return an image (H, W, 3) of 0 to 255, gray under heat (h, w) of 0 to 1, as an element with its data."""
    height = max(round(image.shape[0] * SHOWN_WIDTH / image.shape[1]), 1)
    shown = Image.fromarray(image).resize((SHOWN_WIDTH, height))
    if heat is not None:
        gray = np.asarray(shown.convert("L").convert("RGB"), dtype=np.float64)
        shown = Image.fromarray(overlay(gray, heat).round().astype(np.uint8))
    data = io.BytesIO()
    shown.save(data, "PNG")
    return f'<img alt="" width="{SHOWN_WIDTH}" height="{height}" src="{data_uri("image/png", data.getvalue())}">'


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) pixels of 0 to 255 under heat (h, w) of 0 to 1."""
    size = (pixels.shape[1], pixels.shape[0])
    spread = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.NEAREST))
    opacity = HEAT_OPACITY * np.clip(spread, 0, 1)[..., None]
    return pixels * (1 - opacity) + HEAT_COLOR * opacity


def strip(samples: np.ndarray, heat: np.ndarray, seconds: float) -> str:
    """Return a wave over its heat (T,) of 0 to 1 as a drawing of vectors."""
    width, height = 2 * SHOWN_WIDTH, 44
    low, high = envelope(samples, STRIP_POINTS)
    loudest = max(float(np.abs(samples).max(initial=0.0)), 1e-6)
    step = width / len(heat)
    boxes = "".join(
        f'<rect x="{number * step:.2f}" width="{step + 0.3:.2f}" height="{height}" fill="#ff7800" '
        f'fill-opacity="{HEAT_OPACITY * value:.2f}"/>'
        for number, value in enumerate(heat.tolist())
        if value > 0.01
    )
    lines = "".join(
        f"M{(place + 0.5) * width / len(low):.1f} {height / 2 * (1 - top / loudest):.1f}"
        f"V{height / 2 * (1 - bottom / loudest) + 0.5:.1f}"
        for place, (bottom, top) in enumerate(zip(low, high, strict=True))
    )
    return (
        f'<svg width="{width}" height="{height}"><title>{seconds:.2f} seconds</title>{boxes}'
        f'<path d="{lines}" stroke="#5b7083" fill="none"/></svg>'
    )


def audio_uri(samples: np.ndarray) -> str:
    """Return a mono wave as a WAV file of 16 bits in a data URI."""
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(WAVE_RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return data_uri("audio/wav", data.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
