"""Audio of m4a, mp4 and webm by PyAV: whole, or refused; without PyAV an error that names the extra."""

import io
import sys

import numpy as np
import pytest

from modeling_mm.audio import load_audio
from modeling_mm.audio_files import decode_audio, measure_audio

RATE = 48_000
KINDS = {
    "m4a": ("ipod", "aac", {}),
    "mp4": ("mp4", "aac", {}),
    "mp4 in fragments": ("mp4", "aac", {"movflags": "frag_keyframe+empty_moov"}),
    "webm": ("webm", "libopus", {}),
    "webm of a recorder": ("webm", "libopus", {"live": "1"}),
    "mkv": ("matroska", "aac", {}),
}
TONE = (0.3 * np.sin(np.arange(RATE) * 2 * np.pi * 440 / RATE)).astype(np.float32)


def encode(kind: str, samples: np.ndarray = TONE) -> bytes:
    av = pytest.importorskip("av")
    container_format, codec, options = KINDS[kind]
    file = io.BytesIO()
    with av.open(file, "w", format=container_format, options=options) as container:
        track = container.add_stream(codec, rate=RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([samples, samples]), format="fltp", layout="stereo")
        frame.sample_rate = RATE
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_audio_of_video_containers_is_read(kind):
    data = encode(kind)
    samples, rate = decode_audio(data)
    size = measure_audio(data)
    assert rate == size.rate == RATE and samples.shape[1] == size.channels == 2 and samples.dtype == np.float32
    assert RATE <= len(samples) < RATE + 4096 and abs(size.samples - len(samples)) < 4096
    loaded = load_audio(data, 16_000)[4000:12_000]
    assert np.argmax(np.abs(np.fft.rfft(loaded * np.hanning(8000)))) == 220  # bins of 2 Hz
    assert np.sqrt((loaded**2).mean()) == pytest.approx(0.3 / np.sqrt(2), rel=0.05)
    with pytest.raises(ValueError, match=r"lasts 1 s, more than the limit of 0\.5 s"):
        decode_audio(data, max_seconds=0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_file_is_refused(kind):
    data, whole = encode(kind), len(decode_audio(encode(kind))[0])
    ends = [len(data) * part // 20 for part in range(1, 20)] + [len(data) - 1, len(data) - 9]
    lengths = {}
    for end in ends:
        try:
            lengths[end] = len(decode_audio(data[:end])[0])
        except ValueError:
            continue

    assert {end: length for end, length in lengths.items() if length != whole} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_joined_files_are_refused(kind):
    with pytest.raises(ValueError, match=r"another file begins at byte \d+, of which nothing would be read"):
        decode_audio(encode(kind) * 2)


def test_damage_and_files_without_audio_are_value_errors():
    av = pytest.importorskip("av")
    data = encode("m4a")
    generator, refused = np.random.default_rng(0), 0
    for _ in range(60):
        place = int(generator.integers(0, len(data)))
        try:
            decode_audio(data[:place] + generator.bytes(8) + data[place + 8 :])
        except ValueError:
            refused += 1
    assert refused > 20
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=5)
        track.width = track.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    with pytest.raises(ValueError, match="the file has no audio track"):
        decode_audio(file.getvalue())


@pytest.mark.parametrize("start", [b"\0\0\0\x1cftypM4A \0\0\2\0", b"\x1a\x45\xdf\xa3\x9fB\x86\x81"])
def test_without_pyav_the_error_names_the_extra(start, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r'not installed; `pip install "modeling_mm\[audio\]"`, or convert'):
        load_audio(start + bytes(100), 16_000)
