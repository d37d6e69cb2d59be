"""Pictures and sounds in one form, and what cannot be used; the plumbing of synthetic speech, with a stand-in."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from scripts.pocket.media_files import (
    MAX_SECONDS,
    MAX_SIDE,
    MIN_SECONDS,
    RATE,
    Synthesizer,
    UnusableError,
    audio_to_flac,
    image_to_png,
    render_svg,
    samples_to_flac,
)
from tests.pocket.tiny_packages import HAS_SVG, write_synthesizers

PACKAGES = Path(__file__).resolve().parents[2] / "outputs/packages"
WHITE, RED = (255, 255, 255), (255, 0, 0)


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.format == "PNG" and image.mode == "RGB"
        return image


# ---- Pictures -------------------------------------------------------------------------------------------------------


def test_pictures_are_square_on_white(tmp_path) -> None:
    image = Image.new("RGBA", (4, 2), (*RED, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(tmp_path / "a.png")
    made = opened(image_to_png(tmp_path / "a.png"))
    assert made.size == (4, 4)
    assert [made.getpixel((0, y)) for y in range(4)] == [WHITE, WHITE, RED, WHITE]  # padding, clear, red, padding
    assert [made.getpixel((1, y)) for y in range(4)] == [WHITE, RED, RED, WHITE]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".gif"])
def test_any_format_is_read(tmp_path, suffix: str) -> None:
    image = Image.new("RGB", (8, 8), RED)
    image.paste(WHITE, (0, 0, 4, 8))
    image.save(tmp_path / f"a{suffix}")
    made = np.asarray(opened(image_to_png(tmp_path / f"a{suffix}")), dtype=int)
    assert np.abs(made[:, :3] - WHITE).max() < 30 and np.abs(made[:, 6:] - RED).max() < 30


def test_large_pictures_are_made_smaller_and_small_ones_left(tmp_path) -> None:
    for size, expected in (((500, 300), MAX_SIDE), ((224, 10), 224), ((9, 20), 20)):
        image = Image.new("RGB", size, RED)
        image.putpixel((0, 0), WHITE)
        image.save(tmp_path / "a.png")
        assert opened(image_to_png(tmp_path / "a.png")).size == (expected, expected)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("RGB", (8, 8), RED), "one color only"),
        (Image.new("RGBA", (8, 8), (*RED, 0)), "one color only"),
        (Image.new("RGBA", (8, 8), (255, 255, 255, 90)), "one color only"),
    ],
)
def test_pictures_of_nothing_cannot_be_used(tmp_path, image: Image.Image, reason: str) -> None:
    image.save(tmp_path / "a.png")
    with pytest.raises(UnusableError, match=reason):
        image_to_png(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif"])
def test_pictures_cut_anywhere_cannot_be_used_or_are_read(tmp_path, suffix: str) -> None:
    """No error of another kind ends a build: a broken file is left out."""
    Image.effect_noise((16, 16), 90).convert("RGB").save(tmp_path / f"whole{suffix}")
    data = (tmp_path / f"whole{suffix}").read_bytes()
    refused = 0
    for size in range(0, len(data), 7):
        (tmp_path / f"cut{suffix}").write_bytes(data[:size])
        try:
            image_to_png(tmp_path / f"cut{suffix}")
        except UnusableError as error:
            refused += 1
            assert "unreadable image" in str(error) or "empty image" in str(error)
    assert refused > 5


def test_a_png_with_broken_pieces_cannot_be_used(tmp_path) -> None:
    """Pillow tells of these by a SyntaxError."""
    Image.effect_noise((16, 16), 90).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    start = data.index(b"IDAT")
    data[start : start + 4] = b"\x01\x02\x03\x04"
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UnusableError, match="unreadable image"):
        image_to_png(tmp_path / "a.png")


@pytest.mark.skipif(not HAS_SVG, reason="needs resvg_py")
def test_drawings_are_drawn_at_full_size(tmp_path) -> None:
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2">'
    (tmp_path / "a.svg").write_text(f'{head}<rect width="1" height="2" fill="#f00"/></svg>')
    made = opened(image_to_png(tmp_path / "a.svg"))
    assert made.size == (MAX_SIDE, MAX_SIDE)
    assert made.getpixel((10, 100)) == RED and made.getpixel((200, 100)) == WHITE
    (tmp_path / "b.svg").write_text("<svg")
    with pytest.raises(UnusableError, match="unreadable drawing"):
        render_svg(tmp_path / "b.svg")


# ---- Sounds ---------------------------------------------------------------------------------------------------------


def tone(seconds: float, rate: int, volume: float = 0.5) -> np.ndarray:
    return volume * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(("suffix", "rate"), [(".wav", 8000), (".ogg", 44_100), (".flac", 16_000)])
@pytest.mark.parametrize("channels", [1, 2])
def test_sounds_are_16_khz_mono(tmp_path, suffix: str, rate: int, channels: int) -> None:
    soundfile.write(tmp_path / f"a{suffix}", np.stack([tone(0.5, rate)] * channels, axis=1), rate)
    data = audio_to_flac(tmp_path / f"a{suffix}")
    info = soundfile.info(io.BytesIO(data))
    assert (info.samplerate, info.channels, info.format, info.subtype) == (RATE, 1, "FLAC", "PCM_16")
    samples, _ = soundfile.read(io.BytesIO(data))
    assert len(samples) == pytest.approx(RATE / 2, abs=2)
    middle = slice(2000, 6000)
    np.testing.assert_allclose(samples[middle], tone(0.5, RATE)[middle], atol=0.02)


def test_channels_are_averaged(tmp_path) -> None:
    left = tone(0.2, RATE)
    soundfile.write(tmp_path / "a.wav", np.stack([left, left * 0.5], axis=1), RATE)
    samples, _ = soundfile.read(io.BytesIO(audio_to_flac(tmp_path / "a.wav")))
    np.testing.assert_allclose(samples, 0.75 * left, atol=1e-3)


@pytest.mark.parametrize(
    ("seconds", "volume", "reason"),
    [
        (MIN_SECONDS - 0.01, 0.5, "0.14 s long; corpora take 0.15 to 18.0 s"),
        (MAX_SECONDS + 0.1, 0.5, "18.10 s long"),
        (1.0, 0.0, "silent audio"),
        (1.0, 9e-4, "silent audio"),
        (0.0, 0.5, "0.00 s long"),
    ],
)
def test_sounds_too_short_too_long_or_silent_cannot_be_used(seconds: float, volume: float, reason: str) -> None:
    with pytest.raises(UnusableError, match=reason):
        samples_to_flac(tone(seconds, RATE, volume), RATE)
    samples_to_flac(tone(MIN_SECONDS, RATE), RATE)


@pytest.mark.parametrize("content", [b"", b"no sound", b"RIFF\0\0\0\0WAVE"])
def test_files_that_are_no_sound_cannot_be_used(tmp_path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UnusableError, match="unreadable audio"):
        audio_to_flac(tmp_path / "a.wav")


def test_what_is_too_loud_is_clipped() -> None:
    samples, _ = soundfile.read(io.BytesIO(samples_to_flac(2 * tone(0.2, RATE, 0.9), RATE)))
    assert samples.max() == pytest.approx(1.0, abs=1e-3) and samples.min() == pytest.approx(-1.0, abs=1e-3)


# ---- Synthetic speech -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> Synthesizer:
    root = tmp_path_factory.mktemp("speech")
    write_synthesizers(root)
    return Synthesizer([root / "debian-flite", root / "debian-espeak-ng"])


@pytest.mark.parametrize("text", ["a cat", "一只猫", 'it\'s; $HOME `ls` "quoted"', "-o evil.wav"])
@pytest.mark.parametrize("voice", ["flite/slt", "espeak-ng/cmn+f2"])
def test_a_stand_in_is_told_the_text_and_the_voice(stand_in, voice: str, text: str) -> None:
    data = stand_in.speak(text, voice)
    samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == RATE and len(samples) == 4000
    assert samples.tobytes().startswith(f"{voice.partition('/')[2]} {text}\n".encode())
    assert stand_in.speak(text, voice) == data
    assert stand_in.speak(f"{text}.", voice) != data


def test_unknown_voices_are_refused(stand_in) -> None:
    with pytest.raises(ValueError, match=r"Unknown voice 'festival/x'; expected flite/NAME or espeak-ng/NAME"):
        stand_in.speak("a cat", "festival/x")


def test_a_missing_synthesizer_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"packages have no usr/bin/flite"):
        Synthesizer([tmp_path]).speak("a cat", "flite/slt")


@pytest.mark.parametrize("script", ["echo no such voice >&2; exit 1", "echo no such voice >&2"])
def test_what_cannot_be_said_tells_what_the_program_said(tmp_path, script: str) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/flite").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "usr/bin/flite").chmod(0o755)
    with pytest.raises(UnusableError, match="flite/x could not say 'a cat': no such voice"):
        Synthesizer([tmp_path]).speak("a cat", "flite/x")


def test_libraries_and_data_are_those_of_the_packages(tmp_path) -> None:
    libraries = tmp_path / "one/usr/lib/x86_64-linux-gnu"
    (libraries / "pulseaudio").mkdir(parents=True)
    (tmp_path / "two/usr/lib/x86_64-linux-gnu/espeak-ng-data").mkdir(parents=True)
    environment = Synthesizer([tmp_path / "one", tmp_path / "two"]).environment
    paths = environment["LD_LIBRARY_PATH"].split(":")
    assert {str(libraries), str(libraries / "pulseaudio")} <= set(paths)
    assert environment["ESPEAK_DATA_PATH"] == str(tmp_path / "two/usr/lib/x86_64-linux-gnu")


@pytest.mark.skipif(not (PACKAGES / "debian-flite").is_dir(), reason="needs the packages of the synthesizers")
@pytest.mark.parametrize("voice", ["flite/slt", "flite/rms", "espeak-ng/en-us", "espeak-ng/cmn+f2"])
def test_the_real_synthesizers_speak(voice: str) -> None:
    synthesizer = Synthesizer(sorted(PACKAGES.glob("debian-*")))
    text, longer = ("猫", "一只猫在大房子里睡觉") if "cmn" in voice else ("cat", "A cat is sleeping in the big house.")
    lengths = [soundfile.info(io.BytesIO(synthesizer.speak(each, voice))).duration for each in (text, longer)]
    assert 0.15 < lengths[0] < 1.5 < lengths[1] < 5
    assert synthesizer.speak(text, voice) == synthesizer.speak(text, voice)
