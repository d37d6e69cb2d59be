"""Mixtures: exact shares, every sample in its turn, the same way for the same seed."""

import json
from collections import Counter

import datasets
import pytest
from PIL import Image

from modeling_mm.data import ChatDataset, load_chats, media_parts, mix
from modeling_mm.images import load_image


def samples(name: str, count: int) -> list[dict]:
    return [{"prompt": "?", "completion": f"{name}{i}"} for i in range(count)]


def answers(mixture) -> list[str]:
    return [mixture[i].answer for i in range(len(mixture))]


@pytest.mark.parametrize(
    ("sizes", "weights", "shares"),
    [((5, 3, 2), [1, 1, 1], [4, 3, 3]), ((3, 3, 1), [0.5, 0.25, 0.25], [3, 2, 2]), ((4, 1), [2, 8], [1, 4])],
)
def test_shares_are_whole_numbers_that_add_up(sizes, weights, shares) -> None:
    assert mix([ChatDataset(samples("a", size)) for size in sizes], weights).counts == shares


def test_an_epoch_has_all_samples_together_and_each_data_set_its_share() -> None:
    mixture = mix([ChatDataset(samples("a", 30)), ChatDataset(samples("b", 10))], [1, 3])
    assert len(mixture) == 40
    found = answers(mixture)
    assert Counter(answer[0] for answer in found) == {"a": 10, "b": 30}
    assert set(Counter(answer for answer in found if answer[0] == "b").values()) == {3}, "each repeated alike"
    assert len({answer for answer in found if answer[0] == "a"}) == 10
    longest = max(len(run) for run in "".join(answer[0] for answer in found).split("a"))
    assert longest < 20, "the data sets are interleaved"


def test_the_next_epoch_goes_on_where_this_one_stopped() -> None:
    mixture = mix([ChatDataset(samples("a", 30)), ChatDataset(samples("b", 10))], [1, 3])
    seen = []
    for epoch in range(3):
        mixture.set_epoch(epoch)
        seen += [answer for answer in answers(mixture) if answer[0] == "a"]
    assert len(set(seen)) == len(seen) == 30


def test_repeated_samples_are_of_another_epoch_so_that_they_are_augmented_anew() -> None:
    mixture = mix([ChatDataset(samples("a", 8)), ChatDataset(samples("b", 2))], [2, 8])
    rows = [mixture[i] for i in range(len(mixture))]
    assert sorted(row.epoch for row in rows if row.answer == "b0") == [0, 1, 2, 3]
    mixture.set_epoch(1)
    assert sorted(row.epoch for row in (mixture[i] for i in range(10)) if row.answer == "b0") == [4, 5, 6, 7]


def test_the_same_seed_gives_the_same_mixture_and_another_one_does_not() -> None:
    parts = [ChatDataset(samples("a", 20)), ChatDataset(samples("b", 20))]
    assert answers(mix(parts, [1, 1], seed=3)) == answers(mix(parts, [1, 1], seed=3))
    assert answers(mix(parts, [1, 1], seed=3)) != answers(mix(parts, [1, 1], seed=4))
    with pytest.raises(IndexError, match="the mixture has 40 examples"):
        mix(parts, [1, 1])[40]


def test_streams_are_interleaved_until_each_was_read_once(tmp_path) -> None:
    for name, count in (("a", 40), ("b", 10)):
        lines = "".join(json.dumps(sample) + "\n" for sample in samples(name, count))
        (tmp_path / f"{name}.jsonl").write_text(lines)
    streams = [load_chats(tmp_path, split=name, streaming=True) for name in "ab"]
    found = [row.answer for row in mix(streams, [1, 3], seed=1)]
    assert {answer for answer in found if answer[0] == "a"} == {f"a{i}" for i in range(40)}
    shares = Counter(answer[0] for answer in found)
    assert 2.0 < shares["b"] / shares["a"] < 4.5
    assert found == [row.answer for row in mix(streams, [1, 3], seed=1)]
    assert found != [row.answer for row in mix(streams, [1, 3], seed=2)]
    with pytest.raises(ValueError, match="1 of 2 datasets are streams"):
        mix([streams[0], ChatDataset(samples("b", 3))], [1, 1])


def test_streams_of_any_origin_mix(tmp_path) -> None:
    """One is JSONL with contents as text, the other a saved dataset with images."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples("a", 4)))
    Image.new("RGB", (4, 3), "red").save(tmp_path / "red.png")
    columns = {
        "prompt": ["?"] * 4,
        "completion": [f"b{i}" for i in range(4)],
        "image": [str(tmp_path / "red.png")] * 4,
    }
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    dataset.save_to_disk(tmp_path / "saved")
    streams = [load_chats(path, streaming=True) for path in (tmp_path / "a.jsonl", tmp_path / "saved")]
    rows = {row.answer: row for row in mix(streams, [1, 1])}
    assert sorted(rows) == ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3"]
    assert media_parts(rows["a0"].messages) == []
    assert load_image(media_parts(rows["b0"].messages)[0]["image"]).size == (4, 3)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], "2 datasets and 1 weights"),
        ([1, 0], "Weight 1 is 0"),
        ([-1, 1], "Weight 0 is -1"),
        ([1, float("nan")], "Weight 1 is nan"),
    ],
)
def test_wrong_weights_are_refused(weights, message) -> None:
    with pytest.raises(ValueError, match=message):
        mix([ChatDataset(samples("a", 3)), ChatDataset(samples("b", 3))], weights)
