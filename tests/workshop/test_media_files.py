"""Images and audio in one form, unusable files, and synthetic speech by a stand-in for the programs."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from scripts.workshop.media_files import (
    MAX_SECONDS,
    MAX_SIDE,
    MAX_SIDE_OF_PHOTOGRAPHS,
    MIN_SECONDS,
    RATE,
    Synthesizer,
    UnusableError,
    audio_to_flac,
    image_to_png,
    photograph_to_png,
    samples_to_flac,
)
from tests.workshop.tiny_packages import HAS_SVG, write_synthesizers

PACKAGES = Path(__file__).resolve().parents[2] / "outputs/packages"
WHITE, RED = (255, 255, 255), (255, 0, 0)


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.format == "PNG" and image.mode == "RGB"
        return image


# ---- Images ---------------------------------------------------------------------------------------------------------


def test_images_are_square_on_white(tmp_path) -> None:
    image = Image.new("RGBA", (4, 2), (*RED, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(tmp_path / "a.png")
    made = opened(image_to_png(tmp_path / "a.png"))
    assert made.size == (4, 4)
    assert [made.getpixel((0, y)) for y in range(4)] == [WHITE, WHITE, RED, WHITE]  # padding, clear, red, padding
    assert [made.getpixel((1, y)) for y in range(4)] == [WHITE, RED, RED, WHITE]


def file_of(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "expected"), [((640, 480), (320, 240)), ((200, 1000), (64, 320)), ((9, 20), (9, 20)), ((320, 320),) * 2]
)
def test_photographs_keep_their_proportions(size, expected) -> None:
    assert MAX_SIDE_OF_PHOTOGRAPHS == 320
    image = Image.new("RGB", size, RED)
    image.paste(WHITE, (0, 0, size[0] // 2, size[1]))
    made = opened(photograph_to_png(file_of(image)))
    assert made.size == expected
    assert made.getpixel((0, 0)) == WHITE and made.getpixel((expected[0] - 1, expected[1] - 1)) == RED


def test_transparency_of_a_photograph_becomes_white_in_place() -> None:
    image = Image.new("RGBA", (4, 2), (*RED, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    made = opened(photograph_to_png(file_of(image)))
    assert [made.getpixel((x, y)) for y in range(2) for x in range(4)] == [WHITE, *[RED] * 7]


@pytest.mark.parametrize(
    ("data", "reason"), [(b"not an image", "unreadable"), (file_of(Image.new("RGB", (8, 8), RED)), "one color only")]
)
def test_photographs_without_content_are_unusable(data: bytes, reason: str) -> None:
    with pytest.raises(UnusableError, match=reason):
        photograph_to_png(data)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg", ".gif"])
def test_any_format_is_read(tmp_path, suffix: str) -> None:
    image = Image.new("RGB", (8, 8), RED)
    image.paste(WHITE, (0, 0, 4, 8))
    image.save(tmp_path / f"a{suffix}")
    made = np.asarray(opened(image_to_png(tmp_path / f"a{suffix}")), dtype=int)
    assert np.abs(made[:, :3] - WHITE).max() < 30 and np.abs(made[:, 6:] - RED).max() < 30


@pytest.mark.parametrize(("size", "expected"), [((500, 300), MAX_SIDE), ((224, 10), 224), ((9, 20), 20)])
def test_only_large_images_are_resized(tmp_path, size, expected: int) -> None:
    image = Image.new("RGB", size, RED)
    image.putpixel((0, 0), WHITE)
    image.save(tmp_path / "a.png")
    assert opened(image_to_png(tmp_path / "a.png")).size == (expected, expected)


@pytest.mark.parametrize("color", [RED, (*RED, 0), (255, 255, 255, 90)], ids=["red", "clear", "white"])
def test_images_of_one_color_are_unusable(tmp_path, color) -> None:
    Image.new("RGB" if len(color) == 3 else "RGBA", (8, 8), color).save(tmp_path / "a.png")
    with pytest.raises(UnusableError, match="one color only"):
        image_to_png(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif"])
def test_truncated_images_are_unusable_or_read(tmp_path, suffix: str) -> None:
    """Another error would end the build of a corpus."""
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


def test_a_png_with_broken_chunks_is_unusable(tmp_path) -> None:
    """Pillow raises a SyntaxError for it."""
    Image.effect_noise((16, 16), 90).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes().replace(b"IDAT", b"\x01\x02\x03\x04", 1))
    with pytest.raises(UnusableError, match="unreadable image"):
        image_to_png(tmp_path / "a.png")


@pytest.mark.skipif(not HAS_SVG, reason="needs resvg_py")
def test_drawings_are_rendered_at_full_size(tmp_path) -> None:
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2">'
    (tmp_path / "a.svg").write_text(f'{head}<rect width="1" height="2" fill="#f00"/></svg>')
    made = opened(image_to_png(tmp_path / "a.svg"))
    assert made.size == (MAX_SIDE, MAX_SIDE)
    assert made.getpixel((10, 100)) == RED and made.getpixel((200, 100)) == WHITE
    (tmp_path / "b.svg").write_text("<svg")
    with pytest.raises(UnusableError, match="unreadable drawing"):
        image_to_png(tmp_path / "b.svg")


# ---- Audio ----------------------------------------------------------------------------------------------------------


def tone(seconds: float, rate: int = RATE, volume: float = 0.5) -> np.ndarray:
    return volume * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


def decoded(data: bytes) -> np.ndarray:
    info = soundfile.info(io.BytesIO(data))
    assert (info.samplerate, info.channels, info.format, info.subtype) == (RATE, 1, "FLAC", "PCM_16")
    return soundfile.read(io.BytesIO(data))[0]


@pytest.mark.parametrize(("suffix", "rate"), [(".wav", 8000), (".ogg", 44_100), (".flac", 16_000)])
@pytest.mark.parametrize("volumes", [(1.0,), (1.0, 0.5)], ids=["mono", "stereo"])
def test_audio_is_resampled_and_averaged_over_channels(tmp_path, suffix: str, rate: int, volumes) -> None:
    channels = [volume * tone(0.5, rate) for volume in volumes]
    soundfile.write(tmp_path / f"a{suffix}", np.stack(channels, axis=1), rate)
    samples = decoded(audio_to_flac(tmp_path / f"a{suffix}"))
    assert len(samples) == pytest.approx(RATE / 2, abs=2)
    middle = slice(2000, 6000)
    np.testing.assert_allclose(samples[middle], np.mean(volumes) * tone(0.5)[middle], atol=0.02)


@pytest.mark.parametrize(
    ("seconds", "volume", "reason"),
    [
        (MIN_SECONDS - 0.01, 0.5, "0.14 s long; corpora take 0.15 to 18.0 s"),
        (MAX_SECONDS + 0.1, 0.5, "18.10 s long"),
        (0.0, 0.5, "0.00 s long"),
        (1.0, 0.0, "silent audio"),
        (1.0, 9e-4, "silent audio"),
    ],
)
def test_audio_too_short_too_long_or_silent_is_unusable(seconds: float, volume: float, reason: str) -> None:
    with pytest.raises(UnusableError, match=reason):
        samples_to_flac(tone(seconds, volume=volume), RATE)
    samples_to_flac(tone(MIN_SECONDS), RATE)


@pytest.mark.parametrize("content", [b"", b"no audio", b"RIFF\0\0\0\0WAVE"])
def test_other_files_are_unusable_as_audio(tmp_path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(UnusableError, match="unreadable audio"):
        audio_to_flac(tmp_path / "a.wav")


def test_loud_samples_are_clipped() -> None:
    samples = decoded(samples_to_flac(2 * tone(0.2, volume=0.9), RATE))
    assert samples.max() == pytest.approx(1.0, abs=1e-3) and samples.min() == pytest.approx(-1.0, abs=1e-3)


# ---- Synthetic speech -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> Synthesizer:
    root = tmp_path_factory.mktemp("speech")
    write_synthesizers(root)
    return Synthesizer([root / "debian-flite", root / "debian-espeak-ng"])


@pytest.mark.parametrize("text", ["a cat", "一只猫", 'it\'s; $HOME `ls` "quoted"', "-o evil.wav"])
@pytest.mark.parametrize("voice", ["flite/slt", "espeak-ng/cmn+f2"])
def test_the_program_gets_text_and_voice_unchanged(stand_in, voice: str, text: str) -> None:
    data = stand_in.speak(text, voice)
    samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == RATE and len(samples) == 4000
    assert samples.tobytes().startswith(f"{voice.partition('/')[2]} {text}\n".encode())
    assert stand_in.speak(text, voice) == data != stand_in.speak(f"{text}.", voice)


def test_unknown_voices_and_missing_programs_are_refused(stand_in, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"Unknown voice 'festival/x'; expected flite/NAME or espeak-ng/NAME"):
        stand_in.speak("a cat", "festival/x")
    with pytest.raises(FileNotFoundError, match=r"packages have no usr/bin/flite"):
        Synthesizer([tmp_path]).speak("a cat", "flite/slt")


@pytest.mark.parametrize("script", ["echo no such voice >&2; exit 1", "echo no such voice >&2"])
def test_a_failure_repeats_the_message_of_the_program(tmp_path, script: str) -> None:
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
