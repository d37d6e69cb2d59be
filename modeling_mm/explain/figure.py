# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Figure of the places and words that each word of an answer came from; matplotlib is imported when one is drawn."""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..audio import load_audio
from ..data.chat_row import Message, media_parts, media_source, turn_text
from ..images import load_image
from ..modalities import MODALITIES
from ..utils.files import write_bytes
from .contributions import Contributions
from .explanation import Explanation

# Shape legend: W words, I images, h x w patches, T moments.

INK, QUIET, RULE, WAVE, PAPER = "#1d2433", "#7a8294", "#e3e6ec", "#5b7083", "#ffffff"
RIGHT, WRONG = "#2e7d32", "#b3261e"
# Pale for the least weight, dark for the greatest.
HEAT = {"cmap": "YlOrRd", "vmin": 0, "vmax": 1, "interpolation": "nearest"}
WAVE_RATE = 16_000  # samples per second that a wave is drawn from
WAVE_POINTS = 600  # pairs of least and greatest sample that a wave is drawn with

# Inches. A band is one answer: a heading, a row for each image, and a wave above its words.
WIDTH, MARGIN, HEAD, FOOT = 11.0, 0.4, 0.95, 0.45
HEADING, CELL, CELL_GAP, CELL_TEXT = 0.52, 1.5, 0.2, 0.42
WAVE_HEIGHT, WORD_HEIGHT, TIME_AXIS, LABELS, SHARES = 0.6, 0.27, 0.5, 1.5, 1.05
BAND_GAP = 0.25
TEXT_LINE, TEXT_TAIL, LINE_LETTERS = 0.3, 0.12, 105


@dataclass(frozen=True)
class Band:
    """
    One answered question of a figure.

    Args:
        question: the user's text.
        truth: the right answer, if it is known.
        attention: explanation of the words of the given answer, or of a class.
        images: (H, W, 3) of 0 to 255, one for each image.
        wave: mono samples of all audio, in order.
        others: explanations by other methods, which only a page shows.
        contributions: of the modalities, which only a page shows.
    """

    question: str
    truth: str | None
    attention: Explanation
    images: Sequence[np.ndarray] = ()
    wave: np.ndarray | None = None
    others: Sequence[Explanation] = ()
    contributions: Contributions | None = None

    @property
    def inches(self) -> float:
        """Height of the band."""
        height = HEADING + BAND_GAP
        if self.attention.patches is not None:
            height += (self.cell + CELL_TEXT) * len(self.images)
        if self.attention.moments is not None:
            height += WAVE_HEIGHT + WORD_HEIGHT * len(self.attention.words) + TIME_AXIS
        if self.lines:
            height += TEXT_LINE * len(self.lines) * len(self.attention.words) + TEXT_TAIL
        return height

    @property
    def lines(self) -> list[list[int]]:
        """Words of the prompt, by their numbers, that fit into each line; none for a method that shows no words."""
        lines: list[list[int]] = []
        letters = LINE_LETTERS
        for number, word in enumerate(self.attention.prompt_words if self.attention.text is not None else ()):
            if letters + len(word) > LINE_LETTERS:
                lines.append([])
                letters = 0
            lines[-1].append(number)
            letters += len(word) + 2
        return lines

    @property
    def cell(self) -> float:
        """Side of an image; a row shows it once without heat and once for each word."""
        return min(CELL, (WIDTH - 2 * MARGIN) / (1 + len(self.attention.words)) - CELL_GAP)


def read_band(prompt: Sequence[Message], attention: Explanation, truth: str | None = None) -> Band:
    """Return the band of a prompt: the text of its last turn, and the media of all its turns."""
    sources: dict[str, list[Any]] = {name: [] for name in MODALITIES}
    for part in media_parts(prompt):
        sources[part["type"]].append(media_source(part))
    images = [np.asarray(load_image(source)) for source in sources["image"]]
    waves = [load_audio(source, WAVE_RATE) for source in sources["audio"]]
    return Band(turn_text(prompt[-1]), truth, attention, images, np.concatenate(waves) if waves else None)


