"""The corpora from tiny packages: what goes where, nothing leaks, the same files every time. And the real ones."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.pocket.builders import BUILDERS, CorpusBuilder, build, full_description, prompt_to_flac
from scripts.pocket.concepts import normalize_name
from scripts.pocket.corpus import is_built, read_description, read_rows
from scripts.pocket.media_files import UnusableError
from scripts.pocket.sources import LANGUAGES, Clip
from tests.pocket.leaks import BY_CONCEPT, BY_TRANSCRIPT, shared_concepts, shared_files, shared_texts, values
from tests.pocket.tiny_packages import (
    HAS_SVG,
    NUMBER,
    build_all,
    build_tiny,
    killed,
    make_builder,
    tiny_description,
    tree,
)

CORPORA = Path(__file__).resolve().parents[2] / "outputs/corpora"
real = pytest.mark.skipif(not (CORPORA / "chat/.built.json").is_file(), reason="needs the corpora in outputs/corpora")


@pytest.fixture(scope="module", params=["tiny", pytest.param("real", marks=[pytest.mark.slow, real])])
def corpora(request) -> Path:
    """Those built from tiny packages, and those that are there to be trained on."""
    return request.getfixturevalue("built") if request.param == "tiny" else CORPORA


# ---- Nothing leaks --------------------------------------------------------------------------------------------------


def test_no_concept_is_in_train_and_held_out(corpora) -> None:
    assert shared_concepts(corpora) == set()


def test_no_name_of_a_concept_held_out_is_in_train_in_any_language(corpora) -> None:
    assert shared_texts(corpora, BY_CONCEPT, BY_CONCEPT) == set()


@pytest.mark.parametrize("corpus", BY_TRANSCRIPT)
def test_no_transcript_held_out_is_in_train(corpora, corpus: str) -> None:
    assert shared_texts(corpora, (corpus,), (corpus,)) == set()


def test_no_transcript_is_in_train_and_held_out_in_another_language(corpora) -> None:
    for split in ("validation", "test_prompts"):
        assert not values(corpora, "prompts", "train", "text") & values(corpora, "prompts", split, "text")


def test_no_file_is_in_several_splits(corpora) -> None:
    assert shared_files(corpora) == []


def test_the_unseen_hand_is_in_tests_alone(corpora) -> None:
    hands = {split: values(corpora, "images", split, "hand") for split in read_description("images").splits}
    assert hands["test_hand"] == {"twemoji"}
    assert "twemoji" not in hands["train"] | hands["validation"]
    assert "twemoji" in hands["test_concepts"]


def test_unseen_voices_are_in_tests_alone(corpora) -> None:
    unseen = {each["unseen"] for each in read_description("spoken-captions").settings["voices"].values()}
    splits = read_description("spoken-captions").splits
    voices = {split: values(corpora, "spoken-captions", split, "voice") for split in splits}
    assert voices["test_voice"] == unseen
    assert not unseen & (voices["train"] | voices["validation"])
    assert {voice for voice in voices["test_concepts"] if not voice.startswith("tuxpaint/")} == unseen
    assert not unseen & values(corpora, "sentences", "train", "voice")


def test_concepts_of_the_unseen_hand_and_voice_are_known(corpora) -> None:
    known = values(corpora, "images", "train", "concept")
    assert values(corpora, "images", "test_hand", "concept") <= known
    said = values(corpora, "spoken-captions", "train", "concept")
    assert values(corpora, "spoken-captions", "test_voice", "concept") <= said


def test_rows_and_files_are_the_same(corpora) -> None:
    for corpus in (*BY_CONCEPT, *BY_TRANSCRIPT):
        for split in read_description(corpus).splits:
            names = {row["file_name"] for row in read_rows(corpora / corpus, split)}
            files = {f"{split}/{path.name}" for path in (corpora / corpus / split).iterdir()}
            assert files - names == {f"{split}/metadata.jsonl"}
            assert names <= files


def test_corpora_are_those_of_their_descriptions(corpora, request) -> None:
    is_tiny = corpora != CORPORA
    for corpus in (*BY_CONCEPT, *BY_TRANSCRIPT):
        description = tiny_description(corpus) if is_tiny else read_description(corpus)
        assert is_built(corpora / corpus, description)
        counts = json.loads((corpora / corpus / ".built.json").read_text())["rows"]
        assert counts == {split: len(read_rows(corpora / corpus, split)) for split in description.splits}


@pytest.mark.slow
@real
def test_no_name_held_out_is_said_in_the_training_data_of_another_corpus() -> None:
    assert shared_texts(CORPORA, BY_TRANSCRIPT, BY_CONCEPT) == set()


@pytest.mark.slow
@real
def test_no_transcript_to_be_tested_with_is_a_name_or_sentence_trained_on() -> None:
    tested = values(CORPORA, "prompts", "test_prompts", "text")
    assert not tested & values(CORPORA, "sentences", "train", "text")
    assert not tested & values(CORPORA, "spoken-captions", "train", "text")


@pytest.mark.slow
@real
def test_every_real_file_has_one_row() -> None:
    for corpus in (*BY_CONCEPT, *BY_TRANSCRIPT):
        for split in read_description(corpus).splits:
            names = Counter(row["file_name"] for row in read_rows(CORPORA / corpus, split))
            assert [name for name, number in names.items() if number > 1] == []


# ---- What goes where ------------------------------------------------------------------------------------------------


def test_pictures_of_all_hands_with_names_in_five_languages(built) -> None:
    rows = [row for split in read_description("images").splits for row in read_rows(built / "images", split)]
    hands = Counter(row["hand"] for row in rows)
    assert hands["noto"] == NUMBER and hands["tuxpaint"] == NUMBER / 2 and hands["fluent"] == NUMBER / 3
    assert hands["openmoji"] == (NUMBER / 6 if HAS_SVG else 0)
    emoji = [row for row in rows if row["hand"] != "tuxpaint"]
    assert all(row[f"name_{language}"] for row in emoji for language in LANGUAGES)
    stamps = [row for row in rows if row["hand"] == "tuxpaint"]
    assert all(row["name_ru"] and row["name_es"] is None for row in stamps)


def test_pictures_that_share_a_name_by_any_hand_are_in_one_split(built) -> None:
    """Stamps share the English name of an emoji, or only its Russian one."""
    splits: dict[str, set[str]] = {}
    for split in read_description("images").splits:
        for row in read_rows(built / "images", split):
            number = "".join(c for c in row["name_ru"] if c.isdigit())
            splits.setdefault(number, set()).add(split)
    assert len(splits) == NUMBER
    assert set(map(frozenset, splits.values())) <= {
        frozenset(each) for each in (["train"], ["train", "test_hand"], ["validation"], ["test_concepts"])
    }
    assert len(set(map(frozenset, splits.values()))) >= 3


def test_known_concepts_of_the_unseen_hand_are_not_validated_with(packages) -> None:
    builder = make_builder(packages)
    placed = {builder.image_split(image) for image in builder.images if image.hand == "twemoji"}
    assert placed == {"test_concepts", "test_hand", None}


def test_another_unseen_hand_is_held_out(packages) -> None:
    description = tiny_description("images")
    builder = CorpusBuilder(packages, replace(description, settings={**description.settings, "unseen_hand": "noto"}))
    placed = {(image.hand, builder.image_split(image)) for image in builder.images}
    assert ("noto", "train") not in placed and ("noto", "test_hand") in placed and ("twemoji", "train") in placed


def test_sounds_come_with_the_picture_of_their_thing(built) -> None:
    for split in read_description("animal-audio").splits:
        images = {row["file_name"]: row for row in read_rows(built / "images", split)}
        rows = read_rows(built / "animal-audio", split)
        assert rows
        for row in rows:
            assert images[row["image_file"]]["concept"] == row["concept"]
            assert images[row["image_file"]]["name_en"] == row["name_en"]


def test_spoken_captions_are_human_or_marked_as_synthetic(built) -> None:
    rows = [
        row
        for split in read_description("spoken-captions").splits
        for row in read_rows(built / "spoken-captions", split)
    ]
    human = Counter(row["language"] for row in rows if not row["synthetic"])
    assert human == {"fr": NUMBER / 2, "ca": NUMBER / 2}
    assert {row["voice"] for row in rows if not row["synthetic"]} == {"tuxpaint/fr", "tuxpaint/ca"}
    assert {row["language"] for row in rows if row["synthetic"]} == {"en", "zh"}
    assert all(row["voice"].startswith(("flite/", "espeak-ng/")) for row in rows if row["synthetic"])


def test_each_name_is_said_in_as_many_voices_as_asked_for(packages, tmp_path) -> None:
    builder = make_builder(packages)
    files = list(BUILDERS["spoken-captions"](builder, tiny_description("spoken-captions")))
    said = Counter((each.columns["text"], each.split) for each in files if each.columns["language"] == "zh")
    assert set(said.values()) == {1}
    description = tiny_description("spoken-captions")
    settings = json.loads(json.dumps(description.settings))
    settings["voices"]["en"]["each"] = 2
    more = list(BUILDERS["spoken-captions"](builder, replace(description, settings=settings)))
    english = Counter(
        each.columns["text"] for each in more if each.columns["language"] == "en" and each.split == "train"
    )
    assert set(english.values()) == {2}
    everywhere = replace(description, settings={**settings, "share_of_unseen_voice": 1.0})
    unseen = sum(each.split == "test_voice" for each in BUILDERS["spoken-captions"](builder, everywhere))
    assert unseen > sum(each.split == "test_voice" for each in more) > 0


def test_prompts_without_words_or_sound_are_left_out(built) -> None:
    rows = [row for split in read_description("prompts").splits for row in read_rows(built / "prompts", split)]
    assert Counter(row["language"] for row in rows) == dict.fromkeys(("en", "es", "fr", "ru"), 13)
    left_out = [json.loads(line) for line in (built / "prompts/left_out.jsonl").read_text().splitlines()]
    assert Counter(row["text"] for row in left_out) == {"[a tone]": 4, "nothing to hear": 4}


def test_a_transcript_of_several_languages_is_in_one_split(built) -> None:
    splits = [
        s for s in read_description("prompts").splits for r in read_rows(built / "prompts", s) if "same" in r["text"]
    ]
    assert len(splits) == 4 and len(set(splits)) == 1


@pytest.mark.parametrize("text", ["[a tone]", "(beep) hello", "<click>", "...", ""])
def test_transcripts_with_notes_cannot_be_used(text: str) -> None:
    with pytest.raises(UnusableError, match="without words, or with a note"):
        prompt_to_flac(Clip(Path("no such file"), text, "en", "voice", "key"))


def test_sentences_are_as_many_as_asked_for_in_the_voices_named(built) -> None:
    rows = [row for split in ("train", "validation") for row in read_rows(built / "sentences", split)]
    assert len(rows) == len({row["text"] for row in rows}) == 16
    assert {row["voice"] for row in rows} <= set(read_description("sentences").settings["voices"])
    assert all(row["synthetic"] and row["language"] == "en" for row in rows)


# ---- The same files every time --------------------------------------------------------------------------------------


def test_the_same_packages_give_the_same_files(packages, built, tmp_path) -> None:
    again = build_all(packages, tmp_path / "again", workers=3)
    assert tree(again) == tree(built)
    assert len(tree(again)) > 200


@pytest.mark.parametrize("corpus", ["images", "spoken-captions"])
def test_a_killed_build_of_a_corpus_goes_on_to_the_same_files(packages, built, tmp_path, corpus: str) -> None:
    builder = make_builder(packages)
    killed(lambda: build_tiny(corpus, builder, tmp_path), call=20, before=True)
    assert 10 < len(tree(tmp_path)) < len(tree(built / corpus))
    build_tiny(corpus, builder, tmp_path)
    assert tree(tmp_path / corpus) == tree(built / corpus)


def test_the_script_builds_what_is_named(packages, tmp_path, monkeypatch, capsys) -> None:
    from scripts.pocket.build_corpus import main

    folder = tmp_path / "corpora"
    options = ["--folder", str(folder), "--packages", str(packages), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["build_corpus.py", "prompts", "animal-audio", *options])
    assert main() == 0
    assert sorted(path.name for path in folder.iterdir()) == ["animal-audio", "prompts"]
    shown = capsys.readouterr().out
    for corpus in ("animal-audio", "prompts"):
        counts = json.loads((folder / corpus / ".built.json").read_text())["rows"]
        assert f"{corpus}: " + ", ".join(f"{split} {number}" for split, number in counts.items()) in shown
        assert is_built(folder / corpus, full_description(corpus, CorpusBuilder(packages)))


def test_the_script_refuses_unknown_names(monkeypatch, capsys) -> None:
    from scripts.pocket.build_corpus import main

    monkeypatch.setattr(sys, "argv", ["build_corpus.py", "picture"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "unknown corpus picture; known are images, animal-audio" in capsys.readouterr().err


def test_one_corpus_can_be_built_by_its_name(packages, tmp_path) -> None:
    counts = build("animal-audio", CorpusBuilder(packages), tmp_path)
    assert sum(counts.values()) == NUMBER / 2


def test_another_split_of_the_concepts_makes_another_corpus(packages, tmp_path) -> None:
    """Else the spoken captions would stay on the old splits, and leak."""
    before = CorpusBuilder(packages)
    build("animal-audio", before, tmp_path)
    settings = {**before.description.settings, "held_out": {"test_concepts": 0.5, "validation": 0.1}}
    after = CorpusBuilder(packages, replace(before.description, settings=settings))
    assert is_built(tmp_path / "animal-audio", full_description("animal-audio", before))
    assert not is_built(tmp_path / "animal-audio", full_description("animal-audio", after))
    assert full_description("sentences", after) == full_description("sentences", before)


def test_a_prompt_that_names_a_held_out_concept_is_left_out(packages) -> None:
    builder = CorpusBuilder(packages)
    held_out = next(image for image in builder.images if builder.split(image) != "train")
    trained = next(image for image in builder.images if builder.split(image) == "train")
    assert normalize_name(held_out.names["en"]) in builder.held_out_names
    assert normalize_name(trained.names["en"]) not in builder.held_out_names
    with pytest.raises(UnusableError, match="name of a held-out concept"):
        prompt_to_flac(Clip(Path("x.wav"), "minus", "en", "v", "k"), names_held_out=True)
