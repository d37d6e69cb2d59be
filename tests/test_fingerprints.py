"""fingerprints.py: equal rows have equal fingerprints whatever the padding, other rows have others."""

import pytest
import torch

from modeling_mm import fingerprints
from modeling_mm.fingerprints import media_fingerprints, text_fingerprints


def texts(rows: list[list[int]], length: int, side: str = "right") -> torch.Tensor:
    """Fingerprints of texts that are padded to a length with a token that they have too."""
    pads = [[5] * (length - len(row)) for row in rows]
    ids = [row + pad if side == "right" else pad + row for row, pad in zip(rows, pads, strict=True)]
    masks = [[True] * len(row) for row in rows]
    masks = [
        mask + [False] * len(pad) if side == "right" else [False] * len(pad) + mask
        for mask, pad in zip(masks, pads, strict=True)
    ]
    return text_fingerprints(torch.tensor(ids), torch.tensor(masks))


def test_a_text_has_its_fingerprint_whatever_its_padding():
    rows = [[5, 6], [6, 5], [5], [5, 5], [5, 6, 7], [0], [0, 0]]
    found = texts(rows, 4)
    assert found.unique().numel() == len(rows)
    assert torch.equal(found, texts(rows, 9, "left"))
    assert torch.equal(texts([[5, 6], [5, 6]], 2), found[[0, 0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8])
@pytest.mark.parametrize("shape", [(7,), (2, 5), (3, 4, 4), (2, 3, 4, 4)])
def test_media_differ_by_value_and_place_alone(shape, dtype):
    values = (torch.rand(6, *shape) * 200 + 1).to(dtype)
    values[3], values[4] = values[0], values[1]
    values[5] = values[0].flatten().roll(1).reshape(shape)  # the same values elsewhere
    found = media_fingerprints(values)
    assert found[3] == found[0] and found[4] == found[1] and found.unique().numel() == 4
    changed = values[:1].clone()
    changed.flatten()[-1] += 1
    assert media_fingerprints(changed) != found[0]


def test_zeros_at_the_end_of_any_axis_are_padding():
    values = torch.rand(2, 1, 3, 4, 5)
    padded = torch.zeros(2, 4, 3, 6, 9)
    padded[:, :1, :, :4, :5] = values
    assert torch.equal(media_fingerprints(padded), media_fingerprints(values))
    assert torch.equal(media_fingerprints(values[:, 0]), media_fingerprints(values))  # one image a row


def test_rows_are_read_a_few_at_a_time(monkeypatch):
    values = torch.rand(5, 3, 4)
    whole = media_fingerprints(values)
    for limit in (1, 25):
        monkeypatch.setattr(fingerprints, "VALUES_AT_ONCE", limit)
        assert torch.equal(media_fingerprints(values), whole)


def test_many_values_do_not_collide():
    counted = torch.arange(1, 200_001).float()[:, None]
    assert media_fingerprints(counted).unique().numel() == 200_000
    assert media_fingerprints(torch.eye(300)).unique().numel() == 300
