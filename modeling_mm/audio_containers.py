# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Ends of recordings, as the headers of audio containers state them.

libsndfile reads what is left of a file that was cut short, and stops at the end of the first of several joined files.
`split_containers` refuses the one and finds the others. A length that its writer left open, as into a pipe, is filled
in.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

Patches = Mapping[int, bytes]  # bytes of the header to replace, by their offset


class Ending(NamedTuple):
    """End of a recording, what to change in its header, and the end of what libsndfile has to read."""

    end: int
    patches: Patches = {}
    needed: int | None = None


# Tags that players' libraries append to a file of any format, and padding.
APPENDED = (b"TAG", b"ID3", b"3DI", b"APETAGEX", b"LYRICSBEGIN")
PADDING = b"\0\r\n"
PRINTABLE = re.compile(rb"[ -~]{4}")
# The next of joined files, in samples whose length is open.
JOINED = re.compile(
    rb"(?:RIFF|RIFX|RF64)....WAVE|FORM....(?:AIF[FC]|8SVX|16SV)|caff\0\x01\0\0desc|riff\x2e\x91\xcf\x11", re.DOTALL
)
# Chunks that may follow the samples of a WAV file.
LATER_CHUNKS = re.compile(rb"LIST|id3 |ID3 |bext|iXML|fact|cue |smpl|inst|PEAK|_PMX|JUNK|PAD ")
# Limits on what is walked through in Python: a file of nothing but heads would take minutes.
MOST_CHUNKS, MOST_LATER_CHUNKS, MOST_LATER_BYTES, MOST_JOINED = 4096, 64, 1 << 16, 32
# Codecs of WAV files with blocks of one length, so that the samples are a multiple of it: PCM, float, G.711, GSM.
WHOLE_BLOCKS = [code.to_bytes(2, "little") for code in (0x01, 0x03, 0x06, 0x07, 0x31)]
# Types of blocks in a Creative Voice file: samples, more of them, silence, and samples of the newer kind.
VOC_SAMPLES = (1, 2, 3, 9)
# Beginnings of files that may state no length.
AU_HEAD = re.compile(rb"\.snd\0\0..[\0\xff]{4}|dns\...\0\0[\0\xff]{4}", re.DOTALL)
IRCAM_HEAD = re.compile(rb"\x64\xa3[\x01-\x04]\0.{4}[^\0]\0{3}|\0[\x01-\x04]\xa3\x64.{4}\0{3}[^\0]", re.DOTALL)
PAF_HEAD = re.compile(rb" paf\0{7}[\0\x01]|fap \0{4}[\0\x01]\0{3}")
PVF_HEAD = re.compile(rb"PVF1\n(\d+) \d+ (\d+)\n")
XI_HEAD = re.compile(rb"Extended Instrument: ")
XI_16_BITS = b"\x10"
# Bytes of the head of a sample dump, and of its packets: five before the samples, and a checksum behind them.
SDS_HEAD, SDS_PACKET = 21, 127
# Bytes of a frame of one channel by the type of a PARIS file; 24 bits come in blocks of ten.
PAF_BYTES = {0: 2, 1: 32, 2: 1}
# Bytes of a value by the type of a MATLAB 4 matrix.
MAT4_BYTES = {0: 8, 1: 4, 2: 4, 3: 2, 4: 2, 5: 1}
# The last bytes of all names in a Wave64 file.
W64_NAME = b"\xc0\x4f\x8e\xdb\x8a"
# Lengths that writers into a pipe leave: 0, the greatest number, or 2 GiB and a little less (sox, arecord, GStreamer).
OPEN_LENGTHS = (range(0x7EFF_0000, 0x8000_0100), range(0xFFFF_FF00, 0x1_0000_0000))
OPEN_LONG_LENGTH = 1 << 62


def cut_short(expected: int, found: int) -> ValueError:
    return ValueError(
        f"the file is cut short: its header promises {expected} bytes and {found} are there; save or download it again"
    )


