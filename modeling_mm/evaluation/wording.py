# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Forms of a text that metrics compare: words between single spaces, audible words, and words without punctuation."""

import re
import unicodedata

ZERO_WIDTH_SPACE = "\u200b"  # marks the end of a word in scripts without spaces; `str.split` does not know it
BRACKETED = re.compile(r"\[[^\]]*\]|<[^>]*>|\([^)]*\)")  # remarks on audio, such as [laughter]
# Characters that stand for a word or a syllable and are written without spaces: kana, Han.
UNSPACED = re.compile("([\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def single_spaced(text: str) -> str:
    """
    Return a text with one space between its words, in Unicode's composed form.

    Every white space counts, also newlines and tabs, and no-break, ideographic and zero-width spaces.

    Example:
        >>> single_spaced("one\\ntwo\\u3000three ")
        'one two three'
    """
    return " ".join(unicodedata.normalize("NFC", text).replace(ZERO_WIDTH_SPACE, " ").split())


def spoken_form(text: str) -> str:
    """
    Return the audible words of a text: lower case, without punctuation, symbols and remarks in brackets.

    Vowel signs and other marks on letters are kept, as in Hindi and Arabic; otherwise this is the form that Whisper's
    basic normalizer gives, with which papers measure.

    Example:
        >>> spoken_form("Hello, you! [laughs]")
        'hello you'
    """
    return letters_and_digits(BRACKETED.sub("", text.lower()))


def plain_words(text: str) -> list[str]:
    """
    Return the words of a text in lower case, without punctuation. Each Han and kana character is a word.

    Example:
        >>> plain_words("A red cat; 你好")
        ['a', 'red', 'cat', '你', '好']
    """
    return UNSPACED.sub(r" \1 ", letters_and_digits(text.lower())).split()


def letters_and_digits(text: str) -> str:
    """Return a text in Unicode's compatible form, with single spaces in place of all but letters, marks and digits."""
    kept: list[str] = []
    for character in unicodedata.normalize("NFKC", text):
        category = unicodedata.category(character)
        if category[0] in "SPZ" or character == ZERO_WIDTH_SPACE:
            kept.append(" ")
        elif category[0] == "M":
            # A mark belongs to the letter before it. Frames and variants of emoji are not letters.
            if category != "Me" and not is_variation_selector(character) and kept and not kept[-1].isspace():
                kept.append(character)
        elif category != "Cf":  # invisible: joiners, direction marks, soft hyphens
            kept.append(character)
    return " ".join("".join(kept).split())


def is_variation_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
