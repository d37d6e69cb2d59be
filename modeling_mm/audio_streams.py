# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Recordings in files without a header of the whole: MP3, Ogg and FLAC, each a row of frames or pages.

libsndfile estimates the length of an MP3 that does not state it, and reads the first of several joined files.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from .audio_containers import cut_short, damaged, is_appended


@dataclass(frozen=True)
class Recording:
    """One recording as a separate file, and the samples that it must have; None if that file states them."""

    data: bytes
    samples: int | None = None


def check_count(recordings: Sequence[object]) -> None:
    """Raise a `ValueError` for more recordings than joined files may have."""
    if len(recordings) > MOST_RECORDINGS:
        raise ValueError(f"the file joins more than {MOST_RECORDINGS} recordings; separate them")


# ---- MPEG audio -----------------------------------------------------------------------------------------------------

# Kilobits a second by version (1, or 2 and 2.5) and layer; index 0 is a free bit rate, whose frames state no length.
BIT_RATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = (44_100, 48_000, 32_000)
# Frames of one kind in a row by which a stream is recognized, and the most bytes of a broken tag before them.
ENOUGH_FRAMES = 4
MOST_JUNK = 1 << 16
TAGS = (b"Xing", b"Info")
MOST_TAGS = 64
# Most recordings of joined files; each is opened before the first one is decoded.
MOST_RECORDINGS = 1000
OLD_TAG, OLD_TAG_PLACE = b"VBRI", 36


@dataclass(frozen=True)
class Frame:
    """Header of an MPEG frame: its bytes, samples, the place of a tag in it, and what all frames have in common."""

    length: int
    samples: int
    tag: int
    kind: tuple[int, int, int, bool]  # version, layer, rate, is mono


@dataclass
class MpegStream:
    """
    Frames of one recording.

    Args:
        first: the first of them, or the one of the tag.
        promised: number of frames that its tag states; 0 without a tag.
        tag: the frame with the tag.
        pieces: start and end of runs of frames.
        frames: their number.
    """

    first: Frame
    promised: int = 0
    tag: bytes = b""
    pieces: list[tuple[int, int]] = field(default_factory=list)
    frames: int = 0

    def add(self, frame: Frame, start: int) -> None:
        if not self.frames:
            self.first = frame
        self.frames += 1
        end = start + frame.length
        if self.pieces and self.pieces[-1][1] == start:
            start, _ = self.pieces.pop()
        self.pieces.append((start, end))


@lru_cache(4096)
def read_frame(head: bytes) -> Frame | None:
    """Return the frame that four bytes begin, or None if they begin none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version_bits, layer, bits, rate_bits = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version_bits == 1 or layer == 4 or bits in (0, 15) or rate_bits == 3:
        return None
    version, is_mono = 1 if version_bits == 3 else 2, head[3] >> 6 == 3
    rate = RATES[rate_bits] // {3: 1, 2: 2, 0: 4}[version_bits]
    bit_rate, padding = BIT_RATES[version, layer][bits - 1] * 1000, head[2] >> 1 & 1
    samples = 384 if layer == 1 else 576 if layer == 3 and version == 2 else 1152
    length = (12 * bit_rate // rate + padding) * 4 if layer == 1 else samples // 8 * bit_rate // rate + padding
    side = (17 if is_mono else 32) if version == 1 else (9 if is_mono else 17)
    return Frame(length, samples, 4 + side, (version, layer, rate, is_mono))


def find_mpeg(data: bytes) -> int | None:
    """Return the start of MPEG frames, which may be behind tags and zeros; None if there are none."""
    start = end_of_tags(data)
    if read_frame(data[start : start + 4]) is not None:
        return start
    start = len(data) - len(data[start:].lstrip(b"\0"))
    if are_frames(data, start):
        return start
    if not data.startswith(b"ID3"):
        return None
    junk = range(min(MOST_JUNK, len(data)))  # the length of the tag is damaged
    return next((place for place in junk if data[place] == 0xFF and are_frames(data, place)), None)


def are_frames(data: bytes, start: int) -> bool:
    """Return True if a few frames of one kind follow each other from `start` on, or fill the file."""
    kinds: set[tuple[int, int, int, bool]] = set()
    for _ in range(ENOUGH_FRAMES):
        frame = read_frame(data[start : start + 4])
        if frame is None:
            return bool(kinds) and start <= len(data) and is_appended(data, start)
        kinds.add(frame.kind)
        start += frame.length
    return len(kinds) == 1


def end_of_tags(data: bytes) -> int:
    """Return the end of the tags of a player's library at the beginning of a file."""
    start = 0
    for _ in range(MOST_TAGS):
        if not data.startswith(b"ID3", start) or end_of_tag(data, start) > len(data):
            break
        start = end_of_tag(data, start)
    return start


def end_of_tag(data: bytes, start: int) -> int:
    """Return the end of a tag that `is_appended` knows."""
    if data.startswith(b"ID3", start):
        size = 0
        for byte in data[start + 6 : start + 10]:
            size = size << 7 | byte & 0x7F
        return start + 10 + size
    if data.startswith(b"APETAGEX", start):
        return start + 32 + int.from_bytes(data[start + 12 : start + 16], "little")
    if data.startswith(b"TAG", start):
        return start + 128
    return len(data)


