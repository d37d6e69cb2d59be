"""Unpacked packages with voices: a second of noise for each text, voice and language."""

import gzip
from pathlib import Path

import numpy as np
import soundfile

from scripts.tasks.examples import Sources
from tests.workshop.tiny_packages import text, write_audio

TEXTS = 30
TUX_PAINT = ("be", "bg", "ca", "da", "el", "es", "fr", "ro", "ru")
ASTERISK = ("en", "es", "fr", "it", "ru")


def stamps_of(root: Path) -> Path:
    return root / "debian-tuxpaint-stamps-default/usr/share/tuxpaint/stamps/animals"


def write_voices(root: Path) -> Path:
    """Write captions of stamps, prompts with their transcripts, a silent, a short and a long clip, and a signal."""
    for number in range(TEXTS):
        text(stamps_of(root) / f"stamp{number}.txt", f"A thing {number}.\nfr.utf8=Un truc {number}.\n")
        for language in TUX_PAINT:
            write_audio(stamps_of(root) / f"stamp{number}_desc_{language}.ogg", 1.0, 44_100)
    text(stamps_of(root) / "other.txt", "Others.\n")
    soundfile.write(stamps_of(root) / "other_desc_fr.ogg", np.zeros(44_100), 44_100)
    (stamps_of(root) / "sub").mkdir()
    for name, seconds in (("short", 0.3), ("long", 9.0)):
        text(stamps_of(root) / f"sub/{name}.txt", "Others.\n")
        write_audio(stamps_of(root) / f"sub/{name}_desc_fr.ogg", seconds, 44_100)
    write_audio(stamps_of(root) / "no-text_desc_fr.ogg", 1.0)
    lines = ["; a comment", *(f"digits/{n}: prompt {n}" for n in range(TEXTS)), "digits/0: again", "beep: [a tone]"]
    path = root / "debian-asterisk-core-sounds-en/usr/share/doc/a/core-sounds-en.txt.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    for language in ASTERISK:
        voice = root / f"debian-asterisk-core-sounds-{language}-wav/usr/share/asterisk/sounds/voice_{language}"
        for name in (*(f"digits/{number}" for number in range(TEXTS)), "beep"):
            write_audio(voice / f"{name}.wav", 1.0)
    return root


def sources_of(packages: Path, folder: Path) -> Sources:
    return Sources(folder / "corpora", packages, folder / "task")
