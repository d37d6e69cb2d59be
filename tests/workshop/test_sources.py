"""Readers of unpacked packages: exact rows from tiny trees, and the rows that they skip."""

import gzip
import json
from pathlib import Path

import pytest

from scripts.workshop.phrases import KINDS
from scripts.workshop.sources import (
    EMOJI_KINDS,
    LANGUAGES,
    STAMP_KINDS,
    Clip,
    NamedImage,
    Photograph,
    find_emoji,
    read_cldr_names,
    read_credits,
    read_emoji,
    read_nouns,
    read_photographs,
    read_prompts,
    read_sentences,
    read_stamps,
    stamp_names,
)
from tests.workshop.qt_writer import write_qt_resources


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---- Tux Paint ------------------------------------------------------------------------------------------------------


def test_stamps_have_names(tmp_path) -> None:
    root = tmp_path / "usr/share/tuxpaint/stamps"
    cat, apple = root / "animals/cats/cat", root / "food/apple"
    write(
        cat.with_suffix(".txt"),
        "A cat.\nfr.utf8=Un chat.\nzh_CN.utf8=猫。\nca.utf8=Un gat.\nde.utf8=Katze\nes.utf8=\n\nbroken line",
    )
    write(apple.with_suffix(".txt"), "An apple.")
    touch(cat.with_suffix(".png"), cat.with_suffix(".svg"), cat.with_suffix(".wav"), apple.with_suffix(".svg"))
    assert list(read_stamps(tmp_path)) == [
        NamedImage(
            cat.with_suffix(".png"),
            "tuxpaint",
            "nature",
            {"en": "A cat.", "fr": "Un chat.", "zh": "猫。", "ca": "Un gat."},
            "animals/cats/cat",
        ),
        NamedImage(apple.with_suffix(".svg"), "tuxpaint", "food", {"en": "An apple."}, "food/apple"),
    ]


def test_stamps_without_an_image_a_name_or_a_kind_are_skipped(tmp_path) -> None:
    root = tmp_path / "usr/share/tuxpaint/stamps"
    write(root / "animals/lost.txt", "A cat.")
    write(root / "animals/nameless.txt", "\nfr.utf8=Un chat.")
    write(root / "animals/empty.txt", "")
    write(root / "symbols/a.txt", "The letter A.")
    touch(root / "animals/nameless.png", root / "animals/empty.png", root / "symbols/a.png", root / "animals/no.png")
    assert list(read_stamps(tmp_path)) == []


def test_names_in_other_encodings_are_skipped(tmp_path) -> None:
    path = write(tmp_path / "a.txt", b"A cat.\nes.utf8=Un ni\xf1o.\nfr.utf8=Un chat.")
    assert stamp_names(path) == {"en": "A cat.", "fr": "Un chat."}


# ---- Emoji ----------------------------------------------------------------------------------------------------------


def annotations(folder: Path, names: dict[str, dict[str, str]]) -> None:
    """Write names: character -> language -> name."""
    for language in LANGUAGES:
        entries = {
            character: {"default": ["x"], "tts": [each[language]]} if language in each else {"default": ["x"]}
            for character, each in names.items()
        }
        path = folder / f"package/annotations/{language}/annotations.json"
        write(path, json.dumps({"annotations": {"annotations": entries}}))


FIVE = {"en": "heart", "fr": "cœur", "es": "corazón", "ru": "сердце", "zh": "心"}


def test_names_belong_to_characters_without_variation_selectors(tmp_path) -> None:
    annotations(tmp_path, {"\u2764\ufe0f": FIVE, "x": {"en": "ex"}})
    assert read_cldr_names(tmp_path) == {"\u2764": FIVE, "x": {"en": "ex"}}


def test_emoji_by_every_hand_that_drew_them(tmp_path) -> None:
    annotations(tmp_path / "cldr", {"\u2764": FIVE, "\U0001f98a": {**FIVE, "en": "fox"}, "\U0001f9ff": {"en": "bead"}})
    entries = [
        {"unified": "2764-FE0F", "category": "Symbols"},
        {"unified": "1F98A", "category": "Animals & Nature"},
        {"unified": "1F9FF", "category": "Objects"},  # not named in every language
        {"unified": "1F3FB", "category": "Component"},  # of no kind
    ]
    write(tmp_path / "list/package/emoji.json", json.dumps(entries))
    one, other = tmp_path / "one", tmp_path / "other"
    touch(one / "2764-fe0f.png", one / "1f98a.png", other / "2764.svg", one / "1f9ff.png", one / "1f3fb.png")
    found = read_emoji(tmp_path / "list", tmp_path / "cldr", {"noto": (one, "{}.png"), "open": (other, "{}.svg")})
    assert list(found) == [
        NamedImage(one / "2764-fe0f.png", "noto", "symbols", FIVE, "emoji/2764-fe0f"),
        NamedImage(other / "2764.svg", "open", "symbols", FIVE, "emoji/2764-fe0f"),
        NamedImage(one / "1f98a.png", "noto", "nature", {**FIVE, "en": "fox"}, "emoji/1f98a"),
    ]


@pytest.mark.parametrize("name", ["2764-fe0f", "2764-FE0F", "2764"])
def test_an_emoji_is_found_however_its_file_is_named(tmp_path, name: str) -> None:
    touch(tmp_path / f"{name}.png")
    assert find_emoji(tmp_path, "{}.png", "2764-FE0F") == tmp_path / f"{name}.png"
    assert find_emoji(tmp_path, "{}.webp", "2764-FE0F") is None


def test_every_kind_has_a_name() -> None:
    assert set(EMOJI_KINDS.values()) | set(STAMP_KINDS.values()) == set(KINDS)