def promised_frames(data: bytes, start: int, frame: Frame) -> int | None:
    """Return the number that the tag in a frame states of its frames: 0 if it states none, None without a tag."""
    if frame.kind[1] != 3:
        return None
    place = start + frame.tag
    if data[place : place + 4] in TAGS:
        flags, count = (int.from_bytes(data[at : at + 4], "big") for at in (place + 4, place + 8))
        return count if flags & 1 else 0
    place = start + OLD_TAG_PLACE
    if data[place : place + 4] == OLD_TAG:
        return int.from_bytes(data[place + 14 : place + 18], "big")
    return None


def mpeg_streams(data: bytes, start: int) -> list[MpegStream]:
    """
    Return the recordings in the MPEG frames from `start` on: a tag, or another kind of frames, begins a new one.

    Raises:
        ValueError: if a frame is cut short, frames are missing, or something else lies between them.
    """
    streams: list[MpegStream] = []
    while start < len(data):
        frame = read_frame(data[start : start + 4])
        if frame is None:
            if data[start] == 0xFF and start + 4 > len(data):
                raise cut_short(start + 4, len(data))
            if not is_appended(data, start):
                raise damaged(f"there is no MPEG frame at byte {start}")
            start = end_of_tag(data, start)
            continue
        end = start + frame.length
        if end > len(data):
            raise cut_short(end, len(data))
        promised = promised_frames(data, start, frame)
        if promised is not None:
            streams.append(MpegStream(frame, promised, data[start:end]))
        else:
            if not streams or streams[-1].first.kind != frame.kind:
                streams.append(MpegStream(frame))
            streams[-1].add(frame, start)
        start = end
        check_count(streams)
    for stream in streams:
        if stream.promised > stream.frames + 1:  # some count the frame of the tag
            raise damaged(f"its header promises {stream.promised} MPEG frames and {stream.frames} are there")
    return streams


def split_mpeg(data: bytes, start: int) -> list[Recording]:
    """Return the recordings in MPEG frames, with the samples of those that do not state them. See [`mpeg_streams`]."""
    recordings = []
    for stream in mpeg_streams(data, start):
        frames = b"".join(data[first:last] for first, last in stream.pieces)
        if stream.tag and (stream.promised == stream.frames or states_bytes(stream, len(frames))):
            recordings.append(Recording(with_count(stream) + frames))
        elif stream.frames:
            # libsndfile reads no more than it estimates, from the bytes of the first frame and of the file.
            padded = frames.ljust(stream.frames * stream.first.length, b"\0")
            recordings.append(Recording(padded, stream.frames * stream.first.samples))
    return recordings


def states_bytes(stream: MpegStream, size: int) -> bool:
    """Return True if a tag states the bytes of its recording rightly, so that only its number of frames is wrong."""
    place = stream.first.tag
    flags, promised = (int.from_bytes(stream.tag[at : at + 4], "big") for at in (place + 4, place + 12))
    return flags & 3 == 3 and promised == size + len(stream.tag)


def with_count(stream: MpegStream) -> bytes:
    """Return the frame with the tag, in which the number of frames is right."""
    place = stream.first.tag + 8
    if stream.promised == stream.frames:
        return stream.tag
    return stream.tag[:place] + stream.frames.to_bytes(4, "big") + stream.tag[place + 4 :]


# ---- Ogg ------------------------------------------------------------------------------------------------------------

