"""Languages, on tiny packages."""

import pytest

from scripts.tasks import languages
from scripts.tasks.examples import answer_of, write_task
from tests.tasks.tiny_voices import sources_of


@pytest.fixture(scope="module")
def splits(voices, tmp_path_factory):
    return languages.build(sources_of(voices, tmp_path_factory.mktemp("languages")))


def voice_of(row: dict) -> str:
    return "-".join(row["id"].removeprefix("languages/").split("-")[:2])


def test_every_language_is_in_training_and_in_the_test_of_unseen_clips(splits, tmp_path):
    write_task(tmp_path, splits, languages.LABELS)  # it checks groups and labels
    assert {answer_of(row) for row in splits["train"]} == set(languages.LABELS)
    assert {answer_of(row) for row in splits["test"]} == set(languages.LABELS)
    assert len(languages.LABELS) == 10


def test_no_text_of_a_test_is_in_training(splits):
    known = {row["group"] for row in splits["train"]}
    assert not known & {row["group"] for name in ("test", "test_speakers") for row in splits[name]}


def test_the_other_speakers_are_in_no_other_split(splits):
    assert {voice_of(row) for row in splits["test_speakers"]} == {"asterisk-fr", "asterisk-ru"}
    known = {voice_of(row) for name in ("train", "test") for row in splits[name]}
    assert known == {*(f"tuxpaint-{code}" for code in languages.TUX_PAINT), "asterisk-en", "asterisk-it"}