# ---- Prompts and sentences ------------------------------------------------------------------------------------------


def test_prompts_have_transcripts(tmp_path) -> None:
    lines = (
        "; a comment: not spoken\ndigits/1: one\nno transcript\nlost: no file\nhello:  hello:   world \nbeep: [tone]\n"
    )
    write(tmp_path / "text/usr/share/doc/any/core-sounds-en.txt.gz", gzip.compress(lines.encode()))
    voice = tmp_path / "sounds/usr/share/asterisk/sounds/en_US_f_Allison"
    touch(voice / "digits/1.wav", voice / "hello.wav", voice / "beep.wav", voice / "no transcript.wav")
    assert list(read_prompts(tmp_path / "text", tmp_path / "sounds", "en")) == [
        Clip(voice / "digits/1.wav", "one", "en", "en_US_f_Allison", "en/digits/1"),
        Clip(voice / "hello.wav", "hello: world", "en", "en_US_f_Allison", "en/hello"),
        Clip(voice / "beep.wav", "[tone]", "en", "en_US_f_Allison", "en/beep"),
    ]


def test_sentences_are_plain_of_a_few_words_and_come_once(tmp_path) -> None:
    lines = {
        "noun": '1 | a cat; "the cat sat down"; "it\'s a cat, a dog ;"\n2 | "too short"; "she is 9 years old"',
        "verb": '3 | "the cat sat down"; "one two three four five six seven eight nine ten eleven"',
        "adj": '4 | "the naïve cat sat"; "(brackets) are left out"',
        "adv": '5 | "they came to stay"',
    }
    for kind, content in lines.items():
        write(tmp_path / f"usr/share/wordnet/data.{kind}", content)
    assert list(read_sentences(tmp_path)) == ["the cat sat down", "it's a cat, a dog", "they came to stay"]
    assert list(read_sentences(tmp_path, 2, 3)) == ["too short"]


def test_nouns_are_plain_of_few_words_and_occur_in_texts(tmp_path) -> None:
    lines = [
        "  1 the license",
        "apple_tree n 2 3 @ ~ #p 2 1 01 02",
        "unread n 1 1 @ 1 0 03",
        "rock_and_roll n 1 0 1 12 04",
        "oslo2 n 1 1 @ 1 5 05",
        "x n 1 1 @ 1 5 06",
    ]
    write(tmp_path / "usr/share/wordnet/index.noun", "\n".join(lines))
    assert list(read_nouns(tmp_path)) == ["apple tree", "rock and roll"]
    assert list(read_nouns(tmp_path, 2)) == ["apple tree"]


# ---- Photographs ----------------------------------------------------------------------------------------------------

README = """Copyright: One, 2014
Source: https://example.org/File:a_(1).jpg
License: Public Domain
Files:
b.webp
sub/c.webp

Copyright: © Two & Three
Files: d.webp
License: CC-BY-SA-4.0
Comments: cropping, sharpening
 and resizing

License: CC0-1.0
Files: e.webp

Copyright: Nobody
Files: f.webp
"""


def test_credits_are_read_whatever_the_order_of_their_fields() -> None:
    one = ("One, 2014", "Public Domain")
    assert read_credits(README) == {
        "b.webp": one,
        "sub/c.webp": one,
        "d.webp": ("© Two & Three", "CC-BY-SA-4.0"),
        "e.webp": ("", "CC0-1.0"),
    }
    assert read_credits("") == {}


def gcompris(folder: Path, **activities: list[str]) -> Path:
    """Write the resources of activities, with the README above beside each file, whose content is its path."""
    for activity, names in activities.items():
        base = f"gcompris/src/activities/{activity}"
        files = {f"{base}/{name}": f"{activity}/{name}".encode() for name in names}
        files |= {f"{base}/resource/README": README.encode(), "gcompris/src/core/b.webp": b"of another activity"}
        write_qt_resources(folder / f"usr/share/gcompris-qt/rcc/{activity}.rcc", files)
    return folder


def test_photographs_of_the_named_folders_are_read_in_order_with_their_credits(tmp_path) -> None:
    names = ["resource/d.webp", "resource/b.webp", "resource/sub/c.webp", "resource/b.svg", "resource/b.ogg", "b.webp"]
    folder = gcompris(tmp_path, farm=names, zoo=["resource/e.webp", "resource/d.webp"], town=names)
    folders = {"zoo": ["resource"], "farm": ["resource", "resource/sub"]}
    found = list(read_photographs(folder, folders, left_out=["zoo/resource/d", "farm/resource/e"]))
    one = ("One, 2014", "Public Domain")
    assert found == [
        Photograph(b"zoo/resource/e.webp", "zoo/resource/e", "", "CC0-1.0"),
        Photograph(b"farm/resource/b.webp", "farm/resource/b", *one),
        Photograph(b"farm/resource/d.webp", "farm/resource/d", "© Two & Three", "CC-BY-SA-4.0"),
        Photograph(b"farm/resource/sub/c.webp", "farm/resource/sub/c", *one),
    ]
    assert [each.key for each in read_photographs(folder, {"farm": ["resource"]})] == [
        "farm/resource/b",
        "farm/resource/d",
    ]


def test_a_photograph_without_a_license_is_refused_by_its_name(tmp_path) -> None:
    folder = gcompris(tmp_path, farm=["resource/f.webp"])
    message = r"No README of farm\.rcc states the license of resource/f\.webp\. Leave farm/resource/f out"
    with pytest.raises(ValueError, match=message):
        list(read_photographs(folder, {"farm": ["resource"]}))
    assert list(read_photographs(folder, {"farm": ["resource"]}, ["farm/resource/f"])) == []