def damaged(reason: str) -> ValueError:
    return ValueError(f"the file is damaged: {reason}; save or download it again")


def is_appended(data: bytes, start: int) -> bool:
    """Return True if what begins at `start` is padding, the tag of a player's library, or nothing."""
    if data.startswith(APPENDED, start):
        return True
    return not data[start : start + 1].strip(PADDING) and not data[start:].strip(PADDING)


# ---- Files of chunks ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChunkLayout:
    """
    Layout of a file of chunks, each a name, a length and that many bytes.

    Args:
        order: order of the bytes of a length.
        first: offset of the first chunk.
        audio: name of the chunk with the samples.
        prefix: bytes before the samples in that chunk.
        name_bytes: bytes of a name, of which four are compared.
        length_bytes: bytes of a length.
        alignment: chunks start at multiples of it.
        counts_head: the length includes name and length.
        total: offset of the length of the whole file, which is filled in if the one of the samples is open.
    """

    order: Literal["little", "big"]
    first: int
    audio: bytes
    prefix: int = 0
    name_bytes: int = 4
    length_bytes: int = 4
    alignment: int = 2
    counts_head: bool = False
    total: int | None = 4

    @property
    def head(self) -> int:
        return self.name_bytes + self.length_bytes

    def length(self, data: bytes, offset: int) -> int:
        return int.from_bytes(data[offset : offset + self.length_bytes], self.order)

    def is_open(self, length: int) -> bool:
        """Return True for the length of samples if its writer could not know it."""
        if self.length_bytes == 8:
            return length <= self.prefix or length >= OPEN_LONG_LENGTH
        return length <= self.prefix or any(length in lengths for lengths in OPEN_LENGTHS)

    def is_name(self, data: bytes, start: int) -> bool:
        """Return True if a chunk may start at `start`."""
        if self.name_bytes > 4:
            return data.startswith(W64_NAME, start + self.name_bytes - len(W64_NAME))
        return PRINTABLE.match(data, start) is not None

    def encode(self, length: int) -> bytes:
        return length.to_bytes(self.length_bytes, self.order)


RIFF = ChunkLayout("little", 12, b"data")
RIFX = ChunkLayout("big", 12, b"data")
AIFF = ChunkLayout("big", 12, b"SSND", prefix=8)
SVX = ChunkLayout("big", 12, b"BODY")
W64 = ChunkLayout("little", 40, b"data", name_bytes=16, length_bytes=8, alignment=8, counts_head=True, total=16)
CAF = ChunkLayout("big", 8, b"data", prefix=4, length_bytes=8, alignment=1, total=None)


