"""Human voices: who speaks which text, drawn by text, in the band of a telephone."""

import io

import numpy as np
import pytest
import soundfile

from scripts.tasks.voices import clip_path, draw, read_voices, telephone_flac
from scripts.workshop.corpus import UnusableError
from tests.tasks.tiny_voices import TEXTS, sources_of, stamps_of


def test_voices_have_a_language_a_speaker_and_an_english_text(voices, tmp_path):
    found = read_voices(sources_of(voices, tmp_path), ["en", "es", "fr"])
    names = {(voice.source, voice.language, voice.speaker) for voice in found}
    assert names == {
        ("tuxpaint", "es", "Tux Paint Spanish"),
        ("tuxpaint", "fr", "Tux Paint French"),
        ("asterisk", "en", "Asterisk English and Spanish"),
        ("asterisk", "es", "Asterisk English and Spanish"),
        ("asterisk", "fr", "Asterisk French"),
    }
    prompts = {voice.text for voice in found if voice.source == "asterisk"}
    assert prompts == {f"prompt {number}" for number in range(TEXTS)}  # the first transcript counts, no signal does
    captions = {voice.text for voice in found if voice.source == "tuxpaint"}
    assert captions == {"others", *(f"thing {number}" for number in range(TEXTS))}


def test_a_text_is_in_one_split_whoever_says_it(voices, tmp_path):
    found = read_voices(sources_of(voices, tmp_path), ["es", "fr"])
    splits = {text: {voice.split for voice in found if voice.text == text} for text in {each.text for each in found}}
    assert all(len(each) == 1 for each in splits.values())
    assert set().union(*splits.values()) == {"train", "threshold", "test"}


def test_clips_are_drawn_by_voice_without_silent_short_and_long_ones(voices, tmp_path):
    sources = sources_of(voices, tmp_path)
    found = read_voices(sources, ["fr"])
    (split,) = {voice.split for voice in found if voice.text == "others"}
    drawn = draw(found, {split: 1000}, sources)[split]
    assert "others" not in {voice.text for voice in drawn}
    assert len(drawn) == sum(voice.split == split and voice.text != "others" for voice in found)
    few = draw(found, {"train": 2, "test": 1}, sources)
    assert [(voice.key, voice.split) for voice in few["train"]] == [
        *[(("asterisk", "fr"), "train")] * 2,
        *[(("tuxpaint", "fr"), "train")] * 2,
    ]
    assert few == draw(found[::-1], {"train": 2, "test": 1}, sources)
    assert all(clip_path(voice, sources).is_file() for voice in (*few["train"], *few["test"]))


def test_a_voice_without_a_clip_stops_the_draw(voices, tmp_path):
    sources = sources_of(voices, tmp_path)
    found = [voice for voice in read_voices(sources, ["fr"]) if voice.split == "train"]
    with pytest.raises(ValueError, match="asterisk fr has no usable clip for the split test"):
        draw(found, {"train": 1, "test": 1}, sources)


def test_nothing_above_the_band_of_a_telephone_is_left(tmp_path):
    times = np.arange(44_100) / 44_100
    soundfile.write(tmp_path / "a.wav", 0.4 * np.sin(2 * np.pi * 1000 * times), 44_100)
    soundfile.write(tmp_path / "b.wav", 0.4 * np.sin(2 * np.pi * 6000 * times), 44_100)
    samples, rate = soundfile.read(io.BytesIO(telephone_flac(tmp_path / "a.wav")))
    assert rate == 16_000 and len(samples) == 16_000 and np.abs(samples).max() > 0.3
    high, _ = soundfile.read(io.BytesIO(telephone_flac(tmp_path / "b.wav")))
    assert np.abs(high[2000:-2000]).max() < 1e-3  # the ends of a tone have lower parts
    with pytest.raises(UnusableError, match="unreadable"):
        telephone_flac(stamps_of(tmp_path) / "nothing.ogg")
