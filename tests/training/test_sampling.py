"""Batches of examples with similar media."""

import pytest

from modeling_mm.data import ChatRow
from modeling_mm.training import MediaLengthGroupedSampler, media_size

SIZES = [number % 7 for number in range(70)]


def order(epoch: int = 0, seed: int = 0, batch_size: int = 5) -> list[int]:
    sampler = MediaLengthGroupedSampler(SIZES, batch_size, lambda size: size, seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_every_example_occurs_once():
    assert sorted(order()) == list(range(70)) and len(MediaLengthGroupedSampler(SIZES, 5, lambda size: size)) == 70


def test_batches_hold_examples_of_one_size():
    """Ten of each size and batches of five: within one pool each batch can be, and is, of one size."""
    indices = order()
    batches = [indices[start : start + 5] for start in range(0, 70, 5)]
    assert [len({SIZES[i] for i in batch}) for batch in batches] == [1] * 14
    assert [SIZES[batch[0]] for batch in batches] != sorted(SIZES[batch[0]] for batch in batches)


def test_the_order_depends_on_seed_and_epoch_alone():
    assert order() == order() and order(epoch=1) == order(epoch=1)
    assert order() != order(epoch=1) and order() != order(seed=1) != order(epoch=1, seed=1)


def test_a_batch_that_is_not_full_comes_last():
    indices = order(batch_size=16)
    full, rest = indices[:64], indices[64:]
    assert len(rest) == 6 and min(SIZES[i] for i in rest) >= max(SIZES[i] for i in full) - 1


def test_pools_keep_batches_from_being_the_same_in_every_epoch():
    sizes = list(range(256))  # two pools
    sampler = MediaLengthGroupedSampler(sizes, 4, lambda size: size)
    first = {tuple(sorted(batch)) for batch in zip(*[iter(list(sampler))] * 4, strict=True)}
    sampler.set_epoch(1)
    second = {tuple(sorted(batch)) for batch in zip(*[iter(list(sampler))] * 4, strict=True)}
    assert len(first & second) < len(first) / 2


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([{"type": "text", "text": "abc"}], (0, 0, 5)),
        ([{"type": "image", "path": "a.png"}, {"type": "text", "text": "abc"}], (1, 0, 5)),
        ([{"type": "audio", "path": "a"}, {"type": "audio", "path": "b"}, {"type": "text", "text": ""}], (0, 2, 2)),
    ],
)
def test_size_of_a_chat(content, expected):
    answer = {"role": "assistant", "content": [{"type": "text", "text": "no"}]}
    assert media_size(ChatRow([{"role": "user", "content": content}, answer])) == expected