def end_of_chunks(layout: ChunkLayout, data: bytes) -> Ending:
    """
    Return the end of a file of chunks.

    The length of the whole is ignored, as it is often wrong; the chunks are what is read.

    Raises:
        ValueError: if the samples end before their length, and for bytes behind them that are no chunks.
    """
    start, samples_end, long_offset, block = layout.first, None, None, 1
    patches: Patches = {}
    for _ in range(MOST_CHUNKS):
        if start + layout.head > len(data):
            break
        if samples_end is not None and (is_appended(data, start) or starts_recording(data, start)):
            break
        if not layout.is_name(data, start) and layout.is_name(data, start - 1):  # an odd chunk without its padding
            start -= 1
        name, body = data[start : start + 4], start + layout.head
        length = layout.length(data, start + layout.name_bytes) - (layout.head if layout.counts_head else 0)
        if name == b"ds64":  # RF64: the lengths that need 64 bits
            long_offset = body + 8
        if name == b"fmt " and data[body : body + 2] in WHOLE_BLOCKS:
            block = int.from_bytes(data[body + 12 : body + 14], layout.order) or 1
        if name == layout.audio and samples_end is None:
            is_long = length == 0xFFFF_FFFF and long_offset is not None
            if is_long:
                assert long_offset is not None
                length = int.from_bytes(data[long_offset : long_offset + 8], "little")
            fits = layout.prefix < length <= len(data) - body
            if not fits and (layout.is_open(length) or (is_long and not 0 < length < OPEN_LONG_LENGTH)):
                length = end_of_open_samples(layout, data, body) - body
                patches = open_length(layout, start, body + length, long_offset if is_long else None)
            elif length % block:
                raise damaged(f"{length} bytes of samples are not a multiple of {block}")
            samples_end = body + length
        elif samples_end is not None and not layout.is_name(data, start):
            break
        if body + length > len(data):
            raise cut_short(body + length, len(data))
        start = body + length
        if not data[start : start + 1].strip(PADDING):
            start += -start % layout.alignment
    else:
        raise damaged(f"it has more than {MOST_CHUNKS} chunks")
    if samples_end is None:
        raise damaged(f"it has no {layout.audio.decode().strip()!r} chunk, which holds the samples")
    # libsndfile takes the padding of an odd chunk for samples; in a WAV file all that it needs comes before them.
    return Ending(
        min(start, len(data)), patches, samples_end if layout.audio == b"data" and layout.alignment == 2 else None
    )


def end_of_open_samples(layout: ChunkLayout, data: bytes, start: int) -> int:
    """Return the end of samples of unknown length: the end of the file, another file, or chunks to the end of it."""
    joined = JOINED.search(data, start)
    end = len(data) if joined is None else joined.start()
    for chunk in LATER_CHUNKS.finditer(data, max(start, end - MOST_LATER_BYTES), end):
        place = chunk.start()
        for _ in range(MOST_LATER_CHUNKS):
            if place + layout.head > end or not layout.is_name(data, place):
                break
            place += layout.head + layout.length(data, place + layout.name_bytes)
            place += place % layout.alignment
        if place in (end, end + 1):
            return chunk.start()
    return end


def open_length(layout: ChunkLayout, start: int, end: int, long_offset: int | None) -> Patches:
    """Return the lengths of a file whose samples reach from the chunk at `start` to `end`."""
    length = end - start - layout.head
    if long_offset is not None:
        return {long_offset: length.to_bytes(8, "little")}
    patches = {start + layout.name_bytes: layout.encode(length + (layout.head if layout.counts_head else 0))}
    if layout.total is not None:
        patches[layout.total] = layout.encode(end if layout.counts_head else end - 8)
    return patches


# ---- Files with one header ------------------------------------------------------------------------------------------


def end_of_au(order: Literal["little", "big"], data: bytes) -> Ending:
    offset, length = (int.from_bytes(data[at : at + 4], order) for at in (4, 8))
    if length in (0, 0xFFFF_FFFF):
        end = whole_frames(data, offset, 1, AU_HEAD)
        return Ending(end, {8: max(end - offset, 0).to_bytes(4, order)})
    return Ending(offset + length)


def end_of_nist(data: bytes) -> Ending:
    fields = dict(re.findall(rb"^(\w+) -(?:i|s\d+) (\d+)$", data[:1024], re.MULTILINE))
    sizes = [int(fields.get(name, 0)) for name in (b"sample_count", b"channel_count", b"sample_n_bytes")]
    header = re.match(rb"NIST_1A\n\s*(\d+)\n", data)
    if header is None or not all(sizes):
        return Ending(len(data))
    return Ending(int(header[1]) + sizes[0] * sizes[1] * sizes[2])


def end_of_avr(data: bytes) -> Ending:
    channels, sample_bytes = 1 + any(data[12:14]), int.from_bytes(data[14:16], "big") // 8
    return Ending(128 + int.from_bytes(data[26:30], "big") * channels * sample_bytes)


def end_of_wve(data: bytes) -> Ending:
    return Ending(32 + int.from_bytes(data[18:22], "big"))


