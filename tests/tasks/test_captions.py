"""Images and voices that tests of three tasks are made of: nothing of a test is in training."""

import pytest

from scripts.tasks import recommendation, retrieval, translation
from scripts.tasks.captions import VOICES, one_of_each_name, read_images, read_voices, voice_of
from scripts.tasks.examples import check_groups
from tests.tasks.tiny_captions import UNSEEN_HAND, media, write_corpora


@pytest.mark.parametrize("task", [retrieval, translation, recommendation])
def test_no_hand_no_voice_and_no_concept_of_a_test_is_in_training(tmp_path, task):
    splits = task.build(write_corpora(tmp_path))
    check_groups(splits)
    training = [name for name in splits if name.startswith("train")]
    learned = {name for split in training for row in splits.pop(split) for name in media(row)}
    assert learned and not any(name.startswith((UNSEEN_HAND, "flite_rms")) for name in learned)
    concepts = {name.partition("-")[2] for name in learned}
    for split, examples in splits.items():
        for row in examples:
            assert not learned & {*media(row)}, row["id"]
            is_new = not concepts & {name.partition("-")[2] for name in media(row)}
            assert is_new == (split == "test_concepts"), row["id"]
            if split != "test_concepts":
                assert all(name.startswith((UNSEEN_HAND, "flite_rms")) for name in media(row)), row["id"]


def test_a_leak_is_refused(tmp_path):
    splits = retrieval.build(write_corpora(tmp_path))
    splits["train"] += [{**splits["test_concepts"][0], "id": "another"}]
    with pytest.raises(ValueError, match="test_concepts: 1 groups are in training too"):
        check_groups(splits)


def test_an_image_has_one_of_its_voices_at_every_call(tmp_path):
    sources = write_corpora(tmp_path)
    voices = {split: read_voices(sources, split) for split in VOICES}
    rows = read_images(sources, "train")
    drawn = [voice_of(row, voices["train"]) for row in rows]
    assert drawn == [voice_of(row, voices["train"]) for row in rows] and len({*filter(None, drawn)}) > 8
    assert voice_of(rows[-1], voices["train"]) is None  # nobody says "A pear."
    assert rows[0]["path"] == "../corpora/images/train/noto-1f400.png"
    assert voices["test_hand"]["cook"] == ["../corpora/spoken-captions/test_voice/flite_rms-1f402.flac"]


def test_one_image_of_each_name_is_drawn_from_all_hands(tmp_path):
    rows = read_images(write_corpora(tmp_path), "test_concepts")
    found = one_of_each_name(rows)
    assert [row["name_en"] for row in found] == ["date", "lime", "melon", "guard"] and len(rows) == 12
    assert found == one_of_each_name(rows)
