# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The picture of what each word of an answer looked at; it needs matplotlib, which is imported when it is drawn."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..audio import load_audio
from .attention import AnswerAttention

# Shape legend: W words, I images, h x w patches, T moments.

INK, QUIET, RULE, WAVE, WRONG, PAPER = "#1d2433", "#7a8294", "#e3e6ec", "#5b7083", "#b3261e", "#ffffff"
HEAT = "YlOrRd"  # pale where a word did not look, dark where it looked most
DRAWN_RATE = 16_000  # of a wave, per second
WAVE_POINTS = 600  # how many pairs of least and greatest sample a wave is drawn with

# Inches. A band is one answer: a heading, a row for each picture, and a wave above its words.
WIDTH, MARGIN, HEAD, FOOT = 11.0, 0.4, 0.95, 0.45
HEADING, CELL, CELL_GAP, CELL_TEXT = 0.52, 1.5, 0.2, 0.42
WAVE_HEIGHT, WORD_HEIGHT, TIME_AXIS, LABELS, SHARES = 0.6, 0.27, 0.5, 1.5, 1.05
BAND_GAP = 0.25


@dataclass(frozen=True)
class Band:
    """
    One answered question, as it is drawn.

    Args:
        question: as it was asked.
        truth: the right answer.
        attention: what the words of the given answer looked at.
        pictures: (H, W, 3) of 0 to 255, one for each image.
        wave: mono samples of all sounds, one after another.
    """

    question: str
    truth: str
    attention: AnswerAttention
    pictures: Sequence[np.ndarray] = ()
    wave: np.ndarray | None = None

    @property
    def inches(self) -> float:
        """How high the band is."""
        height = HEADING + BAND_GAP
        if self.attention.patches is not None:
            height += (self.cell + CELL_TEXT) * len(self.pictures)
        if self.attention.moments is not None:
            height += WAVE_HEIGHT + WORD_HEIGHT * len(self.attention.words) + TIME_AXIS
        return height

    @property
    def cell(self) -> float:
        """The side of a picture: they stand side by side, one for each word and one as it is."""
        return min(CELL, (WIDTH - 2 * MARGIN) / (1 + len(self.attention.words)) - CELL_GAP)


def read_band(question: str, truth: str, attention: AnswerAttention, image: Path | None, sound: Path | None) -> Band:
    """A band for a question about at most one picture file and one sound file."""
    pictures = []
    if image is not None:
        with Image.open(image) as opened:
            pictures.append(np.asarray(opened.convert("RGB")))
    wave = None if sound is None else load_audio(str(sound), DRAWN_RATE)
    return Band(question, truth, attention, pictures, wave)


class Sheet:
    """A figure whose parts are placed in inches from its upper left corner."""

    def __init__(self, height: float):
        from matplotlib.figure import Figure  # a figure of its own, without pyplot's global state

        self.height = height
        self.figure = Figure(figsize=(WIDTH, height), facecolor=PAPER, dpi=160)

    def text(self, x: float, y: float, text: str, size: float = 10, **kwargs) -> Any:
        """Text as it is, without markup, whose vertical middle is `y` inches below the upper edge."""
        kwargs = {"color": INK, "va": "center", "parse_math": False, **kwargs}
        text = "".join(character if character.isprintable() else "\ufffd" for character in text)
        return self.figure.text(x / WIDTH, 1 - y / self.height, text, fontsize=size, **kwargs)

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        """Bare axes whose upper left corner is at (x, y)."""
        axes = self.figure.add_axes(
            (x / WIDTH, 1 - (y + height) / self.height, width / WIDTH, height / self.height), frameon=False
        )
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def rule(self, y: float) -> None:
        from matplotlib.lines import Line2D

        level = 1 - y / self.height
        self.figure.add_artist(Line2D([MARGIN / WIDTH, 1 - MARGIN / WIDTH], [level, level], color=RULE, linewidth=1))


def draw(bands: Sequence[Band], title: str, note: str = "") -> Any:
    """
    A figure with one band for each answer, from top to bottom.

    A band shows each picture once as it is and once for each word, and the sound's wave above one strip of heat for
    each word. A word's heat, over pictures and sounds together, is scaled to the place where it looked most; the
    shares beside it say how much of its attention fell on the picture and on the sound at all.
    """
    sheet = Sheet(HEAD + sum(band.inches for band in bands) + FOOT)
    sheet.text(MARGIN, 0.36, title, size=16, weight="bold")
    if note:
        sheet.text(MARGIN, 0.66, note, size=9.5, color=QUIET)
    top = HEAD
    for band in bands:
        sheet.rule(top)
        draw_band(sheet, band, top)
        top += band.inches
    draw_key(sheet, top + FOOT / 2 - 0.05)
    return sheet.figure


def draw_band(sheet: Sheet, band: Band, top: float) -> None:
    attention = band.attention
    question = sheet.text(MARGIN, top + HEADING / 2 + 0.03, band.question, size=11.5, color=QUIET)
    answer_x = MARGIN + width_inches(sheet, question) + 0.18
    right = attention.answer == band.truth
    answer = sheet.text(answer_x, top + HEADING / 2 + 0.03, attention.answer, size=11.5, weight="bold")
    verdict = "\u2713" if right else f"\u2717  truth: {band.truth}"
    verdict_x = answer_x + width_inches(sheet, answer) + 0.15
    sheet.text(verdict_x, top + HEADING / 2 + 0.03, verdict, size=11, color="#2e7d32" if right else WRONG)
    top += HEADING
    both = attention.patches is not None and attention.moments is not None
    if attention.patches is not None:
        for number, picture in enumerate(band.pictures):
            draw_picture_row(sheet, band, number, picture, top, both)
            top += band.cell + CELL_TEXT
    if attention.moments is not None:
        draw_sound(sheet, band, top, both)


