# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Readers of unpacked packages: images, recordings and sentences as plain rows, neither cleaned nor split."""

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .qt_resources import read_qt_resources

LANGUAGES = ("en", "fr", "es", "ru", "zh")
GROUPING_LANGUAGES = (*LANGUAGES, "ca", "ro", "bg")  # of stamps' names, which tell which images are one concept

# ---- Images ---------------------------------------------------------------------------------------------------------

# Nine kinds for both sources. Images of no kind (letters, numbers, parts of flags) are left out.
EMOJI_KINDS = {
    "Smileys & Emotion": "faces",
    "People & Body": "people",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Travel & Places": "places",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}
STAMP_KINDS = {
    "animals": "nature",
    "plants": "nature",
    "naturalforces": "places",
    "food": "food",
    "people": "people",
    "hobbies": "activities",
    "sports": "activities",
    "clothes": "objects",
    "household": "objects",
    "medical": "objects",
    "military": "objects",
    "seasonal": "objects",
    "space": "places",
    "town": "places",
    "vehicles": "places",
}


@dataclass(frozen=True)
class NamedImage:
    """
    Image file with its names.

    Args:
        path: the file.
        hand: the artist or project that drew it.
        kind: one of nine kinds of things.
        names: the names by language.
        key: an identifier within the source.
    """

    path: Path
    hand: str
    kind: str
    names: dict[str, str]
    key: str


def read_stamps(folder: Path) -> Iterator[NamedImage]:
    """Yield Tux Paint's stamps except letters and symbols, from the unpacked `tuxpaint-stamps-default`."""
    root = folder / "usr/share/tuxpaint/stamps"
    for text in sorted(root.rglob("*.txt")):
        relative = text.relative_to(root)
        kind = STAMP_KINDS.get(relative.parts[0])
        images = [text.with_suffix(suffix) for suffix in (".png", ".svg") if text.with_suffix(suffix).is_file()]
        names = stamp_names(text)
        if kind is None or not images or "en" not in names:
            continue
        yield NamedImage(images[0], "tuxpaint", kind, names, str(relative.with_suffix("")))


def stamp_names(path: Path) -> dict[str, str]:
    """Read the names of a stamp: the first line is English, the others are `language.utf8=text`."""
    first, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    names = {"en": first.strip()}
    for line in lines:
        language, mark, text = line.partition(".utf8=")
        language = {"zh_CN": "zh"}.get(language, language)
        if mark and language in GROUPING_LANGUAGES:
            names[language] = text.strip()
    return {language: text for language, text in names.items() if text and "�" not in text}


def read_cldr_names(folder: Path) -> dict[str, dict[str, str]]:
    """Return short names, character -> language -> name, from the unpacked `cldr-annotations-full`."""
    names: dict[str, dict[str, str]] = {}
    for language in LANGUAGES:
        path = folder / "package/annotations" / language / "annotations.json"
        for character, entry in json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"].items():
            if entry.get("tts"):
                names.setdefault(bare(character), {})[language] = entry["tts"][0]
    return names


def read_cldr_keywords(folder: Path) -> dict[str, list[str]]:
    """Return English keywords, character -> words, from the unpacked `cldr-annotations-full`."""
    path = folder / "package/annotations/en/annotations.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"]
    return {bare(character): entry.get("default", []) for character, entry in entries.items()}


def read_emoji(datasource: Path, cldr: Path, hands: dict[str, tuple[Path, str]]) -> Iterator[NamedImage]:
    """
    Yield the emoji that CLDR names in every language, once for each hand that drew them.

    Args:
        datasource: the unpacked `emoji-datasource-google`, for its list with categories.
        cldr: the unpacked `cldr-annotations-full`.
        hands: the folder of each hand's images and the pattern of their names, such as `"{}.png"`. It is filled with
            the code points in hexadecimal, joined by `-`.
    """
    names = read_cldr_names(cldr)
    for entry in json.loads((datasource / "package/emoji.json").read_text(encoding="utf-8")):
        character = bare("".join(chr(int(code, 16)) for code in entry["unified"].split("-")))
        kind = EMOJI_KINDS.get(entry["category"])
        if kind is None or set(names.get(character, ())) < set(LANGUAGES):
            continue
        for hand, (folder, pattern) in hands.items():
            path = find_emoji(folder, pattern, entry["unified"])
            if path is not None:
                yield NamedImage(path, hand, kind, names[character], f"emoji/{entry['unified'].lower()}")


def bare(character: str) -> str:
    """Return an emoji without variation selectors, which packages use inconsistently."""
    return character.replace("\ufe0f", "").replace("\ufe0e", "")


def find_emoji(folder: Path, pattern: str, unified: str) -> Path | None:
    """Find the image of an emoji, with or without variation selectors and capitals in its name."""
    codes = unified.split("-")
    for parts in (codes, [code for code in codes if code != "FE0F"]):
        for name in ("-".join(parts).lower(), "-".join(parts).upper()):
            if (path := folder / pattern.format(name)).is_file():
                return path
    return None


# ---- Photographs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photograph:
    """
    Photograph with its credits.

    Args:
        data: the file.
        key: its activity, folder and name without suffix, such as `erase/resource/bee`.
        author: its author as stated; empty if unknown.
        license: its license as stated.
    """

    data: bytes
    key: str
    author: str
    license: str


