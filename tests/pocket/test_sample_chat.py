"""The sample as questions: every item asked about, pairs balanced and never repeated, bad lists refused."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from modeling_mm.data import load_chats
from scripts.pocket import build_sample
from scripts.pocket.sample import (
    PICTURE_KIND,
    PICTURE_NAME,
    SAMPLE_FOLDER,
    Item,
    pair_questions,
    picture_questions,
    read_items,
    read_pictures,
    read_sounds,
    sound_questions,
    training_and_new_pairs,
)

PICTURES, SOUNDS = read_pictures(), read_sounds()


def test_every_picture_and_every_sound_is_read() -> None:
    assert (len(PICTURES), len(SOUNDS)) == (168, 67)
    assert (PICTURES[0].text, PICTURES[0].category, PICTURES[0].path.name) == ("cat", "animal", "cat.png")
    assert (SOUNDS[0].text, SOUNDS[0].category, SOUNDS[0].path.name) == ("zero", "number", "zero.flac")


def test_two_questions_for_each_item() -> None:
    cat = [sample for sample in picture_questions(PICTURES) if sample.image == PICTURES[0].path]
    assert {sample.question: sample.answer for sample in cat} == {PICTURE_NAME: "cat", PICTURE_KIND: "animal"}
    assert len(sound_questions(SOUNDS)) == 2 * 67
    assert all(sample.image is None and sample.audio is not None for sample in sound_questions(SOUNDS))


def test_chat_has_media_first_then_the_question_then_the_answer() -> None:
    sample = pair_questions(PICTURES, SOUNDS)[0]
    user, assistant = sample.messages()
    assert [part["type"] for part in user["content"]] == ["image", "audio", "text"]
    assert assistant == {"role": "assistant", "content": [{"type": "text", "text": sample.answer}]}
    assert sample.prompt() == [user]
    assert sample.about == f"{sample.image.name} + {sample.audio.name}"


def test_every_picture_meets_as_many_sounds_and_sounds_are_used_evenly() -> None:
    pairs = pair_questions(PICTURES, SOUNDS, sounds_a_picture=4)
    assert set(Counter(pair.image for pair in pairs).values()) == {4}
    uses = Counter(pair.audio for pair in pairs)
    assert len(uses) == 67 and max(uses.values()) - min(uses.values()) <= 4
    assert len({(pair.image, pair.audio) for pair in pairs}) == len(pairs) == 4 * 168


def test_new_pairs_are_new_and_made_of_known_things() -> None:
    training, new_pairs = training_and_new_pairs()
    known = {(sample.image, sample.audio) for sample in training}
    assert len(new_pairs) == 168
    assert not known & {(sample.image, sample.audio) for sample in new_pairs}
    assert {sample.image for sample in new_pairs} <= {sample.image for sample in training}
    assert {sample.audio for sample in new_pairs} <= {sample.audio for sample in training}


def test_the_chat_files_of_the_sample_are_those_that_it_is_built_with(tmp_path: Path) -> None:
    sample = Path(shutil.copytree(SAMPLE_FOLDER, tmp_path / "sample"))
    for name in ("train", "new_pairs"):
        (sample / f"{name}.jsonl").unlink()
    build_sample.write_chats(sample)
    for name, rows in (("train", 1142), ("new_pairs", 168)):
        chats = (SAMPLE_FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
        assert (sample / f"{name}.jsonl").read_text(encoding="utf-8") == chats
        assert len(load_chats(SAMPLE_FOLDER, name)) == rows
    assert {row.task for row in load_chats(SAMPLE_FOLDER, limit=20)} == set(build_sample.TASKS.values())


def test_pairs_are_the_same_for_the_same_seed_only() -> None:
    assert pair_questions(PICTURES, SOUNDS) == pair_questions(PICTURES, SOUNDS)
    assert pair_questions(PICTURES, SOUNDS) != pair_questions(PICTURES, SOUNDS, seed=1)


def test_more_sounds_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="Sounds 60 to 68 for each picture, of only 67 sounds"):
        pair_questions(PICTURES, SOUNDS, sounds_a_picture=8, first=60)


@pytest.mark.parametrize("line", ["{", '{"file": "a.png", "caption": "a"}', "[1]"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "pictures.jsonl").write_text('{"file": "a.png", "caption": "a", "category": "b"}\n' + line + "\n")
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"pictures\.jsonl, line 2: expected file, caption and category"):
        read_pictures(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"file": "gone.png", "name": "a", "category": "b"}\n')
    with pytest.raises(FileNotFoundError, match=r"line 1: there is no file .*gone\.png"):
        read_items(tmp_path, "list.jsonl", "name")
    (tmp_path / "gone.png").touch()
    assert read_items(tmp_path, "list.jsonl", "name") == [Item(tmp_path / "gone.png", "a", "b")]
