"""
Mutants of files of every format: cut, flipped, zeroed, joined, with changed lengths. None is taken for what it is not.

    python -m pytest tests/test_damaged_files.py -m slow -s     # prints the counts by format
"""

import io
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from modeling_mm.audio_files import decode_audio
from modeling_mm.images import load_image
from tests.test_audio_av import KINDS as AV_KINDS
from tests.test_audio_av import encode as encode_av

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 5  # that one file may take
CUTS, FLIPS, ZEROS = 8, 6, 4
ZERO_BYTES = 16

AUDIO = [
    *[("WAV", subtype) for subtype in ("PCM_16", "FLOAT", "IMA_ADPCM", "GSM610")],
    *[(kind, "PCM_16") for kind in ("WAVEX", "AIFF", "AU", "W64", "RF64", "CAF", "SVX", "NIST", "VOC", "AVR")],
    *[(kind, "PCM_16") for kind in ("MPC2K", "HTK", "MAT4", "MAT5", "SDS", "IRCAM", "PAF", "PVF", "FLAC")],
    *[("CAF", "ALAC_16"), ("WVE", "ALAW"), ("XI", "DPCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")],
    ("MP3", "MPEG_LAYER_III"),
]
IMAGES: list[tuple[str, dict]] = [
    *[(kind, {}) for kind in ("PNG", "ICO", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA")],
    *[(kind, {}) for kind in ("PCX", "SGI", "DDS", "QOI", "IM", "SPIDER", "MSP", "XBM", "BLP", "DIB")],
    *[("JPEG", {"progressive": True}), ("WEBP", {"lossless": True}), ("TIFF", {"compression": "tiff_deflate"})],
]
# The damage that a format cannot tell, as it has no checksum ("bytes"), and no length of the whole ("length").
BYTES, LENGTH = {"flip", "zero"}, {"flip", "zero", "cut"}
HEADER = {"flip"}  # what follows the header has checksums
CANNOT_TELL = {
    **dict.fromkeys(("WAV", "WAVEX", "AIFF", "AU", "W64", "RF64", "CAF", "SVX", "NIST", "VOC", "AVR", "MPC2K"), BYTES),
    **dict.fromkeys(("WVE", "HTK", "MAT4", "MAT5", "MP3", "m4a", "mp4", "webm", "mkv"), BYTES),
    **dict.fromkeys(("IRCAM", "PAF", "PVF", "XI"), LENGTH),
    **dict.fromkeys(("SDS", "ICO"), HEADER),
    **dict.fromkeys(
        ("TIFF", "JPEG", "GIF", "BMP", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "PCX", "SGI", "DDS"), BYTES
    ),
    **dict.fromkeys(("QOI", "IM", "SPIDER", "MSP", "XBM", "BLP", "DIB"), BYTES),
}
# Place, bytes and order of the length of the samples.
LENGTHS: dict[str, tuple[bytes, int, str]] = {
    "WAV": (b"data", 4, "<I"), "WAVEX": (b"data", 4, "<I"), "AIFF": (b"SSND", 4, ">I"), "SVX": (b"BODY", 4, ">I"),
    "CAF": (b"data", 4, ">Q"), "W64": (b"data", 16, "<Q"), "RF64": (b"ds64", 16, "<Q"), "AU": (b".snd", 8, ">I"),
    "AVR": (b"2BIT", 26, ">I"), "WVE": (b"ALaw", 18, ">I"), "MPC2K": (b"\1\4", 30, "<I"), "HTK": (b"", 0, ">I"),
    "FLAC": (b"fLaC", 22, ">I"), "MP3": (b"Xing", 8, ">I"),
}  # fmt: skip


def encode_audio(kind: str, subtype: str) -> bytes:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 6000).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, format=kind, subtype=subtype)
    return file.getvalue()


