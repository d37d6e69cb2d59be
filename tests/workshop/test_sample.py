"""The small real sample in processing/corpora/sample: complete, decodable, licensed, small, and balanced questions."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from modeling_mm.data import load_chats, media_parts
from scripts.workshop.build_sample import check_distinct, spread
from scripts.workshop.corpus import read_lines
from scripts.workshop.sample import SAMPLE_FOLDER, pair_questions, training_and_new_pairs
from tests.fakes.sample_rows import AUDIO, IMAGES, sample_rows

LICENSES = {
    "Apache-2.0": "Apache-2.0.txt",
    "Unicode-3.0": "Unicode-3.0.txt",
    "CC-BY-SA-3.0": "CC-BY-SA-3.0-asterisk-core-sounds.txt",
}
LISTS = {"images": (IMAGES, "caption", 3, 8), "audio": (AUDIO, "transcript", 7, 7)}


# ---- Files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LISTS)
def test_lists_are_complete_licensed_distinct_and_balanced(kind: str) -> None:
    rows, column, most_words, fewest = LISTS[kind]
    assert {path.relative_to(SAMPLE_FOLDER).as_posix() for path in (SAMPLE_FOLDER / kind).iterdir()} == {
        row["file"] for row in rows
    }
    for row in rows:
        assert list(row) == ["file", column, "category", "source", "license", f"{column}_source", f"{column}_license"]
        assert all(isinstance(value, str) and value == value.strip() != "" for value in row.values()), row
        for license in (row["license"], row[f"{column}_license"]):
            assert (SAMPLE_FOLDER / "LICENSES" / LICENSES[license]).stat().st_size > 1000, row
        assert len(row[column].split()) <= most_words
    check_distinct(rows, column)
    counts = Counter(row["category"] for row in rows)
    assert 5 <= len(counts) <= 10 and min(counts.values()) >= fewest, counts


@pytest.mark.parametrize("key", ["file", "caption"])
def test_rows_that_share_a_name_are_refused(key: str) -> None:
    rows = [{"file": "a.png", "caption": "A"}, {"file": "b.png", "caption": "B"}]
    check_distinct(rows, "caption")
    with pytest.raises(ValueError, match=f"Two rows share a {key}"):
        check_distinct([rows[0], rows[1] | {key: rows[0][key].lower()}], "caption")


def test_the_readme_states_the_counts_and_the_sample_is_small() -> None:
    readme = (SAMPLE_FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{len(IMAGES)} images and {len(AUDIO)} recordings" in readme
    assert len(IMAGES) >= 120 and len(AUDIO) >= 40
    assert sum(path.stat().st_size for path in SAMPLE_FOLDER.rglob("*") if path.is_file()) < 6e6


def pixels(row: dict[str, Any]) -> np.ndarray:
    with Image.open(SAMPLE_FOLDER / row["file"]) as image:
        image.load()
        assert (image.mode, image.size) == ("RGB", (64, 64)), row["file"]
        return np.asarray(image, dtype=np.float32) / 255


def test_images_decode_on_white_and_no_two_look_alike() -> None:
    images = np.stack([pixels(row) for row in IMAGES])
    rows, columns = images[:, [0, -1]], images[:, :, [0, -1]]
    border = np.concatenate([each.reshape(len(images), -1, 3) for each in (rows, columns)], axis=1)
    assert (border.mean(axis=(1, 2)) > 0.5).all()
    assert (images.std(axis=(1, 2, 3)) > 0.02).all()
    small = images.reshape(len(images), 16, 4, 16, 4, 3).mean(axis=(2, 4)).reshape(len(images), -1)
    distance = np.sqrt(((small[:, None] - small[None]) ** 2).mean(axis=-1)) + np.eye(len(small))
    assert distance.min() > 0.08, "the closest two images, scaled to 16x16, root mean square difference"


def test_audio_decodes_at_8_khz_and_is_neither_silent_nor_long() -> None:
    for row in AUDIO:
        samples, rate = soundfile.read(SAMPLE_FOLDER / row["file"], dtype="float32")
        assert (rate, samples.ndim) == (8000, 1), row["file"]
        assert 0.4 <= len(samples) / rate <= 3.0, row["file"]
        assert np.sqrt((samples**2).mean()) > 0.03, f"{row['file']} is almost silent"


# ---- Questions ------------------------------------------------------------------------------------------------------


def pairs_of(examples) -> list[tuple[str, ...]]:
    return [tuple(part["path"] for part in media_parts(example["messages"])) for example in examples]


def test_the_chat_files_hold_the_questions_about_the_lists() -> None:
    for name, examples in zip(("train", "new_pairs"), training_and_new_pairs(IMAGES, AUDIO), strict=True):
        assert read_lines(SAMPLE_FOLDER / f"{name}.jsonl") == spread(examples)
        assert len(load_chats(SAMPLE_FOLDER, name)) == len(examples)
    tasks = {"image/name", "image/category", "audio/words", "audio/category", "image and audio"}
    assert {row.task for row in load_chats(SAMPLE_FOLDER, limit=20)} == tasks


def test_each_image_and_recording_has_two_questions_and_media_come_first() -> None:
    rows = sample_rows(1)
    answers = ["cat", "animal", "zero", "number", 'cat and "zero"']
    assert [row.answer for row in rows] == answers
    kinds = [[part["type"] for part in row.prompt[0]["content"]] for row in rows]
    assert kinds == [["image", "text"]] * 2 + [["audio", "text"]] * 2 + [["image", "audio", "text"]]


def test_every_image_gets_as_many_recordings_which_are_used_evenly() -> None:
    pairs = pairs_of(pair_questions(IMAGES, AUDIO, audio_per_image=4))
    assert set(Counter(image for image, _ in pairs).values()) == {4}
    uses = Counter(recording for _, recording in pairs)
    assert len(uses) == len(AUDIO) and max(uses.values()) - min(uses.values()) <= 4
    assert len(set(pairs)) == len(pairs) == 4 * len(IMAGES)


def test_new_pairs_are_new_and_made_of_known_media() -> None:
    training, new_pairs = map(pairs_of, training_and_new_pairs(IMAGES, AUDIO))
    assert len(new_pairs) == len(IMAGES) and not set(training) & set(new_pairs)
    assert {path for pair in new_pairs for path in pair} <= {path for pair in training for path in pair}


def test_pairs_are_the_same_for_the_same_seed_only() -> None:
    first, again, other = (list(pair_questions(IMAGES, AUDIO, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_more_recordings_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="recordings 60 to 68, but there are only 67"):
        list(pair_questions(IMAGES, AUDIO, audio_per_image=8, first=60))
