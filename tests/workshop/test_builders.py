"""Corpora from tiny packages, and the real ones: what goes into which split, no leaks, the same files every time."""

import json
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from scripts.workshop import build_corpus
from scripts.workshop.builders import BUILDERS, CorpusBuilder, build, full_description, prompt_to_flac
from scripts.workshop.concepts import normalize_name
from scripts.workshop.corpus import is_built, read_description, read_lines, read_rows
from scripts.workshop.media_files import UnusableError
from scripts.workshop.sources import LANGUAGES, Clip
from tests.workshop.conftest import REAL_CORPORA, has_corpora
from tests.workshop.leaks import (
    BY_CONCEPT,
    BY_TRANSCRIPT,
    CORPORA,
    rows_of,
    shared_concepts,
    shared_files,
    shared_texts,
    values,
)
from tests.workshop.tiny_packages import (
    HAS_SVG,
    NUMBER,
    SEEN,
    build_all,
    build_tiny,
    killed,
    make_builder,
    tiny_description,
    tree,
)

# ---- No leaks -------------------------------------------------------------------------------------------------------

LEAKS = {
    "concepts": shared_concepts,
    "names in any language": lambda folder: shared_texts(folder, BY_CONCEPT, BY_CONCEPT),
    "transcripts of prompts": lambda folder: shared_texts(folder, ("prompts",), ("prompts",)),
    "transcripts of sentences": lambda folder: shared_texts(folder, ("sentences",), ("sentences",)),
    "transcripts of prompts in another language": lambda folder: (
        values(folder, "prompts", "text", "train") & values(folder, "prompts", "text", "validation", "test_prompts")
    ),
    "files": shared_files,
}
LEAKS_OF_REAL_CORPORA = {
    "names in the texts of other corpora": lambda folder: shared_texts(folder, BY_TRANSCRIPT, BY_CONCEPT),
    "test prompts in sentences": lambda folder: (
        values(folder, "prompts", "text", "test_prompts") & values(folder, "sentences", "text", "train")
    ),
    "test prompts in spoken captions": lambda folder: (
        values(folder, "prompts", "text", "test_prompts") & values(folder, "spoken-captions", "text", "train")
    ),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_train_and_held_out_splits_share_nothing(corpora, kind: str) -> None:
    assert not LEAKS[kind](corpora)


@pytest.mark.slow
@has_corpora
@pytest.mark.parametrize("kind", LEAKS_OF_REAL_CORPORA)
def test_real_corpora_share_nothing_across_corpora(kind: str) -> None:
    """Tiny ones do: their texts are few."""
    assert not LEAKS_OF_REAL_CORPORA[kind](REAL_CORPORA)


def test_the_unseen_hand_and_voices_are_in_test_splits_only(corpora) -> None:
    hands = {split: values(corpora, "images", "hand", split) for split in read_description("images").splits}
    assert hands["test_hand"] == {"twemoji"} <= hands["test_concepts"]
    assert "twemoji" not in hands["train"] | hands["validation"]
    description = read_description("spoken-captions")
    unseen = {each["unseen"] for each in description.settings["voices"].values()}
    voices = {split: values(corpora, "spoken-captions", "voice", split) for split in description.splits}
    assert voices["test_voice"] == unseen
    assert {voice for voice in voices["test_concepts"] if not voice.startswith("tuxpaint/")} == unseen
    assert not unseen & (voices["train"] | voices["validation"] | values(corpora, "sentences", "voice", "train"))


@pytest.mark.parametrize(("corpus", "split"), [("images", "test_hand"), ("spoken-captions", "test_voice")])
def test_concepts_of_the_unseen_hand_and_voice_are_in_training(corpora, corpus: str, split: str) -> None:
    assert values(corpora, corpus, "concept", split) <= values(corpora, corpus, "concept", "train")


@pytest.mark.parametrize("corpus", CORPORA)
def test_files_rows_and_counts_agree_with_the_description(corpora, corpus: str) -> None:
    description = read_description(corpus) if corpora == REAL_CORPORA else tiny_description(corpus)
    assert is_built(corpora / corpus, description)
    counts = json.loads((corpora / corpus / ".built.json").read_text())["rows"]
    assert list(counts) == list(description.splits)
    for split, number in counts.items():
        names = {row["file_name"] for row in read_rows(corpora / corpus, split)}
        assert len(names) == number == len(read_rows(corpora / corpus, split))
        files = {f"{split}/{path.name}" for path in (corpora / corpus / split).iterdir()}
        assert files == names | {f"{split}/metadata.jsonl"}


# ---- Content --------------------------------------------------------------------------------------------------------


def test_images_of_all_hands_have_names_in_five_languages(built) -> None:
    rows = rows_of(built, "images")
    hands = Counter(row["hand"] for row in rows)
    assert hands["noto"] == NUMBER and hands["tuxpaint"] == NUMBER / 2 and hands["fluent"] == NUMBER / 3
    assert hands["openmoji"] == (NUMBER / 6 if HAS_SVG else 0)
    for row in rows:
        if row["hand"] == "tuxpaint":
            assert row["name_ru"] and row["name_es"] is None
        else:
            assert all(row[f"name_{language}"] for language in LANGUAGES)


def test_images_that_share_a_name_are_in_one_split(built) -> None:
    """Stamps share the English name of an emoji, or only its Russian one."""
    splits: dict[str, set[str]] = {}
    for row in rows_of(built, "images"):
        number = "".join(c for c in row["name_ru"] if c.isdigit())
        splits.setdefault(number, set()).add(row["file_name"].split("/")[0])
    assert len(splits) == NUMBER
    found = set(map(frozenset, splits.values()))
    allowed = (["train"], ["train", "test_hand"], ["validation"], ["test_concepts"])
    assert len(found) >= 3 and found <= set(map(frozenset, allowed))


def test_known_concepts_of_the_unseen_hand_are_not_in_validation(packages) -> None:
    builder = make_builder(packages)
    placed = {builder.image_split(image) for image in builder.images if image.hand == "twemoji"}
    assert placed == {"test_concepts", "test_hand", None}


def test_the_unseen_hand_is_a_setting(packages) -> None:
    description = tiny_description("images")
    builder = CorpusBuilder(packages, replace(description, settings={**description.settings, "unseen_hand": "noto"}))
    placed = {(image.hand, builder.image_split(image)) for image in builder.images}
    assert ("noto", "train") not in placed and ("noto", "test_hand") in placed and ("twemoji", "train") in placed


def test_noises_come_with_the_image_of_their_thing(built) -> None:
    images = {row["file_name"]: row for row in rows_of(built, "images")}
    for split in read_description("animal-audio").splits:
        rows = rows_of(built, "animal-audio", split)
        assert rows
        for row in rows:
            assert images[row["image_file"]]["concept"] == row["concept"]
            assert images[row["image_file"]]["name_en"] == row["name_en"]


def test_spoken_captions_are_human_or_marked_as_synthetic(built) -> None:
    rows = rows_of(built, "spoken-captions")
    human = [row for row in rows if not row["synthetic"]]
    assert Counter(row["language"] for row in human) == {"fr": NUMBER / 2, "ca": NUMBER / 2}
    assert {row["voice"] for row in human} == {"tuxpaint/fr", "tuxpaint/ca"}
    synthetic = [row for row in rows if row["synthetic"]]
    assert {row["language"] for row in synthetic} == {"en", "zh"}
    assert all(row["voice"].startswith(("flite/", "espeak-ng/")) for row in synthetic)


def test_settings_say_how_many_voices_speak_a_name(packages) -> None:
    builder, description = make_builder(packages), tiny_description("spoken-captions")
    settings = json.loads(json.dumps(description.settings))
    settings["voices"]["en"]["each"] = 2

    def files(**fields) -> list:
        changed = replace(description, settings={**settings, **fields})
        return list(BUILDERS["spoken-captions"](builder, changed))

    def spoken(language: str, *splits: str) -> Counter:
        rows = [each for each in files() if each.columns["language"] == language]
        return Counter((each.columns["text"], each.split) for each in rows if not splits or each.split in splits)

    assert set(spoken("zh").values()) == {1} and set(spoken("en", "train").values()) == {2}
    unseen = [sum(each.split == "test_voice" for each in files(share_of_unseen_voice=x)) for x in (0.5, 1.0)]
    assert 0 < unseen[0] < unseen[1]


def test_prompts_without_words_or_noise_are_left_out(built) -> None:
    rows = rows_of(built, "prompts")
    assert Counter(row["language"] for row in rows) == dict.fromkeys(("en", "es", "fr", "ru"), 13)
    left_out = read_lines(built / "prompts/left_out.jsonl")
    assert Counter(row["text"] for row in left_out) == {"[a tone]": 4, "nothing to hear": 4}
    same = [row["file_name"].split("/")[0] for row in rows if "same" in row["text"]]
    assert len(same) == 4 and len(set(same)) == 1  # one split for a transcript of several languages


@pytest.mark.parametrize("text", ["[a tone]", "(beep) hello", "<click>", "...", ""])
def test_transcripts_with_notes_are_unusable(text: str) -> None:
    with pytest.raises(UnusableError, match="without words, or with a note"):
        prompt_to_flac(Clip(Path("no such file"), text, "en", "voice", "key"))


def test_a_prompt_that_names_a_held_out_concept_is_left_out(packages) -> None:
    builder = CorpusBuilder(packages)
    for is_train in (True, False):
        image = next(image for image in builder.images if (builder.split(image) == "train") == is_train)
        assert (normalize_name(image.names["en"]) in builder.held_out_names) == (not is_train)
    with pytest.raises(UnusableError, match="name of a held-out concept"):
        prompt_to_flac(Clip(Path("x.wav"), "minus", "en", "v", "k"), names_held_out=True)


def test_settings_say_how_many_sentences_are_spoken_in_which_voices(built) -> None:
    rows = rows_of(built, "sentences")
    assert len(rows) == len({row["text"] for row in rows}) == 16
    assert {row["voice"] for row in rows} <= set(read_description("sentences").settings["voices"])
    assert all(row["synthetic"] and row["language"] == "en" for row in rows)


def test_photographs_have_the_class_that_the_encoder_sees_and_their_credits(built) -> None:
    description = read_description("photographs")
    rows = rows_of(built, "photographs")
    names = {
        f"test_photographs/{activity}_{name.replace('/', '_')}_thing.png"
        for activity, folders in description.settings["folders"].items()
        for name in folders
    }
    assert {row["file_name"] for row in rows} == names and len(rows) == len(names) == 14
    sure = math.exp(8) / (math.exp(8) + 999)
    columns = {"class_index": SEEN, "class_name": f"name {SEEN}", "probability": round(sure, 3)}
    columns |= {"author": "Somebody", "license": "CC0-1.0"}
    assert all(row == {"file_name": row["file_name"], **columns} for row in rows)
    assert set(description.columns) == set(rows[0])
    for row in rows:
        with Image.open(built / "photographs" / row["file_name"]) as image:
            assert image.size == (320, 160) and image.mode == "RGB"
    assert read_lines(built / "photographs/left_out.jsonl") == []


# ---- The same files every time --------------------------------------------------------------------------------------


def test_the_same_packages_give_the_same_files(packages, built, tmp_path) -> None:
    again = build_all(packages, tmp_path / "again", workers=3)
    assert tree(again) == tree(built)
    assert len(tree(again)) > 200


@pytest.mark.parametrize("corpus", ["images", "spoken-captions"])
def test_a_killed_build_resumes_to_the_same_files(packages, built, tmp_path, corpus: str) -> None:
    builder = make_builder(packages)
    killed(lambda: build_tiny(corpus, builder, tmp_path), call=20, before=True)
    assert 10 < len(tree(tmp_path)) < len(tree(built / corpus))
    build_tiny(corpus, builder, tmp_path)
    assert tree(tmp_path / corpus) == tree(built / corpus)


def test_the_script_builds_the_named_corpora(packages, tmp_path, monkeypatch, capsys) -> None:
    folder = tmp_path / "corpora"
    options = ["--folder", str(folder), "--packages", str(packages), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["build_corpus", "prompts", "animal-audio", *options])
    assert build_corpus.main() == 0
    assert sorted(path.name for path in folder.iterdir()) == ["animal-audio", "prompts"]
    printed = capsys.readouterr().out
    for corpus in ("animal-audio", "prompts"):
        counts = json.loads((folder / corpus / ".built.json").read_text())["rows"]
        assert f"{corpus}: " + ", ".join(f"{split} {number}" for split, number in counts.items()) in printed
        assert is_built(folder / corpus, full_description(corpus, CorpusBuilder(packages)))


def test_the_script_refuses_unknown_names(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["build_corpus", "picture"])
    with pytest.raises(SystemExit, match="2"):
        build_corpus.main()
    assert "unknown corpus picture; known are images, animal-audio" in capsys.readouterr().err


def test_other_splits_of_the_concepts_rebuild_the_corpora_that_follow_them(packages, tmp_path) -> None:
    """Otherwise the spoken captions would keep the old splits, and leak."""
    before = CorpusBuilder(packages)
    assert build("animal-audio", before, tmp_path).total() == NUMBER / 2
    settings = {**before.description.settings, "held_out": {"test_concepts": 0.5, "validation": 0.1}}
    after = CorpusBuilder(packages, replace(before.description, settings=settings))
    assert is_built(tmp_path / "animal-audio", full_description("animal-audio", before))
    assert not is_built(tmp_path / "animal-audio", full_description("animal-audio", after))
    assert full_description("sentences", after) == full_description("sentences", before)