def width_inches(sheet: Sheet, text: Any) -> float:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(sheet.figure).get_renderer()
    return text.get_window_extent(renderer).width / sheet.figure.dpi


def draw_picture_row(sheet: Sheet, band: Band, number: int, picture: np.ndarray, top: float, shares: bool) -> None:
    """One picture as it is, then once for each word, lit where the word looked."""
    heat = band.attention.patches[:, number].numpy() / greatest(band.attention)[:, None, None]  # (W, h, w)
    step, cell = band.cell + CELL_GAP, band.cell
    axes = sheet.axes(MARGIN, top, cell, cell)
    axes.imshow(picture, interpolation="lanczos")
    frame(axes, picture.shape)
    for column, (word, patches) in enumerate(zip(band.attention.words, heat, strict=True), start=1):
        x = MARGIN + column * step
        axes = sheet.axes(x, top, cell, cell)
        draw_heat(axes, picture, patches)
        frame(axes, picture.shape)
        sheet.text(x + cell / 2, top + cell + 0.15, word, size=10.5, weight="bold", ha="center")
        if shares:
            share = f"{band.attention.on_pictures[column - 1]:.0%} on the picture"
            sheet.text(x + cell / 2, top + cell + 0.33, share, size=8, color=QUIET, ha="center")


def frame(axes: Any, shape: tuple[int, ...]) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((-0.5, -0.5), shape[1], shape[0], fill=False, edgecolor=RULE, linewidth=1.5))


def draw_heat(axes: Any, picture: np.ndarray, heat: np.ndarray) -> None:
    """A pale grey picture (H, W, 3) under heat (h, w) from 0 to 1; the less heat, the more of the picture shows."""
    height, width = picture.shape[:2]
    rows, columns = heat.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    grey = 0.3 + 0.7 * picture.mean(-1) / 255
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="lanczos", extent=extent)
    axes.imshow(heat, cmap=HEAT, vmin=0, vmax=1, alpha=0.8 * heat**0.7, interpolation="nearest", extent=extent)
    axes.hlines(np.arange(1, rows) * height / rows - 0.5, -0.5, width - 0.5, color=PAPER, linewidth=0.5, alpha=0.6)
    axes.vlines(
        np.arange(1, columns) * width / columns - 0.5, -0.5, height - 0.5, color=PAPER, linewidth=0.5, alpha=0.6
    )
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)


def greatest(attention: AnswerAttention) -> np.ndarray:
    """The greatest weight that each word gave to any patch or moment, (W,); never quite 0."""
    parts = [part.flatten(1) for part in (attention.patches, attention.moments) if part is not None]
    return np.maximum(np.concatenate([part.numpy() for part in parts], axis=1).max(1), 1e-12)


def draw_sound(sheet: Sheet, band: Band, top: float, shares: bool) -> None:
    """The wave above one strip for each word, over the same seconds."""
    attention, words = band.attention, len(band.attention.words)
    x, width = MARGIN + LABELS, WIDTH - 2 * MARGIN - LABELS - (SHARES if shares else 0)
    axes = sheet.axes(x, top, width, WAVE_HEIGHT)
    low, high = envelope(band.wave, WAVE_POINTS)
    time = (np.arange(len(low)) + 0.5) * attention.seconds / len(low)
    axes.fill_between(time, low, high, color=WAVE, linewidth=0.4)
    axes.set_xlim(0, attention.seconds)
    sheet.text(x - 0.12, top + WAVE_HEIGHT / 2, "the sound", size=9, color=QUIET, ha="right")

    top += WAVE_HEIGHT + 0.05
    axes = sheet.axes(x, top, width, WORD_HEIGHT * words)
    heat = attention.moments.numpy() / greatest(attention)[:, None]  # (W, T)
    axes.imshow(
        heat,
        cmap=HEAT,
        vmin=0,
        vmax=1,
        aspect="auto",
        interpolation="nearest",
        extent=(0, attention.seconds, words, 0),
    )
    for row in range(1, words):
        axes.axhline(row, color=PAPER, linewidth=2.5)
    axes.set_xlim(0, attention.seconds)
    axes.set_xticks(np.arange(0, attention.seconds, 0.25 if attention.seconds < 2 else 0.5))
    axes.tick_params(axis="x", labelsize=8, colors=QUIET, length=3)
    axes.set_xlabel("seconds", fontsize=8, color=QUIET, labelpad=2)
    for row, word in enumerate(attention.words):
        y = top + WORD_HEIGHT * (row + 0.5)
        sheet.text(x - 0.12, y, word, size=10.5, weight="bold", ha="right")
        if shares:
            share = f"{attention.on_sounds[row]:.0%} on the sound"
            sheet.text(x + width + 0.08, y, share, size=8, color=QUIET)


def envelope(wave: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest sample of each of at most `points` pieces of a wave."""
    pieces = np.array_split(wave, min(points, len(wave)))
    return np.array([piece.min() for piece in pieces]), np.array([piece.max() for piece in pieces])


def draw_key(sheet: Sheet, y: float) -> None:
    """What the colours mean."""
    width = 1.6
    x = WIDTH - MARGIN - width - 1.15
    sheet.text(x - 0.1, y, "looked least", size=8.5, color=QUIET, ha="right")
    axes = sheet.axes(x, y - 0.07, width, 0.14)
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=HEAT, aspect="auto")
    sheet.text(x + width + 0.1, y, "looked most", size=8.5, color=QUIET)


def save(figure: Any, path: str | os.PathLike) -> Path:
    """Writes a figure in one step: a reader sees the old file or the new one, never half of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path