def end_of_mpc(data: bytes) -> Ending:
    return Ending(42 + int.from_bytes(data[30:34], "little") * 2 * (1 + (data[21:22] == b"\1")))


def end_of_xi(data: bytes) -> Ending:
    """Return the end of an instrument; libsndfile leaves the length of its sample open."""
    count = int.from_bytes(data[296:298], "little")
    heads = [298 + 40 * number for number in range(count)]
    lengths = [int.from_bytes(data[head : head + 4], "little") for head in heads]
    start = 298 + 40 * count
    if lengths and all(lengths):
        return Ending(start + sum(lengths))
    return Ending(whole_frames(data, start, 1 + (data[312:313] == XI_16_BITS), XI_HEAD))


def end_of_ircam(data: bytes) -> Ending:
    order: Literal["little", "big"] = "big" if data[0] == 0 or data[0] == 1 else "little"
    channels, encoding = (int.from_bytes(data[at : at + 4], order) for at in (8, 12))
    return Ending(whole_frames(data, 1024, channels * (encoding & 0xFF), IRCAM_HEAD))


def end_of_paf(data: bytes) -> Ending:
    order: Literal["little", "big"] = "big" if data.startswith(b" ") else "little"
    kind, channels = (int.from_bytes(data[at : at + 4], order) for at in (16, 20))
    return Ending(whole_frames(data, 2048, channels * PAF_BYTES.get(kind, 1), PAF_HEAD))


