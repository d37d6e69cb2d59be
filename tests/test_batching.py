"""batching.py: rows with and without media in one batch."""

import pytest
import torch

from modeling_mm.batching import collate_rows


def test_rows_with_and_without_media_make_one_batch():
    rows = [
        {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long), "text": "a"},
        {
            "input_ids": torch.tensor([[8]]),
            "attention_mask": torch.ones(1, 1, dtype=torch.long),
            "pixel_values": torch.ones(1, 2, 3, 4, 4),
            "image_mask": torch.ones(1, 2, dtype=torch.bool),
            "input_values": torch.ones(1, 1, 6),
            "feature_attention_mask": torch.ones(1, 1, 6, dtype=torch.long),
        },
        {"input_ids": torch.tensor([[9, 9]]), "attention_mask": torch.ones(1, 2, dtype=torch.long), "text": "b"},
    ]
    rows[2] |= {"input_values": torch.ones(1, 2, 4), "feature_attention_mask": torch.ones(1, 2, 4, dtype=torch.long)}
    batch = collate_rows(rows, pad_token_id=1)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [1, 1, 8], [1, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert batch["text"] == ["a", None, "b"]
    assert batch["pixel_values"].shape == (3, 2, 3, 4, 4)
    assert batch["image_mask"].tolist() == [[False, False], [True, True], [False, False]]
    assert batch["input_values"].shape == (3, 2, 6)
    assert batch["feature_attention_mask"].sum(-1).tolist() == [[0, 0], [6, 0], [4, 4]]


def test_pictures_of_different_sizes_are_no_batch():
    rows = [{"pixel_values": torch.ones(1, 1, 3, size, size)} for size in (4, 8)]
    with pytest.raises(ValueError, match=r"one size, got \[\(3, 4, 4\), \(3, 8, 8\)\].*batch_size"):
        collate_rows(rows, 0)
