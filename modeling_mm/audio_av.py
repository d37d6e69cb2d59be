# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Audio of MP4 (m4a, mp4, mov) and Matroska (webm, mkv) files, decoded by PyAV, which brings FFmpeg with it.

FFmpeg reads what is left of a file that was cut short, so the lengths in it are checked first. Only these two of its
readers are ever used: others open the files and addresses that a playlist names.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np

from .audio_containers import cut_short, damaged

# Beginning of a file, and FFmpeg's reader for it.
READERS = (
    (re.compile(rb"....(?:ftyp|moov|mdat|wide|free|skip)", re.DOTALL), "mov"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "matroska"),
)
# Elements of Matroska: the head of a file; the segment, and in it the cluster, which hold others.
EBML, SEGMENT, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
# Boxes or elements that are walked through; hours of audio have fewer.
MOST_PIECES = 1 << 19
EXTRA = '`pip install "modeling_mm[audio]"`'


def reader_of(data: bytes) -> str | None:
    """Return FFmpeg's reader for a file of one of the two containers, or None for other files."""
    return next((name for pattern, name in READERS if pattern.match(data)), None)


def joined(start: int) -> ValueError:
    return ValueError(f"another file begins at byte {start}, of which nothing would be read; separate the two")


def check_boxes(data: bytes) -> None:
    """Raise a `ValueError` for an MP4 file whose boxes reach beyond its end."""
    start, found = 0, False
    for _ in range(MOST_PIECES):
        if start + 8 > len(data) or not data[start : start + 8].strip(b"\0"):
            break
        name = data[start + 4 : start + 8]
        if name == b"ftyp" and found:
            raise joined(start)
        found = True
        length, head = int.from_bytes(data[start : start + 4], "big"), 8
        if length == 1:
            length, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        if length == 0:  # to the end of the file
            return
        if length < head:
            raise damaged(f"the MP4 box at byte {start} has a length of {length}")
        start += length
    else:
        raise damaged(f"it has more than {MOST_PIECES} boxes")
    if start > len(data) or data[start:].strip(b"\0"):
        raise cut_short(max(start, len(data) + 1), len(data))


def read_element(data: bytes, start: int) -> tuple[int, int | None, int]:
    """Return the id of a Matroska element, its length, None if it is unknown, and where its content starts."""
    id_bytes = 9 - data[start].bit_length()
    place = start + id_bytes
    if place >= len(data) or id_bytes > 4:
        raise damaged(f"there is no Matroska element at byte {start}") if id_bytes > 4 else cut_short(place, len(data))
    length_bytes = 9 - data[place].bit_length()
    end = place + length_bytes
    bits = (1 << 7 * length_bytes) - 1
    length = int.from_bytes(data[place:end], "big") & bits
    return int.from_bytes(data[start:place], "big"), None if length == bits else length, end


def check_elements(data: bytes) -> None:
    """Raise a `ValueError` for a Matroska file with an element that reaches beyond its end."""
    start = 0
    for _ in range(MOST_PIECES):
        if start >= len(data) or not data[start]:
            break
        kind, length, content = read_element(data, start)
        if kind == EBML and start:
            raise joined(start)
        is_parent = kind == SEGMENT or (kind == CLUSTER and length is None)
        if content + (length or 0) > len(data):
            raise cut_short(content + (length or 0), len(data))
        if length is None and not is_parent:
            raise damaged(f"the Matroska element at byte {start} states no length")
        start = content if is_parent else content + (length or 0)
    else:
        raise damaged(f"it has more than {MOST_PIECES} elements")
    if data[start:].strip(b"\0"):
        raise damaged(f"there is no Matroska element at byte {start}")


def import_av() -> Any:
    """Return PyAV, or raise a `ValueError` that names the extra."""
    try:  # the Hub's loader takes imports elsewhere for requirements
        import av
    except ImportError as error:
        raise ValueError(
            f"the file is MP4 or Matroska, whose audio PyAV decodes, which is not installed; {EXTRA}, or convert the "
            "file to WAV, FLAC, Ogg or MP3"
        ) from error
    return av


@contextmanager
def open_track(data: bytes) -> Iterator[tuple[Any, Any]]:
    """Open the file and its first audio track; errors of FFmpeg become a `ValueError`."""
    reader = reader_of(data)
    (check_boxes if reader == "mov" else check_elements)(data)
    av = import_av()
    try:
        with av.open(io.BytesIO(data), format=reader) as container:
            if not container.streams.audio:
                raise ValueError("the file has no audio track")
            track = container.streams.audio[0]
            track.codec_context.options = {"err_detect": "explode"}
            yield container, track
    except av.error.FFmpegError as error:
        raise ValueError(
            f"the audio of the file cannot be decoded ({error.strerror}); save or download it again"
        ) from error


def measure_track(data: bytes) -> tuple[int, int, int]:
    """Return samples, channels and rate of a file's audio, from its packets, which are not decoded."""
    with open_track(data) as (container, track):
        ends = [
            (packet.pts + (packet.duration or 0)) * packet.time_base
            for packet in container.demux(track)
            if packet.pts is not None
        ]
        return int(max(ends, default=Fraction(0)) * track.rate), track.channels, track.rate


def decode_track(data: bytes) -> np.ndarray:
    """Return the samples of a file's audio, (length, channels), float32."""
    with open_track(data) as (container, track):
        convert = import_av().AudioResampler("fltp", track.layout, track.rate)
        decoded = [part for frame in container.decode(track) for part in convert.resample(frame)]
        pieces = [part.to_ndarray() for part in [*decoded, *convert.resample(None)]]  # (channels, length) each
    if not pieces:
        raise ValueError("the audio track of the file holds no samples")
    return np.concatenate(pieces, axis=1).T