def read_photographs(
    folder: Path, folders: dict[str, list[str]], left_out: Sequence[str] = ()
) -> Iterator[Photograph]:
    """
    Yield photographs of GCompris, by activity, folder and name.

    Args:
        folder: the unpacked `gcompris-qt-data`.
        folders: the folders of each activity that hold photographs and no drawings, such as `resource/animals`.
        left_out: keys of photographs to leave out.

    Raises:
        ValueError: for a photograph whose license no README states.
    """
    root = folder / "usr/share/gcompris-qt/rcc"
    for activity, names in folders.items():
        base = f"gcompris/src/activities/{activity}/"
        files = {
            path.removeprefix(base): data
            for path, data in read_qt_resources(root / f"{activity}.rcc")
            if path.startswith(base)
        }
        credits: dict[str, tuple[str, str]] = {}
        for path, data in files.items():
            if path.endswith("/README"):
                stated = read_credits(data.decode("utf-8"))
                credits |= {f"{path.removesuffix('README')}{name}": credit for name, credit in stated.items()}
        for path in sorted(files):
            key = f"{activity}/{path.removesuffix('.webp')}"
            if path.rpartition("/")[0] not in names or not path.endswith(".webp") or key in left_out:
                continue
            if path not in credits:
                raise ValueError(f"No README of {activity}.rcc states the license of {path}. Leave {key} out.")
            yield Photograph(files[path], key, *credits[path])


CREDIT_FIELD = re.compile(r"^(Copyright|License|Source|Comments|Files):", re.MULTILINE)


def read_credits(readme: str) -> dict[str, tuple[str, str]]:
    """Return author and license of each file that a README of GCompris lists, in paragraphs of fields in any order."""
    credits = {}
    for paragraph in re.split(r"\n\s*\n", readme):
        _, *parts = CREDIT_FIELD.split(paragraph)
        fields = {name: value.strip() for name, value in zip(parts[::2], parts[1::2], strict=True)}
        if "License" in fields:
            for name in fields.get("Files", "").split():
                credits[name] = (fields.get("Copyright", ""), fields["License"])
    return credits


# ---- Audio and text -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """Recording with its transcript."""

    path: Path
    text: str
    language: str
    voice: str
    key: str


def read_prompts(transcripts: Path, recordings: Path, language: str) -> Iterator[Clip]:
    """
    Yield Asterisk's prompts with their transcripts, signals without words (in brackets there) included.

    If a prompt is listed twice, the first transcript counts.

    Args:
        transcripts: the unpacked `asterisk-core-sounds-XX`.
        recordings: the unpacked `asterisk-core-sounds-XX-wav`.
        language: the language of both.
    """
    lists = sorted((transcripts / "usr/share/doc").glob("*/core-sounds-*.txt.gz"))
    roots = sorted((recordings / "usr/share/asterisk/sounds").iterdir())
    seen = set()
    with gzip.open(lists[0], "rt", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, mark, text = line.strip().partition(": ")
            path = roots[0] / f"{key}.wav"
            if mark and not line.startswith(";") and path.is_file() and key not in seen:
                seen.add(key)
                yield Clip(path, re.sub(r"\s+", " ", text).strip(), language, roots[0].name, f"{language}/{key}")


def read_definitions(wordnet: Path) -> list[str]:
    """Return WordNet's definitions of nouns in the order of the unpacked `wordnet-base`."""
    text = (wordnet / "usr/share/wordnet/data.noun").read_text(encoding="utf-8")
    return [definition.strip() for definition in re.findall(r"\| ([^;\n]+)", text)]


NOUN = re.compile(r"[a-z]{2,}( [a-z]{2,})*")
SENTENCE = re.compile(r"[a-zA-Z][a-zA-Z' ,]+")


def read_sentences(wordnet: Path, fewest_words: int = 3, most_words: int = 10) -> Iterator[str]:
    """Yield plain example sentences of a few words, each once, in the order of the unpacked `wordnet-base`."""
    seen = set()
    for kind in ("noun", "verb", "adj", "adv"):
        path = wordnet / f"usr/share/wordnet/data.{kind}"
        for line in path.read_text(encoding="utf-8").splitlines():
            for sentence in re.findall(r'"([^"]+)"', line):
                sentence = sentence.strip(" ;,")
                words = len(sentence.split())
                if fewest_words <= words <= most_words and SENTENCE.fullmatch(sentence) and sentence not in seen:
                    seen.add(sentence)
                    yield sentence


def read_nouns(wordnet: Path, most_words: int = 3) -> Iterator[str]:
    """Yield nouns of few words that occur in WordNet's tagged texts, in the order of the unpacked `wordnet-base`."""
    for line in (wordnet / "usr/share/wordnet/index.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):  # the license
            continue
        lemma, _, _, pointers, *rest = line.split()
        noun = lemma.replace("_", " ")
        tagged = int(rest[int(pointers) + 1])  # texts that have it, behind the kinds of pointers and the senses
        if tagged and NOUN.fullmatch(noun) and len(noun.split()) <= most_words:
            yield noun