def end_of_pvf(data: bytes) -> Ending:
    header = PVF_HEAD.match(data)
    assert header is not None  # by this pattern the file was recognized
    return Ending(whole_frames(data, header.end(), int(header[1]) * int(header[2]) // 8, PVF_HEAD))


def whole_frames(data: bytes, start: int, frame: int, head: re.Pattern[bytes]) -> int:
    """
    Return the end of a file whose header states no length.

    Args:
        data: the file.
        start: offset of its samples.
        frame: bytes of one of them in all channels; the rest of one shows that the file is cut short.
        head: its beginning, which begins the next one of joined files too.
    """
    joined = head.search(data, start)
    end = len(data) if joined is None else joined.start()
    rest = (end - start) % frame if frame else 0
    return end + (frame - rest if rest else 0)


def end_of_mat4(order: Literal["little", "big"], data: bytes) -> Ending:
    """Return the end of the second matrix; the first one is the rate."""
    end = 0
    for _ in range(2):
        kind, rows, columns, _, name = (int.from_bytes(data[at : at + 4], order) for at in range(end, end + 20, 4))
        end += 20 + name + rows * columns * MAT4_BYTES.get(kind // 10 % 10, 1)
    return Ending(end)


def end_of_mat5(data: bytes) -> Ending:
    """Return the end of the samples, the fourth part of the second matrix, whose length libsndfile writes wrongly."""
    order: Literal["little", "big"] = "little" if data[126:128] == b"IM" else "big"

    def body(start: int) -> tuple[int, int]:
        kind, length = (int.from_bytes(data[at : at + 4], order) for at in (start, start + 4))
        return (start + 4, 4) if kind >> 16 else (start + 8, length)  # short parts lie within their head

    end = sum(body(128))
    end, _ = body(end)
    for _ in range(4):
        end = sum(body(end + -end % 8))
    return Ending(end)


def end_of_voc(data: bytes) -> Ending:
    start, blocks = int.from_bytes(data[20:22], "little"), 0
    for _ in range(MOST_CHUNKS):
        if start >= len(data) or not data[start]:
            break
        blocks += data[start] in VOC_SAMPLES
        start += 4 + int.from_bytes(data[start + 1 : start + 4], "little")
    else:
        raise damaged(f"it has more than {MOST_CHUNKS} blocks")
    if blocks > 1:
        raise ValueError(
            f"the file holds {blocks} blocks of samples, of which only one could be read; convert it to WAV"
        )
    return Ending(start + (start < len(data)))


def end_of_sds(data: bytes) -> Ending:
    bits, length = data[6], sum(data[10 + place] << 7 * place for place in range(3))
    words = 120 // -(-bits // 7) if bits else 0
    if not words:
        raise damaged(f"its samples have {bits} bits")
    end = SDS_HEAD + SDS_PACKET * -(-length // words)
    whole = (min(end, len(data)) - SDS_HEAD) // SDS_PACKET
    packets = np.frombuffer(data, np.uint8, whole * SDS_PACKET, SDS_HEAD).reshape(whole, SDS_PACKET)
    wrong = np.bitwise_xor.reduce(packets[:, 1:125], axis=1) & 0x7F != packets[:, 125]
    if wrong.any():
        raise damaged(f"the checksum of packet {int(wrong.argmax())} is wrong")
    return Ending(end)


# Beginning of a file, and the function that finds its end.
ENDINGS: list[tuple[re.Pattern[bytes], Callable[[bytes], Ending]]] = [
    (re.compile(pattern, re.DOTALL), find)
    for pattern, find in (
        (rb"(?:RIFF|RF64)....WAVE", partial(end_of_chunks, RIFF)),
        (rb"RIFX....WAVE", partial(end_of_chunks, RIFX)),
        (rb"FORM....AIF[FC]", partial(end_of_chunks, AIFF)),
        (rb"FORM....(?:8SVX|16SV)", partial(end_of_chunks, SVX)),
        (rb"riff\x2e\x91\xcf\x11", partial(end_of_chunks, W64)),
        (rb"caff", partial(end_of_chunks, CAF)),
        (rb"\.snd", partial(end_of_au, "big")),
        (rb"dns\.", partial(end_of_au, "little")),
        (rb"NIST_1A\n", end_of_nist),
        (rb"2BIT", end_of_avr),
        (rb"ALawSoundFile\*\*", end_of_wve),
        (rb"\x01\x04.{38}", end_of_mpc),
        (XI_HEAD.pattern, end_of_xi),
        (IRCAM_HEAD.pattern, end_of_ircam),
        (PAF_HEAD.pattern, end_of_paf),
        (PVF_HEAD.pattern, end_of_pvf),
        (rb"\0{4}\x01\0{3}\x01\0{3}", partial(end_of_mat4, "little")),
        (rb"\0\0\x03\xe8(?:\0\0\0\x01){2}", partial(end_of_mat4, "big")),
        (rb"MATLAB 5.0 MAT-file", end_of_mat5),
        (rb"Creative Voice File\x1a", end_of_voc),
        (rb"\xf0\x7e.\x01.{17}", end_of_sds),
    )
]


def starts_recording(data: bytes, start: int = 0) -> bool:
    return any(pattern.match(data, start) for pattern, _ in ENDINGS)


def split_containers(data: bytes) -> list[bytes]:
    """
    Return the recordings of a file of one of the known containers, each whole, with its length filled in.

    Raises:
        ValueError: if a recording is cut short or damaged, or is followed by something else.
    """
    recordings = []
    while (find := next((find for pattern, find in ENDINGS if pattern.match(data)), None)) is not None:
        end, patches, needed = find(data)
        if end > len(data):
            raise cut_short(end, len(data))
        recordings.append(replace(data[:needed], patches) if needed else replace(data[:end], patches))
        if is_appended(data, end):
            return recordings
        data = data[end:]
        if len(recordings) == MOST_JOINED:
            raise ValueError(f"the file joins more than {MOST_JOINED} recordings; separate them")
    raise damaged(f"{len(data)} bytes follow the end that its header states, and are not a recording")


def replace(data: bytes, patches: Patches) -> bytes:
    if not patches:
        return data
    changed = bytearray(data)
    for offset, value in patches.items():
        changed[offset : offset + len(value)] = value
    return bytes(changed)