class Sheet:
    """Figure whose parts are placed in inches from its upper left corner."""

    def __init__(self, height: float):
        from matplotlib.figure import Figure  # without pyplot's global state

        self.height = height
        self.figure = Figure(figsize=(WIDTH, height), facecolor=PAPER, dpi=160)

    def text(self, x: float, y: float, text: str, size: float = 10, **kwargs: Any) -> float:
        """Write text without markup, its vertical middle at `y`, and return its width."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        kwargs = {"color": INK, "va": "center", "parse_math": False, **kwargs}
        text = "".join(character if character.isprintable() else "\ufffd" for character in text)
        written = self.figure.text(x / WIDTH, 1 - y / self.height, text, fontsize=size, **kwargs)
        return written.get_window_extent(FigureCanvasAgg(self.figure).get_renderer()).width / self.figure.dpi

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        """Return bare axes whose upper left corner is at (x, y)."""
        bounds = (x / WIDTH, 1 - (y + height) / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(bounds, frameon=False, xticks=[], yticks=[])

    def rule(self, y: float) -> None:
        from matplotlib.lines import Line2D

        level = 1 - y / self.height
        self.figure.add_artist(Line2D([MARGIN / WIDTH, 1 - MARGIN / WIDTH], [level, level], color=RULE, linewidth=1))


def draw(bands: Sequence[Band], title: str, note: str = "") -> Any:
    """
    Return a matplotlib figure with one band for each answer, from top to bottom.

    A band shows each image without heat and once for each word, and the wave of the audio above one strip of heat for
    each word. The heat of a word is scaled to its weightiest place, over images and audio together; the shares beside
    it tell how much of its weight the image and the audio got in all. Words of the prompt have a scale apart.
    """
    sheet = Sheet(HEAD + sum(band.inches for band in bands) + FOOT)
    sheet.text(MARGIN, 0.36, title, size=16, weight="bold")
    sheet.text(MARGIN, 0.66, note, size=9.5, color=QUIET)
    top = HEAD
    for band in bands:
        sheet.rule(top)
        draw_band(sheet, band, top)
        top += band.inches
    x, y, width = WIDTH - MARGIN - 2.75, top + FOOT / 2 - 0.05, 1.6  # the key of the colors
    sheet.text(x - 0.1, y, "least", size=8.5, color=QUIET, ha="right")
    sheet.axes(x, y - 0.07, width, 0.14).imshow(np.linspace(0, 1, 256)[None], aspect="auto", **HEAT)
    sheet.text(x + width + 0.1, y, "most", size=8.5, color=QUIET)
    return sheet.figure


def draw_band(sheet: Sheet, band: Band, top: float) -> None:
    attention, middle = band.attention, top + HEADING / 2 + 0.03
    x = MARGIN + sheet.text(MARGIN, middle, band.question, size=11.5, color=QUIET) + 0.18
    x += sheet.text(x, middle, attention.answer, size=11.5, weight="bold") + 0.15
    if attention.answer == band.truth:
        sheet.text(x, middle, "\u2713", size=11, color=RIGHT)
    elif band.truth is not None:
        sheet.text(x, middle, f"\u2717  truth: {band.truth}", size=11, color=WRONG)
    top += HEADING
    patches, moments = scaled(attention)
    has_both = patches is not None and moments is not None
    if patches is not None:
        for image, heat in zip(band.images, patches.swapaxes(0, 1), strict=True):
            draw_image(sheet, band, image, heat, top, has_both)
            top += band.cell + CELL_TEXT
    if moments is not None:
        draw_audio(sheet, band, moments, top, has_both)
        top += WAVE_HEIGHT + WORD_HEIGHT * len(attention.words) + TIME_AXIS
    for number, word in enumerate(attention.words):
        top = draw_text(sheet, band, number, word, top)


def draw_text(sheet: Sheet, band: Band, number: int, word: str, top: float) -> float:
    """Draw the words of the prompt over the heat that a word of the answer gives them, and return where they end."""
    from matplotlib import colormaps

    weights = band.attention.text
    for line in band.lines:
        assert weights is not None, "only weights have lines"
        x, middle = MARGIN, top + TEXT_LINE / 2
        if len(band.attention.words) > 1:
            sheet.text(x + LABELS - 0.12, middle, word, size=10.5, weight="bold", ha="right")
            x += LABELS
        for each in line:
            heat = (weights[number, each] / weights[number].max().clamp(min=1e-12)).item()
            color = colormaps[str(HEAT["cmap"])](0.6 * heat) if heat > 0 else PAPER
            box = {"boxstyle": "round,pad=0.2", "facecolor": color, "edgecolor": "none"}
            x += sheet.text(x, middle, band.attention.prompt_words[each], size=10, bbox=box) + 0.11
        top += TEXT_LINE
    return top


def scaled(attention: Explanation) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return patches and moments from 0 to 1, which is the greatest weight of each word over both."""
    parts = [None if part is None else part.numpy() for part in (attention.patches, attention.moments)]
    flat = [part.reshape(len(part), -1) for part in parts if part is not None]
    greatest = np.concatenate([np.full((len(attention.words), 1), 1e-12), *flat], axis=1).max(1)  # (W,)
    patches, moments = (None if part is None else (part.T / greatest).T for part in parts)
    return patches, moments


