"""Wordings of the chat corpus: complete in every language, and distinct."""

import pytest

from modeling_mm.training import ImageAugmentation
from scripts.workshop import phrases
from scripts.workshop.sources import LANGUAGES

QUESTIONS = ("CAPTION", "CATEGORY", "TRANSCRIBE", "NAME_AUDIO")
FORMS = ("VERIFY_NAME", "MATCH_AUDIO_IMAGE", "CHOOSE_IMAGE")
PAIRS = ("YES_NO", "FIRST_SECOND")


@pytest.mark.parametrize("name", [*QUESTIONS, *FORMS, *PAIRS, "LANGUAGE_NAMES"])
def test_every_language_has_wordings(name: str) -> None:
    extra = {"ca", "ro", "bg"} if name == "TRANSCRIBE" else set()
    assert set(getattr(phrases, name)) == {*LANGUAGES, *extra}


@pytest.mark.parametrize("name", QUESTIONS)
def test_wordings_differ(name: str) -> None:
    wordings = [wording for each in getattr(phrases, name).values() for wording in each]
    assert all(wordings) and len(set(wordings)) == len(wordings)


def test_questions_of_different_tasks_differ() -> None:
    """The question alone must determine the task."""
    texts = [wording for name in QUESTIONS for each in getattr(phrases, name).values() for wording in each]
    texts += [form for name in FORMS for form in getattr(phrases, name).values()]
    texts += [phrases.VERIFY_AUDIO, phrases.TRANSLATE]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", ["VERIFY_NAME", "CHOOSE_IMAGE"])
def test_names_are_unchanged_in_questions(name: str) -> None:
    for form in getattr(phrases, name).values():
        assert "a cat: {x}" in form.format(name="a cat: {x}")


def test_translations_name_the_language_and_the_text() -> None:
    assert phrases.TRANSLATE.format(language="French", text="a cat") == "Translate this caption into French: a cat"


@pytest.mark.parametrize("name", PAIRS)
def test_the_two_answers_differ(name: str) -> None:
    assert all(len(set(pair)) == 2 for pair in getattr(phrases, name).values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_kinds_differ_in_every_language(language: str) -> None:
    names = [kind[language] for kind in phrases.KINDS.values()]
    assert all(names) and len(set(names)) == len(names) == 9


@pytest.mark.parametrize("name", ["CAPTION", "CATEGORY"])
def test_questions_do_not_prevent_mirroring(name: str) -> None:
    """Such a word in the question of every example would turn the augmentation off silently."""
    words = [word for each in getattr(phrases, name).values() for word in each]
    assert words and ImageAugmentation().may_flip(None, words, has_text=False)
