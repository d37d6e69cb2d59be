"""Corpora from tiny packages, and the real ones: what goes into which split, no leaks, the same files every time."""

import json
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from scripts.workshop import build_corpus
from scripts.workshop.builders import BUILDERS, CorpusBuilder, build, full_description, prompt_to_flac
from scripts.workshop.concepts import normalize_name
from scripts.workshop.corpus import Description, is_built, read_description, read_lines, read_rows
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
    "files": shared_files,
}
LEAKS_OF_REAL_CORPORA = {
    "names in the texts of other corpora": lambda folder: shared_texts(folder, BY_TRANSCRIPT, BY_CONCEPT),
    "test prompts in sentences": lambda folder: (
        values(folder, "prompts", "text", "test_prompts") & values(folder, "sentences", "text", "train")
    ),
    "words of held-out names in spoken words": lambda folder: (
        words_in(values(folder, "spoken-captions", "text", "test_concepts"))
        & words_in(values(folder, "spoken-words", "text", "train"))
    ),
    "test prompts in spoken captions": lambda folder: (
        values(folder, "prompts", "text", "test_prompts") & values(folder, "spoken-captions", "text", "train")
    ),
}


def words_in(texts: set[str]) -> set[str]:
    return {word for text in texts for word in normalize_name(text).split()}


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
    unseen = {description.settings["voices"]["unseen"]}
    voices = {split: values(corpora, "spoken-captions", "voice", split) for split in description.splits}
    assert voices["test_voice"] == voices["test_concepts"] == unseen
    assert not unseen & (voices["train"] | voices["validation"] | values(corpora, "sentences", "voice", "train"))


@pytest.mark.parametrize(("corpus", "split"), [("images", "test_hand"), ("spoken-captions", "test_voice")])
def test_concepts_of_the_unseen_hand_and_voice_are_in_training(corpora, corpus: str, split: str) -> None:
    assert values(corpora, corpus, "concept", split) <= values(corpora, corpus, "concept", "train")


def real_description(corpus: str) -> Description:
    """Return the description of a corpus that `build_corpus` has built."""
    return full_description(corpus, SimpleNamespace(description=read_description("images")))


@pytest.mark.parametrize("corpus", CORPORA)
def test_files_rows_and_counts_agree_with_the_description(corpora, corpus: str) -> None:
    description = real_description(corpus) if corpora == REAL_CORPORA else tiny_description(corpus)
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


def test_spoken_captions_are_english_names_in_synthetic_voices(built) -> None:
    names = {(row["concept"], row["name_en"]) for row in rows_of(built, "images")}
    rows = rows_of(built, "spoken-captions")
    assert {(row["concept"], row["text"]) for row in rows} <= names
    assert {row["voice"] for row in rows} == {"flite/slt", "espeak-ng/en-us", "flite/rms"}
    assert {(row["language"], row["synthetic"]) for row in rows} == {("en", True)}


def test_settings_say_how_many_voices_speak_a_name(packages) -> None:
    builder, description = make_builder(packages), tiny_description("spoken-captions")
    voices = {**description.settings["voices"], "each": 2}

    def files(share: float) -> list:
        settings = {**description.settings, "voices": voices, "share_of_unseen_voice": share}
        return list(BUILDERS["spoken-captions"](builder, replace(description, settings=settings)))

    assert set(Counter(each.columns["text"] for each in files(0.5) if each.split == "train").values()) == {2}
    unseen = [sum(each.split == "test_voice" for each in files(share)) for share in (0.0, 0.5, 1.0)]
    assert 0 == unseen[0] < unseen[1] < unseen[2]


def test_prompts_without_words_or_noise_are_left_out(built) -> None:
    rows = rows_of(built, "prompts")
    assert {row["text"] for row in rows} == {f"prompt {number}" for number in range(12)} and len(rows) == 12
    assert {row["language"] for row in rows} == {"en"}
    left_out = read_lines(built / "prompts/left_out.jsonl")
    assert sorted(row["text"] for row in left_out) == ["[a tone]", "nothing to hear"]


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


def test_spoken_words_are_nouns_of_wordnet_in_known_voices_and_none_is_in_a_held_out_name(packages, built) -> None:
    rows, settings = rows_of(built, "spoken-words"), read_description("spoken-words").settings
    assert len(rows) == len({row["text"] for row in rows}) == 5
    assert {row["text"] for row in rows} <= {"lantern", "old oak", "harbour", "saddle", "pebble", "quill"}
    assert {row["voice"] for row in rows} <= {*settings["voices"]}
    assert read_description("spoken-captions").settings["voices"]["unseen"] not in settings["voices"]
    assert any("thing" in name.split() for name in make_builder(packages).held_out_names)  # the noun that is left out


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
    monkeypatch.setattr(sys, "argv", ["build_corpus", "prompts", "spoken-captions", *options])
    assert build_corpus.main() == 0
    assert sorted(path.name for path in folder.iterdir()) == ["prompts", "spoken-captions"]
    printed = capsys.readouterr().out
    for corpus in ("prompts", "spoken-captions"):
        counts = json.loads((folder / corpus / ".built.json").read_text())["rows"]
        assert f"{corpus}: " + ", ".join(f"{split} {number}" for split, number in counts.items()) in printed
        assert is_built(folder / corpus, full_description(corpus, CorpusBuilder(packages)))


def test_the_script_refuses_unknown_names(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["build_corpus", "picture"])
    with pytest.raises(SystemExit, match="2"):
        build_corpus.main()
    assert "unknown corpus picture; known are images, spoken-captions" in capsys.readouterr().err


def test_other_splits_of_the_concepts_rebuild_the_corpora_that_follow_them(packages, tmp_path) -> None:
    """Otherwise prompts and spoken captions would keep the old splits, and leak."""
    before = CorpusBuilder(packages)
    assert build("prompts", before, tmp_path).total() == 12
    settings = {**before.description.settings, "held_out": {"test_concepts": 0.5, "validation": 0.1}}
    after = CorpusBuilder(packages, replace(before.description, settings=settings))
    assert is_built(tmp_path / "prompts", full_description("prompts", before))
    assert not is_built(tmp_path / "prompts", full_description("prompts", after))
    assert full_description("sentences", after) == full_description("sentences", before)