def draw_image(sheet: Sheet, band: Band, image: np.ndarray, heat: np.ndarray, top: float, shares: bool) -> None:
    """Draw an image (H, W, 3) without heat, then once for each word under its heat (W, h, w)."""
    cell = band.cell
    draw_cell(sheet.axes(MARGIN, top, cell, cell), image)
    for column, word in enumerate(band.attention.words):
        x = MARGIN + (column + 1) * (cell + CELL_GAP)
        draw_cell(sheet.axes(x, top, cell, cell), image, heat[column])
        sheet.text(x + cell / 2, top + cell + 0.15, word, size=10.5, weight="bold", ha="center")
        if shares:
            share = f"{band.attention.shares['image'][column]:.0%} on the image"
            sheet.text(x + cell / 2, top + cell + 0.33, share, size=8, color=QUIET, ha="center")


def draw_cell(axes: Any, image: np.ndarray, heat: np.ndarray | None = None) -> None:
    """Draw an image (H, W, 3), pale and gray under heat (h, w); the less heat, the more of the image is visible."""
    from matplotlib.patches import Rectangle

    height, width = image.shape[:2]
    if heat is None:
        axes.imshow(image, interpolation="lanczos")
    else:
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        gray = 0.3 + 0.7 * image.mean(-1) / 255
        axes.imshow(gray, cmap="gray", vmin=0, vmax=1, interpolation="lanczos", extent=extent)
        axes.imshow(heat, alpha=0.8 * heat**0.7, extent=extent, **HEAT)
        grid = {"color": PAPER, "linewidth": 0.5, "alpha": 0.6}
        rows, columns = heat.shape
        axes.hlines(np.arange(1, rows) * height / rows - 0.5, -0.5, width - 0.5, **grid)
        axes.vlines(np.arange(1, columns) * width / columns - 0.5, -0.5, height - 0.5, **grid)
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor=RULE, linewidth=1.5))


def draw_audio(sheet: Sheet, band: Band, heat: np.ndarray, top: float, shares: bool) -> None:
    """Draw the wave above one strip of heat (W, T) for each word, over the same seconds."""
    assert band.wave is not None, "a band of an answer about audio needs its wave"
    words, seconds = band.attention.words, band.attention.seconds
    x, width = MARGIN + LABELS, WIDTH - 2 * MARGIN - LABELS - (SHARES if shares else 0)
    axes = sheet.axes(x, top, width, WAVE_HEIGHT)
    low, high = envelope(band.wave, WAVE_POINTS)
    axes.fill_between((np.arange(len(low)) + 0.5) * seconds / len(low), low, high, color=WAVE, linewidth=0.4)
    axes.set_xlim(0, seconds)
    sheet.text(x - 0.12, top + WAVE_HEIGHT / 2, "the audio", size=9, color=QUIET, ha="right")

    top += WAVE_HEIGHT + 0.05
    axes = sheet.axes(x, top, width, WORD_HEIGHT * len(words))
    axes.imshow(heat, aspect="auto", extent=(0, seconds, len(words), 0), **HEAT)
    for row in range(1, len(words)):
        axes.axhline(row, color=PAPER, linewidth=2.5)
    axes.set(xlim=(0, seconds), xticks=np.arange(0, seconds, 0.25 if seconds < 2 else 0.5))
    axes.tick_params(axis="x", labelsize=8, colors=QUIET, length=3)
    axes.set_xlabel("seconds", fontsize=8, color=QUIET, labelpad=2)
    for row, word in enumerate(words):
        y = top + WORD_HEIGHT * (row + 0.5)
        sheet.text(x - 0.12, y, word, size=10.5, weight="bold", ha="right")
        if shares:
            share = f"{band.attention.shares['audio'][row]:.0%} on the audio"
            sheet.text(x + width + 0.08, y, share, size=8, color=QUIET)


def envelope(wave: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest sample of each of at most `points` pieces of a wave."""
    pieces = np.array_split(wave, min(points, len(wave)))
    return np.array([piece.min() for piece in pieces]), np.array([piece.max() for piece in pieces])


def save(figure: Any, path: str | os.PathLike) -> Path:
    """Write a figure in one step: a reader sees the old file or the new one, never half of one."""
    path, data = Path(path), io.BytesIO()
    figure.savefig(data, format=path.suffix.lstrip(".") or "png")
    write_bytes(path, data.getvalue())
    return path
