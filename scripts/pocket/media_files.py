# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Pictures and sounds of all sources in one form: square PNG on white, FLAC of 16 kHz mono; and synthetic speech."""

import io
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
from PIL import Image

from modeling_mm.images import DAMAGED_FILE_ERRORS

LARGEST_SIDE = 224
RATE = 16_000
LONGEST = 18.0  # seconds: longer clips are left out of the corpora
SHORTEST = 0.15
QUIETEST = 1e-3  # peak of a clip that counts as silent


class UnusableError(ValueError):
    """A file that cannot enter a corpus, with the reason."""


def picture_png(path: Path) -> bytes:
    """
    Any picture as PNG: on white, padded to a square, at most 224 pixels a side; SVG is drawn at that size.

    Raises:
        UnusableError: where it cannot be read, or shows nothing but one colour.
    """
    data = path.read_bytes()
    if path.suffix == ".svg":
        data = draw_svg(path)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGBA")
    except (*DAMAGED_FILE_ERRORS, Image.DecompressionBombError) as error:
        raise UnusableError(f"unreadable picture: {error}") from error
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    side = max(picture.size)
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2), mask=picture)
    if np.ptp(np.asarray(canvas), axis=(0, 1)).max() == 0:
        raise UnusableError("empty picture: one colour all over")
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG")
    return buffer.getvalue()


def draw_svg(path: Path) -> bytes:
    """
    Raises:
        UnusableError: where the drawing is broken.
    """
    import resvg_py  # only to build corpora

    try:
        return bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=LARGEST_SIDE, skip_system_fonts=True))
    except (ValueError, RuntimeError) as error:
        raise UnusableError(f"unreadable drawing: {error}") from error


def sound_flac(path: Path) -> bytes:
    """
    Any sound as FLAC, 16 kHz, mono, 16 bits.

    Raises:
        UnusableError: where it cannot be read, is silent, or is shorter or longer than corpora take.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UnusableError(f"unreadable sound: {error}") from error
    return wave_flac(samples.mean(1), rate)


def wave_flac(samples: np.ndarray, rate: int) -> bytes:
    """As `sound_flac`, of samples (T,)."""
    seconds = len(samples) / rate
    if not SHORTEST <= seconds <= LONGEST:
        raise UnusableError(f"{seconds:.2f} s long; corpora take {SHORTEST} to {LONGEST} s")
    if np.abs(samples).max() < QUIETEST:
        raise UnusableError("silent sound")
    samples = soxr.resample(samples, rate, RATE) if rate != RATE else samples
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1.0, 1.0), RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


# ---- Synthetic speech -----------------------------------------------------------------------------------------------


class Synthesizer:
    """
    Speech by flite and espeak-ng out of their unpacked packages, without installing them.

    Args:
        packages: the folders of the two and of the libraries that they need
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
        A text as FLAC, 16 kHz mono.

        Args:
            voice: `flite/NAME` or `espeak-ng/NAME`

        Raises:
            UnusableError: where nothing comes of it.
            FileNotFoundError: where the packages do not hold the program.
        """
        program, _, name = voice.partition("/")
        if program not in ("flite", "espeak-ng"):
            raise ValueError(f"Unknown voice {voice!r}; expected flite/NAME or espeak-ng/NAME.")
        if program not in self.binaries:
            raise FileNotFoundError(f"There is no usr/bin/{program} in the packages; unpack that of {program} first.")
        with tempfile.TemporaryDirectory() as folder:
            wave = Path(folder) / "speech.wav"
            if program == "flite":
                command = [str(self.binaries["flite"]), "-voice", name, "-t", text, "-o", str(wave)]
            else:
                command = [str(self.binaries["espeak-ng"]), "-v", name, "-w", str(wave), "--", text]
            result = subprocess.run(command, env=self.environment, capture_output=True, text=True)
            if result.returncode != 0 or not wave.is_file():
                raise UnusableError(f"{voice} could not say {text!r}: {result.stderr.strip()[-200:]}")
            return sound_flac(wave)
