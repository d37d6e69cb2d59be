"""Which media belong to which row, as pure functions of lists."""

import torch

from modeling_mm.placeholders import pad_rows, place_placeholders, split_by_row, split_rows


def test_split_rows():
    def is_item(value):
        return isinstance(value, int)

    assert split_rows(None, is_item) == ([[]], False)
    assert split_rows(1, is_item) == ([[1]], False)
    assert split_rows([1, 2], is_item) == ([[1, 2]], False)
    assert split_rows([], is_item) == ([[]], False)
    assert split_rows([[1, 2], None, [], 3], is_item) == ([[1, 2], [], [], [3]], True)


def test_allot_without_media():
    assert split_by_row(None, ["a", "b"], "<|image|>", "images", lambda value: True) == [[], []]


def test_place_placeholders():
    assert place_placeholders("a", 2, 1) == "<|image|><|image|><|audio|>a"
    assert place_placeholders("a<|audio|>", 2, 1) == "a<|audio|>"
    assert place_placeholders("a", 0, 0) == "a"


def test_arrange():
    padded, mask = pad_rows(torch.tensor([[1.0], [2.0], [3.0]]), [2, 0, 1])
    assert padded[..., 0].tolist() == [[1, 2], [0, 0], [3, 0]]
    assert mask.tolist() == [[True, True], [False, False], [True, False]]