def encode_image(kind: str, options: dict) -> bytes:
    """Blocks of color with a little noise, in the first mode that the format has."""
    generator = np.random.default_rng(0)
    blocks = np.kron(generator.integers(0, 248, (8, 8, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
    image = Image.fromarray(blocks + generator.integers(0, 8, blocks.shape, dtype=np.uint8))
    for mode in ("RGB", "P", "1", "F"):
        file = io.BytesIO()
        try:
            image.convert(mode).save(file, kind, **options)
        except (OSError, ValueError):
            continue
        return file.getvalue()
    raise AssertionError(kind)


def changed_lengths(kind: str, data: bytes) -> Iterator[bytes]:
    """Yield the file with other lengths of its samples, in its header alone."""
    name, offset, order = LENGTHS[kind]
    place = data.index(name.replace(b"Xing", b"Info" if b"Info" in data else b"Xing")) + offset
    size = struct.calcsize(order)
    (length,) = struct.unpack(order, data[place : place + size])
    for other in (length // 2, length - 2, length - 1, length + 1, length + 2, length * 2):
        yield data[:place] + struct.pack(order, other) + data[place + size :]


def mutants(kind: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    generator = np.random.default_rng(len(data))
    for part in range(1, CUTS):
        yield "cut", data[: len(data) * part // CUTS]
    for missing in (1, 2, 3):
        yield "cut", data[:-missing]
    for number in range(FLIPS):
        place = int(generator.integers(0, len(data) if number % 2 else min(len(data), 100)))
        yield "flip", data[:place] + bytes([data[place] ^ 1 << int(generator.integers(0, 8))]) + data[place + 1 :]
    for _ in range(ZEROS):
        place = int(generator.integers(0, len(data) - ZERO_BYTES))
        yield "zero", data[:place] + bytes(ZERO_BYTES) + data[place + ZERO_BYTES :]
    yield "joined", data + data
    yield "cut", data + data[: len(data) // 2]
    if kind in LENGTHS:
        yield from (("length", mutant) for mutant in changed_lengths(kind, data))


def audio_content(data: bytes) -> tuple[bytes, int]:
    samples, rate = decode_audio(data)
    return samples.tobytes(), rate


def image_content(data: bytes) -> tuple[bytes, tuple[int, int]]:
    image = load_image(data)
    return image.tobytes(), image.size


def try_all(kind: str, data: bytes, content: Callable[[bytes], tuple]) -> tuple[Counter, list[str]]:
    """Return the numbers of mutants that are whole, refused and other content, and what the format could tell."""
    whole = content(data)
    twice = (whole[0] * 2, whole[1])
    counts, unnoticed = Counter(), []
    for number, (damage, mutant) in enumerate(mutants(kind, data)):
        start = time.monotonic()
        try:
            found = content(mutant)
        except ValueError:
            counts["refused"] += 1
        else:
            is_whole = found == (twice if damage == "joined" and content is audio_content else whole)
            is_whole |= content is image_content and found == whole  # of joined images the first one
            counts["whole" if is_whole else "other"] += 1
            if not is_whole and damage not in CANNOT_TELL.get(kind, ()):
                unnoticed.append(f"{kind}: {damage}, mutant {number}, {len(found[0])} of {len(whole[0])} bytes")
        if time.monotonic() - start > SECONDS:
            unnoticed.append(f"{kind}: {damage}, mutant {number} took longer than {SECONDS} s")
    return counts, unnoticed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged tags
def test_no_damaged_file_is_taken_for_what_it_is_not():
    Image.init()
    images = [(kind, options) for kind, options in IMAGES if kind in Image.SAVE]  # AVIF and QOI from Pillow 11.3 on
    files: list[tuple[str, str, bytes, Callable[[bytes], tuple]]] = [
        *[(kind, f"{kind} {subtype}", encode_audio(kind, subtype), audio_content) for kind, subtype in AUDIO],
        *[(kind, f"{kind} {options or ''}", encode_image(kind, options), image_content) for kind, options in images],
    ]
    try:
        import av  # noqa: F401

        files += [(kind.split()[0], kind, encode_av(kind), audio_content) for kind in AV_KINDS]
    except ImportError:
        print("without PyAV: its containers are left out", file=sys.stderr)
    total, unnoticed = Counter(), []
    print(f"\n{'format':34}{'whole':>8}{'refused':>9}{'cannot tell':>13}")
    for kind, name, data, content in files:
        counts, found = try_all(kind, data, content)
        print(f"{name:34}{counts['whole']:8}{counts['refused']:9}{counts['other']:13}")
        total += counts
        unnoticed += found
    print(f"{'all ' + str(total.total()):34}{total['whole']:8}{total['refused']:9}{total['other']:13}")
    assert unnoticed == []
    assert total.total() >= 420


def test_the_guide_names_the_formats_that_cannot_tell():
    guide = (ROOT / "processing" / "README.md").read_text(encoding="utf-8")
    section = guide[guide.index("### Damaged files") :]
    section = section[: section.index("\n## ")]
    assert [kind for kind in CANNOT_TELL if kind not in section] == []
