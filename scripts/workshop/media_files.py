# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Media of all sources in one form: PNG images on white, FLAC audio of 16 kHz mono, and synthetic speech."""

import io
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
from PIL import Image

from .corpus import UnusableError

MAX_SIDE = 224
MAX_SIDE_OF_PHOTOGRAPHS = 320
RATE = 16_000
MIN_SECONDS, MAX_SECONDS = 0.15, 18.0
MIN_PEAK = 1e-3  # a recording below this counts as silent


def on_white(image: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
    """Return an image as RGB, centered on white, a square unless a size is given; transparency becomes white too."""
    image = image.convert("RGBA")
    width, height = size or (max(image.size),) * 2
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2), mask=image)
    return canvas


def image_to_png(path: Path) -> bytes:
    """
    Convert an image file to PNG: square, on white, at most 224 pixels a side. SVG is rendered at that size.

    Raises:
        UnusableError: if the file cannot be read or has one color only.
    """
    image = open_image(render_svg(path) if path.suffix == ".svg" else path.read_bytes())
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return to_png(on_white(image))


def photograph_to_png(data: bytes) -> bytes:
    """
    Convert a photograph to PNG: in its proportions, at most 320 pixels a side.

    Raises:
        UnusableError: if the file cannot be read or has one color only.
    """
    image = open_image(data)
    image.thumbnail((MAX_SIDE_OF_PHOTOGRAPHS, MAX_SIDE_OF_PHOTOGRAPHS), Image.Resampling.LANCZOS)
    return to_png(on_white(image, image.size))


def open_image(data: bytes) -> Image.Image:
    """
    Return the image of a file as RGBA.

    Raises:
        UnusableError: if it cannot be read.
    """
    from modeling_mm.images import DAMAGED_FILE_ERRORS  # it imports torch, which `--help` does without

    try:
        with Image.open(io.BytesIO(data)) as opened:
            return opened.convert("RGBA")
    except (*DAMAGED_FILE_ERRORS, Image.DecompressionBombError) as error:
        raise UnusableError(f"unreadable image: {error}") from error


def to_png(image: Image.Image) -> bytes:
    """
    Return an image as a PNG file.

    Raises:
        UnusableError: if it has one color only.
    """
    if np.ptp(np.asarray(image), axis=(0, 1)).max() == 0:
        raise UnusableError("empty image: it has one color only")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def render_svg(path: Path) -> bytes:
    """
    Render an SVG file as PNG.

    Raises:
        UnusableError: if the drawing is broken.
    """
    import resvg_py  # an extra of the package, needed to build corpora only

    try:
        return bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=MAX_SIDE, skip_system_fonts=True))
    except (ValueError, RuntimeError) as error:
        raise UnusableError(f"unreadable drawing: {error}") from error


def audio_to_flac(path: Path) -> bytes:
    """
    Convert an audio file to FLAC of 16 kHz, mono, 16 bits.

    Raises:
        UnusableError: if the file cannot be read, is silent, too short or too long.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UnusableError(f"unreadable audio: {error}") from error
    return samples_to_flac(samples.mean(1), rate)


def samples_to_flac(samples: np.ndarray, rate: int) -> bytes:
    """Convert samples (T,) as `audio_to_flac` does."""
    seconds = len(samples) / rate
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise UnusableError(f"{seconds:.2f} s long; corpora take {MIN_SECONDS} to {MAX_SECONDS} s")
    if np.abs(samples).max() < MIN_PEAK:
        raise UnusableError("silent audio")
    samples = soxr.resample(samples, rate, RATE) if rate != RATE else samples
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1.0, 1.0), RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


# ---- Synthetic speech -----------------------------------------------------------------------------------------------


class Synthesizer:
    """
    Speech synthesizers flite and espeak-ng, run from their unpacked packages without installing them.

    Args:
        packages: the folders of both and of the libraries that they need.
    """

    def __init__(self, packages: list[Path]):
        self.binaries = {
            path.name: path for package in packages for path in package.glob("usr/bin/*") if path.is_file()
        }
        libraries = [path for package in packages for path in package.glob("**/lib/x86_64-linux-gnu")]
        libraries += [path for package in packages for path in package.glob("**/lib/x86_64-linux-gnu/pulseaudio")]
        data = [path.parent for package in packages for path in package.glob("usr/lib/*/espeak-ng-data")]
        self.environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}
        if data:
            self.environment["ESPEAK_DATA_PATH"] = str(data[0])

    def speak(self, text: str, voice: str) -> bytes:
        """
        Speak a text; return FLAC of 16 kHz mono.

        Args:
            voice: `flite/NAME` or `espeak-ng/NAME`.

        Raises:
            ValueError: for another voice.
            UnusableError: if the program fails or its output is silent, too short or too long.
            FileNotFoundError: if the packages do not hold the program.
        """
        program, _, name = voice.partition("/")
        if program not in ("flite", "espeak-ng"):
            raise ValueError(f"Unknown voice {voice!r}; expected flite/NAME or espeak-ng/NAME.")
        if program not in self.binaries:
            raise FileNotFoundError(f"The packages have no usr/bin/{program}. Unpack the package {program} first.")
        with tempfile.TemporaryDirectory() as folder:
            wave = Path(folder) / "speech.wav"
            if program == "flite":
                command = [str(self.binaries["flite"]), "-voice", name, "-t", text, "-o", str(wave)]
            else:
                command = [str(self.binaries["espeak-ng"]), "-v", name, "-w", str(wave), "--", text]
            result = subprocess.run(command, env=self.environment, capture_output=True, text=True)
            if result.returncode != 0 or not wave.is_file():
                raise UnusableError(f"{voice} could not say {text!r}: {result.stderr.strip()[-200:]}")
            return audio_to_flac(wave)
