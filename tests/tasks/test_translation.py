"""Names to translate, of which some need the image or the voice."""

from collections import Counter

import pytest

from modeling_mm.recipes import read_recipe
from scripts.tasks import components, translation
from scripts.tasks.build import RECIPES, write_task
from scripts.tasks.captions import read_images
from scripts.tasks.examples import answer_of
from tests.tasks.tiny_captions import asked, media, rows, write_corpora

FRENCH = ("en", "fr")


@pytest.fixture
def sources(tmp_path):
    return write_corpora(tmp_path)


@pytest.fixture
def splits(sources):
    return translation.build(sources)


def test_ambiguous_names_are_those_with_several_translations_that_training_has(splits):
    found = splits["test_ambiguous_image"]
    pairs = {(asked(row), answer_of(row)) for row in found}
    assert {answer for text, answer in pairs if text == "fr: judge"} == {"juge homme", "juge femme"}
    assert ("en: судья", "man judge") in pairs and ("en: судья", "woman judge") in pairs
    texts = {text for text, _ in pairs}
    assert "ru: judge" not in texts  # one translation
    assert not any("cook" in text for text in texts)
    answers = {(text, answer) for text, answer in ((asked(row), answer_of(row)) for row in splits["train"])}
    assert pairs <= answers
    by_text = Counter(text for text, _ in pairs)
    assert min(by_text.values()) > 1


def test_a_translation_that_training_lacks_makes_no_name_ambiguous():
    train = rows([("1", "role", "c", ("man judge", "juge homme", "juez", "судья", "法官"))], ["noto"])
    test = train + rows([("2", "role", "c", ("woman judge", "juge femme", "jueza", "судья", "法官"))], ["noto"])
    assert translation.ambiguous_names(test, translation.translations(train)) == []
    found = translation.ambiguous_names(test, translation.translations(test))
    assert {pair for _, pair in found} == {("en", "fr"), ("en", "es"), ("ru", "en"), ("zh", "en")}
    new = test + rows([("3", "role", "c", ("judge", "juge", "magistrado", "арбитр", "审判员"))], ["noto"])
    kept = translation.ambiguous_names(new, translation.translations(test))
    assert kept == found  # nobody could know the third translation


def test_sentences_are_no_names():
    long = "ils jugent " * 6
    (row,) = rows([("1", "role", "c", ("man judge", long, "juez", "судья", "法官"))], ["noto"])
    assert len(long.strip()) > translation.LONGEST
    languages = {language for pair in translation.pairs_of(row) for language in pair}
    assert languages == {"en", "es", "ru", "zh"}


def test_a_voice_tells_the_translation_and_never_the_answer(splits):
    found = splits["test_ambiguous_voice"]
    assert {asked(row)[:2] for row in found} == {"fr", "es", "zh"}  # no voice for English, which it would say
    for row in found:
        (voice,) = media(row)
        code = voice.partition("-")[2].partition(".")[0]
        assert f"twemoji-{code}.png" in row["id"] and asked(row).endswith(": judge")
    assert {media(row)[0][-10:-5] for row in found} == {"1f400", "1f401"}
    heard = [row for row in splits["train"] if media(row) and media(row)[0].endswith(".flac")]
    assert heard and not any(asked(row).startswith("en:") for row in heard)


def test_the_text_leaves_out_articles_and_persons_and_the_answer_does_not():
    row = {
        "name_en": "A woman judge.",
        "name_fr": "Une juge, femme.",
        "name_zh": "法官。",
        "name_es": None,
        "name_ru": "",
    }
    assert translation.source_text(row, FRENCH) == "judge"
    assert translation.target_text(row, FRENCH) == "une juge, femme"
    assert translation.target_text(row, ("en", "zh")) == "法官"
    assert translation.pairs_of(row) == [("en", "fr"), ("fr", "en"), ("en", "zh"), ("zh", "en")]


def test_training_has_every_direction_of_each_image_once_with_all_kinds_of_guides(splits, sources):
    images = read_images(sources, "train")
    assert len(splits["train"]) == sum(len(translation.pairs_of(row)) for row in images) == 16 * 8 + 2
    kinds = Counter(media(row)[0][-4:] if media(row) else None for row in splits["train"])
    assert set(kinds) == {".png", "flac"} and kinds[".png"] > kinds["flac"]


def test_the_texts_alone_have_each_translation_once(splits):
    pairs = Counter((asked(row), answer_of(row)) for row in splits[translation.TEXTS])
    assert set(pairs.values()) == {1} and not any(media(row) for row in splits[translation.TEXTS])
    assert set(pairs) == {(asked(row), answer_of(row)) for row in splits["train"]}


def test_the_frozen_decoder_reads_no_placeholder(sources, splits, monkeypatch):
    given = {}
    monkeypatch.setattr(components, "write_components", lambda *positional, **named: given.update(named))
    translation.prepare(sources, splits)
    first, second = (read_recipe(RECIPES / f"{name}.yaml") for name in (*translation.FIRST, "tasks-translation"))
    assert given["placeholders"] == first.model.config["placeholders"] == "hidden"
    assert second.frozen["text"] == "always"


def test_a_dictionary_gives_the_usual_translation_of_training(splits, sources):
    usual = translation.dictionary(splits["train"])
    assert usual["fr: cook"] == "cuisinier" and usual["fr: judge"] in ("juge homme", "juge femme")
    sources.folder.mkdir()
    write_task(sources.folder, splits)
    found = {(each["dataset"], each["metric"]): each["value"] for each in translation.measure(sources.folder, sources)}
    assert set(found) == set(translation.REACH)
    assert found[translation.AMBIGUOUS_IMAGE, "exact_match"] == pytest.approx(0.5)  # each text has two
    assert found["known names with an image", "exact_match"] > 0.8
    assert found["unseen names with an image", "exact_match"] == 0
