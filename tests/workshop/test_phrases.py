"""Wordings of the chat corpus: complete and distinct."""

from itertools import chain

import pytest

from modeling_mm.training import ImageAugmentation
from scripts.workshop import phrases

QUESTIONS = ("CAPTION", "CATEGORY", "TRANSCRIBE")
FORMS = ("VERIFY_NAME", "CHOOSE_IMAGE", "MATCH_AUDIO_IMAGE")


def test_questions_differ() -> None:
    """The question alone must determine the task."""
    texts = [*chain(*(getattr(phrases, name) for name in QUESTIONS)), *(getattr(phrases, name) for name in FORMS)]
    assert all(texts) and len(set(texts)) == len(texts) == 14


@pytest.mark.parametrize("name", ["VERIFY_NAME", "CHOOSE_IMAGE"])
def test_names_are_unchanged_in_questions(name: str) -> None:
    assert "called a cat: {x}?" in getattr(phrases, name).format(name="a cat: {x}")


def test_a_verdict_is_the_last_word_behind_the_transcript() -> None:
    assert phrases.VERDICT.format(text="A {x} – yes", verdict="no") == "A {x} – yes – no"


@pytest.mark.parametrize("name", ["YES_NO", "FIRST_SECOND"])
def test_the_two_answers_differ(name: str) -> None:
    assert len(set(getattr(phrases, name))) == len(getattr(phrases, name)) == 2


def test_kinds_differ() -> None:
    assert all(phrases.KINDS.values()) and len(set(phrases.KINDS.values())) == len(phrases.KINDS) == 9


@pytest.mark.parametrize("name", ["CAPTION", "CATEGORY"])
def test_questions_do_not_prevent_mirroring(name: str) -> None:
    """Such a word in the question of every example would turn the augmentation off silently."""
    assert ImageAugmentation().may_flip(None, list(getattr(phrases, name)), has_text=False)
