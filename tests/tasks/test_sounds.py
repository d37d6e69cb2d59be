"""Sounds, on tiny packages."""

import io

import numpy as np
import pytest
import soundfile

from scripts.tasks import sounds
from scripts.tasks.examples import Sources, answer_of, write_task
from tests.tasks.tiny_voices import stamps_of
from tests.workshop.qt_writer import write_qt_resources
from tests.workshop.tiny_packages import write_audio


def noise(seconds: float, seed: int) -> bytes:
    file = io.BytesIO()
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * 8000))
    soundfile.write(file, samples, 8000, format="OGG")
    return file.getvalue()


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    root = tmp_path_factory.mktemp("sounds")
    stamps = stamps_of(root).parent
    for number in range(12):
        for folder in ("animals/birds", "animals/mammals/cats", "household/tools"):
            write_audio(stamps / folder / f"{folder[-4:]}{number}.ogg", 1.0)
    write_audio(stamps / "household/long.ogg", 23.0)
    for number in range(12):
        write_audio(stamps / f"animals/birds/irds{number}_white.wav", 1.0)
    write_audio(stamps / "animals/birds/irds1_desc.ogg", 1.0)  # what is said
    write_audio(stamps / "animals/insects/bee.ogg", 1.0)
    soundfile.write(stamps / "animals/birds/still.ogg", np.zeros(8000), 8000)
    (stamps / "animals/birds/broken.ogg").write_bytes(b"no sound")
    rcc = root / "debian-gcompris-qt-data/usr/share/gcompris-qt/rcc"
    rcc.mkdir(parents=True)
    base = "gcompris/src/activities"
    instruments = {f"{base}/instruments/resource/horn{n}.ogg": noise(1.0, n) for n in range(12)}
    write_qt_resources(rcc / "instruments.rcc", instruments | {f"{base}/instruments/a.png": b"an image"})
    farm = {f"{base}/explore_farm_animals/resource/{n}.ogg": noise(1.0, 40 + i) for i, n in enumerate(("duck", "cow"))}
    write_qt_resources(rcc / "explore_farm_animals.rcc", farm)
    return sounds.build(Sources(root / "corpora", root, root / "task"))


def labels_of(splits) -> dict[str, str]:
    return {row["group"]: answer_of(row) for rows in splits.values() for row in rows}


def test_the_folder_and_the_activity_tell_the_category(splits, tmp_path):
    write_task(tmp_path, splits, sounds.LABELS)  # it checks groups and labels
    found = labels_of(splits)
    assert {found[thing] for thing in found if thing.startswith("horn")} == {"instruments"}
    assert {found[thing] for thing in found if thing.startswith("irds")} == {"birds"}
    assert (found["duck"], found["cow"], found["long"]) == ("birds", "mammals", "objects")


def test_speech_other_animals_and_unusable_files_are_left_out(splits):
    assert not {"bee", "still", "broken"} & set(labels_of(splits))
    assert not [row["id"] for rows in splits.values() for row in rows if "desc" in row["id"]]


def test_a_thing_is_in_one_split_with_the_pieces_of_its_sounds(splits):
    assert not {row["group"] for row in splits["train"]} & {row["group"] for row in splits["test"]}
    white = {row["group"] for rows in splits.values() for row in rows if "white" in row["id"]}
    assert white == {f"irds{number}" for number in range(12)}
    long = [row for rows in splits.values() for row in rows if row["group"] == "long"]
    assert len(long) == (3 if long[0] in splits["train"] else 1)


def test_a_thing_has_one_name():
    names = {"a/cow_white.ogg": "cow", "b/Washing-machine.ogg": "washing", "horns.ogg": "horn", "cow.ogg": "cow"}
    assert {name: sounds.Sound(b"", name, "").thing for name in names} == names
