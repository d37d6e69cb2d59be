"""The collator: exact tensors from small rows, and errors that name the row; training rows from real conversations."""

import pytest
import torch

from modeling_mm.data.sample import read_pictures, read_sounds
from modeling_mm.training.collator import IGNORED, MMCollator, encode_conversation, stack_padded
from modeling_mm.training.from_scratch import small_processor

COLLATE = MMCollator(pad_token_id=9)


def text(*ids: int, **more) -> dict[str, torch.Tensor]:
    row = torch.tensor(ids)
    return {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.clone(), **more}


def pictures(count: int, size: int = 2) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.ones(count, 3, size, size), "image_mask": torch.ones(count, dtype=torch.bool)}


def sounds(windows: int, frames: int) -> dict[str, torch.Tensor]:
    return {
        "input_features": torch.ones(windows, 4, frames),
        "feature_attention_mask": torch.ones(windows, frames, dtype=torch.long),
    }


def test_text_is_padded_on_the_right_for_training() -> None:
    batch = COLLATE([text(1, 2, 3), text(4)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, IGNORED, IGNORED]]
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_text_is_padded_on_the_left_for_generation() -> None:
    batch = MMCollator(9, padding_side="left")([text(1, 2, 3), text(4)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    with pytest.raises(ValueError, match="padding_side must be 'right' or 'left', got 'middle'"):
        MMCollator(9, padding_side="middle")


def test_rows_without_masks_and_labels_are_real_and_learn_nothing() -> None:
    batch = COLLATE([{"input_ids": torch.tensor([1, 2])}, text(3)])
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED], [3, IGNORED]]


def test_rows_with_no_one_and_two_pictures_share_a_batch() -> None:
    batch = COLLATE([text(1), text(2, **pictures(1)), text(3, **pictures(2))])
    assert batch["pixel_values"].shape == (3, 2, 3, 2, 2)
    assert batch["image_mask"].tolist() == [[False, False], [True, False], [True, True]]
    assert batch["image_mask"].dtype == torch.bool
    assert batch["pixel_values"].sum((2, 3, 4)).tolist() == [[0, 0], [12, 0], [12, 12]]


def test_sounds_of_different_length_and_number_share_a_batch() -> None:
    batch = COLLATE([text(1, **sounds(1, 5)), text(2, **sounds(2, 3)), text(3)])
    assert batch["input_features"].shape == (3, 2, 4, 5)
    assert batch["feature_attention_mask"].sum(-1).tolist() == [[5, 0], [3, 3], [0, 0]]
    assert batch["input_features"][1, 0].sum(0).tolist() == [4, 4, 4, 0, 0]


def test_raw_waves_and_ast_spectrograms_are_padded_in_time() -> None:
    waves = COLLATE([text(1, input_values=torch.ones(1, 6)), text(2, input_values=torch.ones(1, 4))])
    assert waves["input_values"].shape == (2, 1, 6)
    assert waves["feature_attention_mask"].sum(-1).tolist() == [[6], [4]]
    spectrograms = COLLATE([text(1, input_values=torch.ones(1, 6, 4)), text(2, input_values=torch.ones(2, 5, 4))])
    assert spectrograms["input_values"].shape == (2, 2, 6, 4)
    assert spectrograms["feature_attention_mask"].sum(-1).tolist() == [[6, 0], [5, 5]]


def test_pictures_of_two_sizes_are_refused_with_both_shapes() -> None:
    with pytest.raises(
        ValueError, match=r"pixel_values of row 2 has shape \(1, 3, 4, 4\), that of row 0 \(1, 3, 2, 2\)"
    ):
        COLLATE([text(1, **pictures(1)), text(2), text(3, **pictures(1, size=4))])


def test_padding_fills_behind_in_every_dimension() -> None:
    stacked = stack_padded([torch.ones(1, 2), torch.ones(2, 1), torch.ones(0, 0)])
    assert stacked.tolist() == [[[1, 1], [0, 0]], [[1, 0], [1, 0]], [[0, 0], [0, 0]]]


def test_only_the_assistants_words_and_its_end_are_learned() -> None:
    picture, sound = read_pictures()[0], read_sounds()[0]
    processor = small_processor(["Look and listen.", "a cat", "zero", "And?", "nothing else"])
    content = [{"type": "image", "path": str(picture.path)}, {"type": "audio", "path": str(sound.path)}]
    row = encode_conversation(
        processor,
        [
            {"role": "user", "content": [*content, {"type": "text", "text": "Look and listen."}]},
            {"role": "assistant", "content": "a cat, zero"},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "nothing else"},
        ],
    )
    learned = row["labels"][row["labels"] != IGNORED]
    assert processor.decode(learned) == "a cat, zero<|end|>nothing else<|end|>"
    assert row["pixel_values"].shape == (1, 3, 64, 64)
    assert row["input_features"].shape == (1, 40, 150)
    assert {name: tensor.shape[0] for name, tensor in row.items() if tensor.ndim == 1 and "mask" not in name} == {
        "input_ids": len(row["labels"]),
        "labels": len(row["labels"]),
    }


def test_a_conversation_without_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to learn"):
        encode_conversation(small_processor(["Hello"]), [{"role": "user", "content": "Hello"}])


def test_a_column_it_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="Row 1 holds position_ids"):
        MMCollator(0)([text(1, 2), text(1, 2, position_ids=torch.tensor([0, 1]))])


def test_classes_are_stacked() -> None:
    batch = MMCollator(0)([text(1, 2, labels=torch.tensor(3)), text(4, labels=torch.tensor(1))])
    assert batch["labels"].tolist() == [3, 1] and batch["input_ids"].shape == (2, 2)
