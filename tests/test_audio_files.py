"""Files of every format come out whole, or as a ValueError: never shorter than they are, in silence."""

import io
import struct
import time

import numpy as np
import pytest
import soundfile

from modeling_mm import audio_files
from modeling_mm.audio import load_audio
from modeling_mm.audio_files import decode_audio, measure_audio
from modeling_mm.audio_streams import read_frame

RATE = 8000
# SD2 keeps its header in another file, RAW has none.
KINDS = [
    (kind, subtype)
    for kind in soundfile.available_formats()
    if kind not in ("SD2", "RAW")
    for subtype in soundfile.available_subtypes(kind)
]
# Nothing in these files states how many samples they have.
WITHOUT_LENGTH = ("IRCAM", "PAF", "PVF", "XI")
COMMON = ["WAV", "AIFF", "AU", "CAF", "W64", "RF64", "FLAC", "OGG", "MP3", "NIST", "SVX"]
APPENDED = {"zeros": bytes(100), "ID3v1": b"TAG" + bytes(125), "line feed": b"\n"}


def noise(samples: int = 2000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def encode(samples: np.ndarray, kind: str, subtype: str | None = None, rate: int = RATE, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype, **options)
    return file.getvalue()


def encode_or_skip(samples: np.ndarray, kind: str, subtype: str) -> bytes:
    try:
        return encode(samples, kind, subtype)
    except soundfile.LibsndfileError:
        pytest.skip("libsndfile reads this format and does not write it")


def put(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    for place, value in changes:
        data = data[:place] + value + data[place + len(value) :]
    return data


def samples_of(data: bytes) -> list[float]:
    return decode_audio(data)[0][:, 0].tolist()


def refuses(data: bytes) -> bool:
    try:
        return len(decode_audio(data)[0]) == 0
    except ValueError:
        return True


# ---- Whole, cut short and joined -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, subtype", KINDS)
def test_a_file_is_whole_or_refused(kind, subtype):
    data = encode_or_skip(noise(), kind, subtype)
    whole = samples_of(data)
    assert len(whole) >= 2000 and measure_audio(data).samples == len(whole)
    ends = [len(data) * part // 12 for part in range(1, 12)] + [len(data) - cut for cut in (1, 2, 3, 5)]
    if kind in WITHOUT_LENGTH:  # but a part of a sample shows
        ends = [] if "16" not in subtype else [len(data) - 2 * cut + 1 for cut in range(1, 10)]
    accepted = [end for end in ends if not refuses(data[:end]) and samples_of(data[:end]) != whole]
    assert accepted == []


@pytest.mark.parametrize("kind, subtype", KINDS)
def test_joined_files_are_both_there_or_refused(kind, subtype):
    data, other = (encode_or_skip(noise(seed=seed), kind, subtype) for seed in (0, 1))
    assert refuses(data + other) or samples_of(data + other) == samples_of(data) + samples_of(other)


@pytest.mark.parametrize("kind", COMMON)
def test_joined_files_of_common_formats_are_read(kind):
    data, other = encode(noise(), kind), encode(noise(seed=1), kind)
    assert samples_of(data + other) == samples_of(data) + samples_of(other)
    assert measure_audio(data + other).samples == 4000


def test_joined_files_of_different_rates_are_refused():
    with pytest.raises(ValueError, match=r"joins recordings of different rates and channels \(\[\(8000, 1\), \(16000"):
        decode_audio(encode(noise(), "FLAC") + encode(noise(), "FLAC", rate=16_000))


@pytest.mark.parametrize(
    "kind", ["WAV", "AIFF", "AU", "CAF", "W64", "RF64", "FLAC", "OGG", "MP3", "NIST", "SVX", "VOC"]
)
def test_what_players_append_changes_nothing(kind):
    data = encode(noise(), kind)
    for appended in APPENDED.values():
        assert samples_of(data + appended) == samples_of(data)
    if kind != "FLAC":  # a FLAC decoder searches its next frame there
        with pytest.raises(ValueError, match=r"the file is damaged|cut short"):
            decode_audio(data + b"something else")


def test_a_length_beyond_the_limit_counts_all_joined_files():
    data = encode(noise(8000), "WAV")
    assert len(decode_audio(data + data, max_seconds=2)[0]) == 16_000
    with pytest.raises(ValueError, match=r"lasts 2 s, more than the limit of 1\.9 s"):
        decode_audio(data + data, max_seconds=1.9)


# ---- Lengths that their writer left open ---------------------------------------------------------------------------

WAV = encode(noise(), "WAV", "PCM_16")


@pytest.mark.parametrize(
    "riff, data",
    [
        (0x7FFFF024, 0x7FFFF000),  # sox
        (0x80000024, 0x80000000),  # arecord
        (0x7FFF0024, 0x7FFF0000),  # GStreamer
        (0xFFFFFFFF, 0xFFFFFFFF),  # ffmpeg
        (0x7FFFFFFF, 0x7FFFFFFF),  # LAME
        (36, 0),  # Python's wave
        (0, 0),
        (4036, 0),
        (4044, 4000),  # counts its own head
        (9, 4000),
    ],
)
def test_a_wav_of_a_pipe_is_read_to_its_end(riff, data):
    file = put(WAV, (4, struct.pack("<I", riff)), (40, struct.pack("<I", data)))
    assert samples_of(file) == samples_of(WAV)
    assert samples_of(file + file) == samples_of(WAV) * 2


def test_chunks_behind_samples_of_open_length_are_no_samples():
    later = b"LIST" + struct.pack("<I", 5) + b"INFO\1\0" + b"cue " + struct.pack("<I", 4) + bytes(4)
    assert samples_of(put(WAV, (40, bytes(4))) + later) == samples_of(WAV)


def test_an_odd_chunk_may_lack_its_padding():
    odd = encode(noise(1999), "WAV", "PCM_U8")
    assert len(odd) == 2044 and samples_of(odd[:-1]) == samples_of(odd)
    assert samples_of(odd[:-1] + b"LIST" + struct.pack("<I", 4) + b"INFO") == samples_of(odd)


def at(kind: str, name: bytes) -> int:
    return encode(noise(), kind, "PCM_16").index(name) + len(name)


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("AIFF", [(4, b"\x7f\0\0\x2e"), (22, b"\x3f\x80\0\0"), (at("AIFF", b"SSND"), b"\x7f\0\0\x08")]),  # sox
        ("AIFF", [(4, bytes(4)), (22, bytes(4)), (at("AIFF", b"SSND"), bytes(4))]),  # ffmpeg
        ("AU", [(8, b"\xff" * 4)]),
        ("AU", [(8, bytes(4))]),
        ("CAF", [(at("CAF", b"data"), b"\xff" * 8)]),
        ("W64", [(16, b"\xff" * 7 + b"\x7f"), (at("W64", b"data") + 12, b"\xff" * 7 + b"\x7f")]),
        ("W64", [(16, bytes(8)), (at("W64", b"data") + 12, bytes(8))]),
        ("RF64", [(20, bytes(24))]),
        ("RF64", [(20, b"\xff" * 24)]),
        ("SVX", [(4, bytes(4)), (at("SVX", b"BODY"), bytes(4))]),
        ("FLAC", [(21, b"\xf0\0\0\0\0")]),
    ],
)
def test_other_formats_of_a_pipe_are_read_to_their_end(kind, changes):
    data = encode(noise(), kind, "PCM_16")
    assert samples_of(put(data, *changes)) == samples_of(data)
    assert measure_audio(put(data, *changes)).samples == 2000
    assert samples_of(put(data, *changes) * 2) == samples_of(data) * 2


@pytest.mark.parametrize(
    "kind, subtype",
    [
        *[(kind, "GSM610") for kind in ("WAV", "W64", "AIFF")],
        *[("AU", subtype) for subtype in ("G721_32", "G723_24", "G723_40")],
        *[("WAV", subtype) for subtype in ("G721_32", "NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32")],
        *[("AIFF", subtype) for subtype in ("DWVW_16", "DWVW_24")],
        *[("XI", subtype) for subtype in ("DPCM_8", "DPCM_16")],
    ],
)
def test_formats_that_cannot_be_sought_in_are_read(kind, subtype):
    tone = (0.3 * np.sin(np.arange(4000) * 2 * np.pi * 440 / RATE)).astype(np.float32)
    loaded = load_audio(encode(tone, kind, subtype), RATE if kind != "XI" else 44_100)
    assert np.sqrt((loaded**2).mean()) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


# ---- Damage ---------------------------------------------------------------------------------------------------------


def test_a_length_that_is_too_small_is_refused():
    for kind, place in (("WAV", 40), ("AIFF", at("AIFF", b"SSND")), ("AU", 8), ("CAF", at("CAF", b"data") + 4)):
        order = "<" if kind == "WAV" else ">"
        with pytest.raises(ValueError, match=r"is damaged: \d+ bytes follow"):
            decode_audio(put(encode(noise(), kind, "PCM_16"), (place, struct.pack(f"{order}I", 2000))))


def test_samples_that_are_no_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="3999 bytes of samples are not a multiple of 2"):
        decode_audio(put(WAV[:-2] + bytes(2), (40, struct.pack("<I", 3999))))
    aiff = encode(noise(), "AIFF", "PCM_16")
    with pytest.raises(ValueError, match="1 bytes follow the end"):
        decode_audio(put(aiff, (at("AIFF", b"SSND"), struct.pack(">I", 4007)), (len(aiff) - 1, b"\1")))