OGG_HEAD = 27
IS_FIRST, IS_LAST = 2, 4
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg_checksum(page: bytes) -> int:
    """Return the checksum of a page whose own field is zero: the CRC of zlib, with bits in the opposite order."""
    mirrored = zlib.crc32(page.translate(REVERSED_BITS), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def split_ogg(data: bytes) -> list[Recording]:
    """
    Return the recordings of a file of Ogg pages.

    Raises:
        ValueError: if a page is damaged or missing, the last one too.
    """
    recordings, start, first = [], 0, 0
    pages: dict[bytes, int] = {}  # the next page's number of each stream that is not over
    while start < len(data):
        if data[start : start + 4] != b"OggS":
            if not pages and is_appended(data, start):
                break
            raise damaged(f"there is no Ogg page at byte {start}")
        head = data[start : start + OGG_HEAD]
        lengths = data[start + OGG_HEAD : start + OGG_HEAD + head[-1]] if len(head) == OGG_HEAD else b""
        end = start + OGG_HEAD + len(lengths) + sum(lengths)
        if len(head) < OGG_HEAD or len(lengths) < head[-1] or end > len(data):
            raise cut_short(max(end, len(data) + 1), len(data))
        page = head[:22] + bytes(4) + data[start + 26 : end]
        if ogg_checksum(page) != int.from_bytes(head[22:26], "little"):
            raise damaged(f"the checksum of the Ogg page at byte {start} is wrong")
        serial, number = head[14:18], int.from_bytes(head[18:22], "little")
        if head[5] & IS_FIRST:
            pages[serial] = number
        if pages.get(serial) != number:
            raise damaged(f"an Ogg page before byte {start} is missing")
        pages[serial] += 1
        if head[5] & IS_LAST:
            del pages[serial]
        start = end
        if not pages:
            recordings.append(Recording(data[first:end]))
            check_count(recordings)
            first = end
    if pages:
        raise ValueError("the file is cut short: its last Ogg page is missing; save or download it again")
    return recordings


# ---- FLAC -----------------------------------------------------------------------------------------------------------

# The marker, and the head of the block that comes first, which is 34 bytes long.
FLAC_START = re.compile(rb"fLaC[\x00\x80]\0\0\x22")
FLAC_LENGTH = (1 << 36) - 1
# CRC-8 of the head of a frame, by bytes.
FLAC_CHECKSUMS = list(range(256))
for _ in range(8):
    FLAC_CHECKSUMS = [(value << 1 ^ (0x07 if value & 0x80 else 0)) & 0xFF for value in FLAC_CHECKSUMS]
# Places that are tried as the last frame.
MOST_TRIES = 1 << 16
# Rates by their code in the head of a frame; others are written out, or are those of the first block.
FLAC_RATES = dict(
    enumerate((88_200, 176_400, 192_000, 8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000), start=1)
)


@dataclass(frozen=True)
class FlacFrame:
    """Head of a FLAC frame: its rate, or 0; its first sample and their number; what all frames have in common."""

    rate: int
    start: int
    samples: int
    kind: tuple[int, int, int]


def read_flac_frame(data: bytes, start: int, block: int) -> FlacFrame | None:
    """Return the head of the frame at `start` of a file with blocks of `block` samples, or None if there is none."""
    head = data[start : start + 16]
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8 or head[2] < 0x10:
        return None
    more = max(0, f"{head[4]:08b}".index("0") - 1) if head[4] != 0xFF else 0  # as UTF-8 counts the bytes of a number
    number = head[4] & (0x7F >> (more + 1 if more else 0))
    for byte in head[5 : 5 + more]:
        number = number << 6 | byte & 0x3F
    size_code, rate_code, place = head[2] >> 4, head[2] & 0x0F, 5 + more
    size_bytes, rate_bytes = {6: 1, 7: 2}.get(size_code, 0), {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    end = place + size_bytes + rate_bytes
    checksum = 0
    for byte in head[:end]:
        checksum = FLAC_CHECKSUMS[checksum ^ byte]
    if end >= len(head) or checksum != head[end]:
        return None
    if size_bytes:
        samples = int.from_bytes(head[place : place + size_bytes], "big") + 1
    else:
        samples = 192 if size_code == 1 else 576 << size_code - 2 if size_code < 6 else 256 << size_code - 8
    unit = {12: 1000, 13: 1, 14: 10}.get(rate_code, 0)
    rate = FLAC_RATES.get(rate_code, unit * int.from_bytes(head[end - rate_bytes : end], "big"))
    kind = head[1], rate_code, head[3] & 0x0F  # blocks of one length or not, rate, bits
    return FlacFrame(rate, number if head[1] & 1 else number * block, samples, kind)


def last_flac_frame(data: bytes, start: int, block: int) -> FlacFrame | None:
    """Return the head of the last of the frames that begin at `start`."""
    first = read_flac_frame(data, start, block)
    if first is None:
        return None
    sync, place = data[start : start + 2], len(data)
    for _ in range(MOST_TRIES):
        place = data.rfind(sync, start, place)
        frame = read_flac_frame(data, place, block)
        if frame is not None and frame.kind == first.kind:  # at the latest the first one
            return frame
    raise damaged("its last frame cannot be found")


def split_flac(data: bytes) -> list[Recording]:
    """Return the recordings of one FLAC file, or of several joined ones."""
    starts = [match.start() for match in FLAC_START.finditer(data)]
    check_count(starts)
    return [flac_recording(data[start:end]) for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def flac_recording(data: bytes) -> Recording:
    """
    Return a FLAC file with an open length, so that it is read to its end, and its length as its last frame states it.

    Raises:
        ValueError: if the length or the rate of its header is another than the one of its frames.
    """
    start, is_last = 4, False
    while not is_last and start + 4 <= len(data):
        is_last = bool(data[start] & 0x80)
        start += 4 + int.from_bytes(data[start + 1 : start + 4], "big")
    block = int.from_bytes(data[10:12], "big")
    fields = int.from_bytes(data[18:26], "big")  # rate (20 bits), channels (3), bits (5), samples (36)
    rate, promised = fields >> 44, fields & FLAC_LENGTH
    last = last_flac_frame(data, start, block)
    samples = 0 if last is None else last.start + last.samples
    if promised and samples != promised:
        raise ValueError(
            f"the file is cut short or damaged: its header promises {promised} samples and its frames hold {samples}; "
            "save or download it again"
        )
    if last is not None and last.rate not in (0, rate):
        raise damaged(f"its header states a rate of {rate} Hz and its frames one of {last.rate}")
    return Recording(data[:18] + (fields & ~FLAC_LENGTH).to_bytes(8, "big") + data[26:], samples)
