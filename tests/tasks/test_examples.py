"""Examples of tasks: no group leaks into a test, no answer is out of range, no label lacks an example."""

import json

import pytest

from scripts.tasks.examples import Sources, example, write_task


def row(key: str, group: str, answer: str = "a") -> dict:
    return example("task", key, group, [("image", f"{key}.png")], "What?", answer)


def test_an_example_has_media_before_its_question_and_its_group():
    assert example("t/part", "k", "g", [("image", "a.png"), ("audio", "b.flac")], "Q?", "A") == {
        "id": "t/part/k",
        "task": "t/part",
        "group": "g",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "path": "a.png"},
                    {"type": "audio", "path": "b.flac"},
                    {"type": "text", "text": "Q?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "A"}]},
        ],
    }
    assert len(example("t", "k", "g", [("audio", "b.flac")], None, "A")["messages"][0]["content"]) == 1


def test_media_are_named_from_the_folder_of_the_task(tmp_path):
    sources = Sources(tmp_path / "corpora", tmp_path / "packages", tmp_path / "tasks/one")
    assert sources.media(tmp_path / "corpora/images/train/a.png") == "../../corpora/images/train/a.png"
    assert sources.media(tmp_path / "tasks/one/audio/b.flac") == "audio/b.flac"


def test_splits_are_written_in_a_fixed_order_and_stale_ones_removed(tmp_path):
    rows = [row(f"{n}", f"g{n}", "ab"[n % 2]) for n in range(9)]
    splits = {"train": rows[:6], "test": rows[6:]}
    write_task(tmp_path / "one", splits, ["a", "b"])
    write_task(tmp_path / "two", {"train": rows[:6], "old": rows[6:]}, ["a", "b"])
    write_task(tmp_path / "two", {name: each[::-1] for name, each in splits.items()}, ["a", "b"])
    files = {path.name: path.read_text() for path in (tmp_path / "one").iterdir()}
    assert sorted(files) == ["test.jsonl", "train.jsonl"]
    assert {path.name: path.read_text() for path in (tmp_path / "two").iterdir()} == files
    ids = [json.loads(line)["id"] for line in files["train.jsonl"].splitlines()]
    assert sorted(ids) == [f"task/{n}" for n in range(6)] != ids


REFUSED = {
    "a leak": ({"train": [row("1", "cat")], "test": [row("2", "cat")]}, "test: 1 groups are in training too.*'cat'"),
    "a leak from more training": (
        {"train": [row("1", "cat")], "train_more": [row("1", "dog")], "test": [row("2", "dog")]},
        "test: 1 groups are in training too.*'dog'",
    ),
    "no training": ({"test": [row("2", "cat")]}, "no training examples, only the splits test"),
    "an empty test": ({"train": [row("1", "cat")], "test": []}, "The split test has no examples"),
    "one id twice": ({"train": [row("1", "cat"), row("1", "dog")]}, "train: 1 ids are used twice, such as 'task/1'"),
    "a label out of range": (
        {"train": [row("1", "cat"), row("2", "dog", "b")], "test": [row("3", "cow", "c")]},
        "test: the answer of task/3 is 'c', expected one of a, b",
    ),
    "a label without an example": ({"train": [row("1", "cat")]}, "train: no example of b. Every label needs one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_data_is_refused_and_nothing_is_written(case, tmp_path):
    splits, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        write_task(tmp_path, splits, ["a", "b"])
    assert not list(tmp_path.iterdir())


def test_a_split_without_labels_holds_no_label(tmp_path):
    train = [row("1", "cat")]
    write_task(tmp_path, {"train": train, "unknown": [row("2", "dog", "somebody")]}, ["a"], ["unknown"])
    with pytest.raises(ValueError, match=r"unknown: .* task/2 is 'a', expected an answer outside the labels"):
        write_task(tmp_path, {"train": train, "unknown": [row("2", "dog", "a")]}, ["a"], ["unknown"])