def test_a_damaged_number_of_frames_in_an_mp3_tag_changes_nothing():
    tagged, _ = mp3(16_000)
    place = tagged.index(b"Info" if b"Info" in tagged else b"Xing") + 8
    count = int.from_bytes(tagged[place : place + 4], "big")
    assert samples_of(put(tagged, (place, (count - 5).to_bytes(4, "big")))) == samples_of(tagged)


def test_flac_is_checked_against_its_frames():
    data = encode(noise(), "FLAC", "PCM_16")
    for samples in (1999, 2001):
        with pytest.raises(ValueError, match=rf"header promises {samples} samples and its frames hold 2000"):
            decode_audio(put(data, (22, struct.pack(">I", samples))))
    rate = struct.pack(">H", 9000 >> 4)
    with pytest.raises(ValueError, match="states a rate of 9000 Hz and its frames one of 8000"):
        decode_audio(put(data, (18, rate), (20, bytes([9000 % 16 << 4 | data[20] & 0x0F]))))
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode_audio(put(data, (len(data) // 2, bytes([data[len(data) // 2] ^ 1]))))


@pytest.mark.parametrize("rate", [8000, 12_345, 44_100, 65_535, 655_350])
def test_the_length_of_flac_is_known_without_its_header(rate):
    for samples in (1, 4096, 10_000):
        data = encode(noise(samples), "FLAC", "PCM_24", rate)
        open_data = put(data, (21, bytes([data[21] & 0xF0])), (22, bytes(4)))
        assert measure_audio(open_data).samples == samples
        assert samples_of(open_data) == samples_of(data) == samples_of(data + bytes(9))


def pages_of(data: bytes) -> list[bytes]:
    starts = [place for place in range(len(data)) if data.startswith(b"OggS", place)]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_every_page_of_ogg_is_checked(subtype):
    data = encode(noise(40_000), "OGG", subtype)
    pages = pages_of(data)
    assert b"".join(pages) == data and len(pages) > 4
    with pytest.raises(ValueError, match="its last Ogg page is missing"):
        decode_audio(b"".join(pages[:-1]))
    with pytest.raises(ValueError, match=rf"an Ogg page before byte {len(b''.join(pages[:3]))} is missing"):
        decode_audio(b"".join([*pages[:3], *pages[4:]]))
    place = len(data) - 100
    with pytest.raises(ValueError, match=r"the checksum of the Ogg page at byte \d+ is wrong"):
        decode_audio(put(data, (place, bytes([data[place] ^ 4]))))


def test_voc_of_several_blocks_is_refused():
    data = encode(noise(), "VOC", "PCM_U8")
    silence = b"\x03\x03\0\0" + b"\xe8\x03\x83"
    with pytest.raises(
        ValueError, match="holds 2 blocks of samples, of which only one could be read; convert it to WAV"
    ):
        decode_audio(data[:-1] + silence + data[-1:])


# ---- MP3 ------------------------------------------------------------------------------------------------------------


def mp3(rate: int, channels: int = 1, seconds: float = 1.3, mode: str = "CONSTANT") -> tuple[bytes, bytes]:
    """Return a file with the tag that states its length, and without."""
    samples = np.stack([noise(round(rate * seconds))] * channels, axis=1)
    data = encode(samples, "MP3", rate=rate, bitrate_mode=mode)
    return data, data[read_frame(data[:4]).length :]


def frame_starts(data: bytes) -> list[int]:
    starts = [0]
    while starts[-1] < len(data):
        starts.append(starts[-1] + read_frame(data[starts[-1] : starts[-1] + 4]).length)
    return starts


def count_frames(data: bytes) -> int:
    return len(frame_starts(data)) - 1


@pytest.mark.parametrize("rate", [8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_without_a_tag_is_whole(rate, channels):
    tagged, bare = mp3(rate, channels)
    samples, frame = samples_of(bare), read_frame(bare[:4])
    assert len(samples) == count_frames(bare) * frame.samples == measure_audio(bare).samples
    # LAME's delay and the decoder's, which the tag tells to drop.
    assert samples[1105 : 1105 + round(1.3 * rate)] == pytest.approx(
        samples_of(tagged)[: len(samples) - 1105], abs=1e-6
    )
    for cut in (1, 20, frame.length - 1):
        with pytest.raises(ValueError, match="cut short"):
            decode_audio(bare[:-cut])
    assert len(samples_of(bare + bare)) == 2 * len(samples)
    assert samples_of(tagged + tagged) == samples_of(tagged) * 2


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_of_unequal_frames_is_not_cut_at_the_estimate(mode):
    """From a first frame of silence, libsndfile estimates too few samples, or too many, and reads no more."""
    quiet = encode(np.zeros(16_000, np.float32), "MP3", rate=16_000, bitrate_mode="VARIABLE", compression_level=0.9)
    loud = encode(noise(16_000), "MP3", rate=16_000, bitrate_mode=mode, compression_level=0.0)
    quiet, loud = (data[read_frame(data[:4]).length :] for data in (quiet, loud))
    for data in (quiet + loud, loud + quiet):
        assert len(samples_of(data)) == count_frames(data) * 576


ID3 = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)


@pytest.mark.parametrize("before", [bytes(3000), ID3, ID3 + bytes(50), b"ID3\x03" + b"junk" * 20])
def test_mp3_is_found_behind_zeros_and_broken_tags(before):
    for data in mp3(44_100):
        assert samples_of(before + data) == samples_of(data)


def test_tags_between_joined_mp3_files_are_left_out():
    tagged, _ = mp3(16_000)
    assert samples_of(tagged + b"TAG" + bytes(125) + ID3 + tagged) == samples_of(tagged) * 2


def test_missing_mp3_frames_are_noticed():
    tagged, bare = mp3(16_000)
    with pytest.raises(ValueError, match=r"promises \d+ MPEG frames and \d+ are there"):
        decode_audio(tagged[: frame_starts(tagged)[-3]])
    start, end = frame_starts(bare)[3], frame_starts(bare)[5] + 10
    with pytest.raises(ValueError, match=f"there is no MPEG frame at byte {start}"):
        decode_audio(put(bare, (start, bytes(end - start))))
    with pytest.raises(ValueError, match=r"cannot be decoded|damaged"):
        decode_audio(bytes(10) + bare[10:])


def test_too_many_values_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(audio_files, "MAX_DECODED_SAMPLES", 1999)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    for kind in ("WAV", "FLAC", "OGG", "MP3"):
        with pytest.raises(ValueError, match="2000 samples in 1 channels, more than the limit of 1999"):
            decode_audio(encode(noise(), kind))


HEADS = 1 << 20  # bytes of heads without content, through which a parser could walk for long


@pytest.mark.parametrize(
    "data, message",
    [
        (b"RIFF" + bytes(4) + b"WAVE" + (b"JUNK" + bytes(4)) * (HEADS // 8), "more than 4096 chunks"),
        (WAV + (b"LIST" + bytes(4)) * (HEADS // 8), "more than 4096 chunks"),
        (encode(noise(1), "WAV") * 40, "joins more than 32 recordings"),
        (encode(noise(1), "FLAC") * 1001, "joins more than 1000 recordings"),
        (encode(noise(), "VOC")[:26] + b"\x05\0\0\0" * (HEADS // 4), "more than 4096 blocks"),
        (encode(noise(), "FLAC") + b"\xff\xf8" * HEADS, "its last frame cannot be found"),
        (b"ID3\x04\0\0\0\0\0\0" * (HEADS // 10), "cannot be decoded"),
        (b"\0\0\0\x08ftyp" + b"\0\0\0\x08free" * HEADS, "more than 524288 boxes"),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + b"\xff" * 7 + b"\xec\x80" * HEADS, "more than 524288 elements"),
    ],
    ids=["chunks before", "chunks behind", "WAV", "FLAC", "VOC", "FLAC frames", "tags", "MP4", "Matroska"],
)
def test_files_of_nothing_but_heads_are_refused_soon(data, message):
    start = time.monotonic()
    with pytest.raises(ValueError, match=message):
        decode_audio(data)
    assert time.monotonic() - start < 20  # it takes a second or two


BEGINNINGS = [
    *(b"RIFF....WAVE", b"FORM....AIFF", b"caff", b".snd", b"NIST_1A\n", b"2BIT", b"ALawSoundFile**"),
    *(b"fLaC\0\0\0\x22", b"MATLAB 5.0 MAT-file", b"Extended Instrument: ", b"Creative Voice File\x1a"),
    *(b"PVF1\n0 8000 0\n", b"OggS", b"ID3", b"\xf0\x7e\0\1" + bytes(17), b"\1\4" + bytes(38)),
    *(bytes(4) + b"\1\0\0\0" * 2, b"\x1a\x45\xdf\xa3", b"\xff\xfb\x90"),
]


@pytest.mark.parametrize("start", BEGINNINGS)
def test_the_beginning_of_a_header_is_refused(start):
    for tail in (b"", b"\0", b"\xff" * 5, bytes(40), b"\xff" * 400):
        assert refuses(start + tail)
