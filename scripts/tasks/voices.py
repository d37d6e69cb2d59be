# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Human voices with their language: captions of Tux Paint's stamps and prompts of Asterisk.

Each source has about one speaker a language. All clips are brought to the band of a telephone, which Asterisk's have,
so that no recording is known by its bandwidth.
"""

import gzip
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import soundfile
import soxr

from modeling_mm.utils import write_bytes

from ..workshop.concepts import normalize_name, split_of
from ..workshop.corpus import UnusableError, read_description, safe_name
from ..workshop.media_files import samples_to_flac
from .examples import Sources

ASTERISK = {"en": "en", "es": "es", "fr": "fr", "it": "it", "ru": "ru"}
TELEPHONE_RATE = 8_000
MIN_SECONDS, MAX_SECONDS = 0.8, 4.9  # one window of `short_window`, and more than a syllable
LANGUAGES = {
    "be": "Belarusian",
    "bg": "Bulgarian",
    "ca": "Catalan",
    "da": "Danish",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ro": "Romanian",
    "ru": "Russian",
}
# Asterisk's English and Spanish prompts are by one person.
SPEAKERS = dict.fromkeys((("asterisk", "en"), ("asterisk", "es")), "Asterisk English and Spanish")
SPLITS = {"test": 0.25, "threshold": 0.12}  # shares of the texts; the rest is for training


@dataclass(frozen=True)
class Voice:
    """
    Clip of a voice.

    Args:
        path: the recording.
        name: its path within the package, without suffix.
        source: `tuxpaint` or `asterisk`.
        language: its code.
        text: what is said, in English where it is known: texts that are alike in it are in one split.
    """

    path: Path
    name: str
    source: str
    language: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        return self.source, self.language

    @property
    def speaker(self) -> str:
        """The name of the speaker."""
        names = {"tuxpaint": "Tux Paint", "asterisk": "Asterisk"}
        return SPEAKERS.get(self.key, f"{names[self.source]} {LANGUAGES[self.language]}")

    @property
    def split(self) -> str:
        """The split of its text: `train`, `threshold` or `test`, whoever says it in whichever language."""
        return split_of(self.text, SPLITS, "voices")


def read_voices(sources: Sources, languages: Iterable[str]) -> list[Voice]:
    """Return all clips of some languages, from both sources."""
    languages = list(languages)
    stamps = sources.fetch(read_description("images").packages["stamps"])
    return [*spoken_captions(stamps, languages), *prompts(sources, [each for each in languages if each in ASTERISK])]


def spoken_captions(stamps: Path, languages: Sequence[str]) -> Iterator[Voice]:
    """Yield the captions that volunteers of Tux Paint speak in some languages."""
    root = stamps / "usr/share/tuxpaint/stamps"
    for path in sorted(root.rglob("*_desc_*.ogg")):
        name, _, language = path.stem.rpartition("_desc_")
        text = path.with_name(f"{name}.txt")
        if language in languages and text.is_file():
            first = text.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
            place = path.relative_to(root).with_suffix("").as_posix()
            yield Voice(path, place, "tuxpaint", language, normalize_name(first))


def prompts(sources: Sources, languages: Sequence[str]) -> Iterator[Voice]:
    """Yield the prompts of Asterisk in some languages, by the English text of their key."""
    english = read_transcripts(sources.fetch("debian:asterisk-core-sounds-en")) if languages else {}
    for language in languages:
        root = sources.fetch(f"debian:asterisk-core-sounds-{language}-wav") / "usr/share/asterisk/sounds"
        (voice,) = sorted(root.iterdir())[:1]
        for path in sorted(voice.rglob("*.wav")):
            key = path.relative_to(voice).with_suffix("").as_posix()
            text = english.get(key, key)
            if re.search(r"\w", re.sub(r"\[.*?\]", "", text)):  # signals are described in brackets
                yield Voice(path, key, "asterisk", language, normalize_name(text))


def read_transcripts(package: Path) -> dict[str, str]:
    """Return the transcript of each key, from the unpacked `asterisk-core-sounds-XX`."""
    (path,) = sorted((package / "usr/share/doc").glob("*/core-sounds-*.txt.gz"))[:1]
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as lines:
        pairs = [line.strip().partition(": ") for line in lines if not line.startswith(";")]
    return {key: text for key, mark, text in reversed(pairs) if mark}


def draw(voices: Iterable[Voice], counts: Mapping[str, int], sources: Sources) -> dict[str, list[Voice]]:
    """
    Return so many clips of each voice (source and language) in each split, a fixed draw, and write their files.

    Raises:
        ValueError: if a voice has no usable clip in a split.
    """
    by_voice: dict[tuple[str, str, str], list[Voice]] = defaultdict(list)
    found = sorted(voices, key=lambda voice: hashlib.sha256(voice.name.encode()).digest())
    for voice in found:
        by_voice[(voice.split, *voice.key)].append(voice)
    drawn: dict[str, list[Voice]] = {split: [] for split in counts}
    for key in sorted({voice.key for voice in found}):
        for split, count in counts.items():
            usable = (voice for voice in by_voice[(split, *key)] if is_usable(voice, sources))
            chosen = list(islice(usable, count))
            if not chosen:
                raise ValueError(f"{' '.join(key)} has no usable clip for the split {split}.")
            drawn[split] += chosen
    return drawn


def is_usable(voice: Voice, sources: Sources) -> bool:
    """Write the file of a clip unless it is silent, unreadable, too short or too long for one window."""
    try:
        if not MIN_SECONDS <= soundfile.info(voice.path).duration <= MAX_SECONDS:
            return False
        path = clip_path(voice, sources)
        if not path.is_file():
            write_bytes(path, telephone_flac(voice.path))
    except (soundfile.LibsndfileError, OSError, UnusableError):
        return False
    return True


def clip_path(voice: Voice, sources: Sources) -> Path:
    name = safe_name("-".join([*voice.key, voice.name]))
    return sources.folder / "audio" / f"{name}.flac"


def telephone_flac(path: Path) -> bytes:
    """
    Convert a recording to FLAC of 16 kHz mono that holds nothing above 4 kHz.

    Raises:
        UnusableError: if it cannot be read or is silent.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise UnusableError(f"{path}: unreadable audio: {error}") from error
    narrow = samples.mean(1)
    return samples_to_flac(
        soxr.resample(narrow, rate, TELEPHONE_RATE) if rate != TELEPHONE_RATE else narrow, TELEPHONE_RATE
    )
