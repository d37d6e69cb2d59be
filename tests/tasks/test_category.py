"""Category of an image with its history, on tiny packages."""

import json

import pytest

from scripts.tasks import category
from scripts.tasks.build import build
from scripts.tasks.examples import answer_of, write_task
from scripts.workshop.corpus import read_description
from tests.workshop.tiny_packages import NUMBER, WORDS

TINY_LABELS = ["animals and plants", "food", "objects"]  # kinds of the tiny packages


@pytest.fixture(scope="module")
def splits(packages, built, tmp_path_factory) -> dict[str, list[dict]]:
    cldr = packages / "npm-cldr-annotations-full-48.2.0"
    assert cldr.name.endswith(read_description("images").packages["names"].partition("@")[2])
    path = cldr / "package/annotations/en/annotations.json"
    entries = {}
    for number in range(NUMBER):
        names = {"tts": [WORDS["en"].format(number)], "default": ["thing", "*", f"hint {number}", f"clue{number}"]}
        entries[chr(0x1F400 + number)] = names
    before = path.read_bytes()
    path.write_text(json.dumps({"annotations": {"annotations": entries}}))
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(category, "LABELS", TINY_LABELS)
        build("category", built, packages, folder)
    path.write_bytes(before)
    lines = {path.stem: path.read_text().splitlines() for path in (folder / "category").glob("*.jsonl")}
    for name in lines:
        for line in lines[name]:
            for part in json.loads(line)["messages"][0]["content"]:
                assert part["type"] == "text" or (folder / "category" / part["path"]).is_file()
    return {name: list(map(json.loads, each)) for name, each in lines.items()}


def kinds(row: dict) -> list[str]:
    return [part["type"] for part in row["messages"][0]["content"]]


def said(row: dict) -> str:
    return row["messages"][0]["content"][-1]["text"]


def test_the_tests_ask_about_the_same_things_with_both_and_with_either_alone(splits):
    both, image, history = (splits[f"test_{name}"] for name in ("both", "image", "history"))
    assert all(kinds(row) == ["image", "text"] and said(row).startswith("Its owner says: ") for row in both)
    assert all(kinds(row) == ["image", "text"] and said(row) == category.QUESTION for row in image)
    assert all(kinds(row) == ["text"] and said(row).startswith("Its owner says: ") for row in history)
    pairs = [sorted((row["group"], answer_of(row)) for row in rows) for rows in (both, image, history)]
    assert pairs[0] == pairs[1] == pairs[2] and pairs[0]
    assert sorted(map(said, both)) == sorted(map(said, history))


def test_no_concept_of_a_test_is_in_training_which_has_all_three_forms(splits):
    groups = {name: {row["group"] for row in rows} for name, rows in splits.items()}
    assert not groups["train"] & (groups["test_both"] | groups["test_image"] | groups["test_history"])
    forms = {(tuple(kinds(row)), said(row).startswith("Its owner")) for row in splits["train"]}
    assert forms == {(("image", "text"), True), (("image", "text"), False), (("text",), True)}


def test_a_history_shares_no_word_with_the_name_and_has_letters():
    row = {"name_en": "A red thing."}
    keywords = {"red thing": ["thing", "thing of mine", "*", "rouge", "very red"]}
    assert category.hints(row, keywords) == ["rouge"]
    assert category.hints({"name_en": "unknown"}, keywords) == []


def test_every_answer_is_a_label_of_the_recipe(splits):
    assert {answer_of(row) for row in splits["train"]} == set(TINY_LABELS) < set(category.LABELS)


def test_a_label_without_an_example_is_refused(splits, tmp_path):
    with pytest.raises(ValueError, match=r"train: no example of activities, faces, flags, .*Every label needs one"):
        write_task(tmp_path, splits, category.LABELS)
    assert not list(tmp_path.iterdir())
