"""item_reader.py: items of a user's own modality become a padded batch, from arrays, lists and files."""

import io

import numpy as np
import pytest
import torch

from modeling_mm.item_reader import ItemReader
from modeling_mm.modalities import Modality
from modeling_mm.placeholders import split_rows

MOTION = Modality("motion", dimensions=(2,), frame_axes=(2,))
MAP = Modality("map", dimensions=(2,))
ITEM = np.arange(6.0).reshape(3, 2)


def npy(array: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def test_items_of_unequal_length_are_padded_behind_their_frames() -> None:
    features, tokens = ItemReader(MOTION).features([[ITEM, ITEM[:1]], [], [ITEM[:2]]])
    assert tokens == [[1, 1], [], [1]]
    values, mask = features["motion_values"], features["motion_mask"]
    assert values.dtype == torch.float32 and values.shape == (3, 2, 3, 2)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [
        [[True, True, True], [True, False, False]],
        [[False] * 3] * 2,
        [[True, True, False], [False] * 3],
    ]
    assert torch.equal(values[0, 0], torch.tensor(ITEM).float())
    assert torch.equal(values.sum(-1) != 0, mask)


def test_frames_may_be_any_axis() -> None:
    reader = ItemReader(Modality("motion", dimensions=(2,), frame_axes=(3,)))
    features, _ = reader.features([[ITEM.T, ITEM.T[:, :2]]])
    assert features["motion_values"].shape == (1, 2, 2, 3)
    assert features["motion_mask"].sum(-1).tolist() == [[3, 2]]


def test_items_without_a_length_have_a_mask_of_items() -> None:
    features, _ = ItemReader(MAP).features([[ITEM], [ITEM, ITEM]])
    assert features["map_values"].shape == (2, 2, 3, 2)
    assert features["map_mask"].tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    "source",
    [
        ITEM,
        ITEM.astype(np.int64),
        torch.tensor(ITEM),
        torch.tensor(ITEM, dtype=torch.bfloat16),
        ITEM.tolist(),
        tuple(map(tuple, ITEM.tolist())),
        npy(ITEM),
        {"bytes": npy(ITEM), "path": None},
    ],
    ids=["array", "integers", "tensor", "bfloat16", "lists", "tuples", "bytes", "datasets"],
)
def test_every_source_is_the_same_item(source) -> None:
    assert np.array_equal(ItemReader(MOTION).load(source), ITEM.astype(np.float32))


def test_files_are_read(tmp_path) -> None:
    np.save(tmp_path / "a.npy", ITEM)
    for source in (tmp_path / "a.npy", str(tmp_path / "a.npy"), (tmp_path / "a.npy").as_uri()):
        assert np.array_equal(ItemReader(MOTION).load(source), ITEM)


def test_a_rows_own_reader_makes_the_array() -> None:
    reader = ItemReader(Modality("motion", dimensions=(2,), frame_axes=(2,), read=lambda name: ITEM * len(name)))
    assert np.array_equal(reader.load("ab"), 2 * ITEM)
    assert ItemReader(MOTION).to_dict() != reader.to_dict()


@pytest.mark.parametrize(
    ("media", "rows", "is_nested"),
    [
        (ITEM, [1], False),
        (ITEM.tolist(), [1], False),
        ([ITEM, ITEM], [2], False),
        ([ITEM.tolist(), ITEM.tolist()], [2], False),
        ([[ITEM], [ITEM.tolist(), "a.npy"], []], [1, 2, 0], True),
        (["a.npy", "b.npy"], [2], False),
    ],
)
def test_nested_lists_of_numbers_are_one_item(media, rows, is_nested) -> None:
    found, nested = split_rows(media, ItemReader(MOTION).is_item)
    assert (list(map(len, found)), nested) == (rows, is_nested)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ITEM[0], r"expected an array of 2 dimensions with at least one value, got shape \(2,\); let `read`"),
        (ITEM[:0], r"at least one value, got shape \(0, 2\)"),
        (ITEM * np.nan, "6 of 6 values are NaN or infinite"),
        (np.array([["a"]]), "expected numbers, got an array of <U1"),
        (b"time,x,y", "8 bytes: expected an array, nested lists of numbers, or a `.npy` file; .* give the modality"),
        (npy(ITEM)[:-8], "damaged or cut short"),
        (npy(np.array([{}])), "damaged or cut short .*allow_pickle=False"),
        ("missing.npy", "'missing.npy': expected an existing file"),
    ],
)
def test_a_bad_item_is_named_with_its_row(source, message) -> None:
    with pytest.raises(ValueError, match=f"Row 1, item 0 of its motions: .*{message}"):
        ItemReader(MOTION).features([[], [source]])


def test_items_that_differ_in_more_than_frames_are_refused() -> None:
    with pytest.raises(ValueError, match=r"motions of a batch have shapes \(2,\), \(3,\) apart from axis 0"):
        ItemReader(MOTION).features([[ITEM], [ITEM.T]])
    with pytest.raises(ValueError, match=r"maps of a batch have shapes \(2, 3\), \(3, 2\); give them one shape"):
        ItemReader(MAP).features([[ITEM, ITEM.T]])
