"""batching.py: exact batches from small rows, and errors that name the row."""

from functools import partial

import pytest
import torch

from modeling_mm.batching import IGNORED, pad_batch, pad_rows, stack_padded
from modeling_mm.modalities import MODALITIES
from tests.fakes.processor_parts import make
from tests.fakes.radar import RADAR

batch_of = partial(pad_batch, pad_token_id=9)


def text(*ids: int, **more) -> dict[str, torch.Tensor]:
    row = torch.tensor(ids)
    return {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row.clone(), **more}


def images(count: int, size: int = 2) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.ones(count, 3, size, size), "image_mask": torch.ones(count, dtype=torch.bool)}


def audio(windows: int, frames: int) -> dict[str, torch.Tensor]:
    return {
        "input_features": torch.ones(windows, 4, frames),
        "feature_attention_mask": torch.ones(windows, frames, dtype=torch.long),
    }


# ---- Text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_text_is_padded_on_one_side(side) -> None:
    batch = batch_of([text(1, 2, 3), text(4)], padding_side=side)
    expected = {"input_ids": [4, 9, 9], "attention_mask": [1, 0, 0], "labels": [4, IGNORED, IGNORED]}
    for name, row in expected.items():
        assert batch[name].tolist()[1] == (row if side == "right" else row[::-1])
    assert batch["input_ids"].tolist()[0] == [1, 2, 3] and set(batch) == set(expected)


def test_another_side_is_refused() -> None:
    with pytest.raises(ValueError, match="padding_side must be 'right' or 'left', got 'middle'"):
        batch_of([text(1)], padding_side="middle")


def test_rows_without_masks_and_labels_are_real_and_learn_nothing() -> None:
    batch = batch_of([{"input_ids": torch.tensor([1, 2])}, text(3)])
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED], [3, IGNORED]]


def test_classes_are_stacked() -> None:
    batch = batch_of([text(1, 2, labels=torch.tensor(3)), text(4, labels=torch.tensor(1))])
    assert batch["labels"].tolist() == [3, 1] and batch["input_ids"].shape == (2, 2)


@pytest.mark.parametrize(
    ("options", "length"), [({"min_length": 5}, 5), ({"pad_to_multiple_of": 4}, 4), ({"min_length": 2}, 3)]
)
def test_text_of_a_fixed_length(options, length) -> None:
    batch = batch_of([text(1, 2, 3), text(4)], padding_side="left", **options)
    assert batch["input_ids"].tolist() == [[9] * (length - 3) + [1, 2, 3], [9] * (length - 1) + [4]]
    assert batch["attention_mask"].sum(1).tolist() == [3, 1] and batch["labels"].shape == (2, length)


# ---- Media ----------------------------------------------------------------------------------------------------------


def test_rows_with_no_one_and_two_images_share_a_batch() -> None:
    batch = batch_of([text(1), text(2, **images(1)), text(3, **images(2))])
    assert batch["pixel_values"].shape == (3, 2, 3, 2, 2)
    assert batch["image_mask"].tolist() == [[False, False], [True, False], [True, True]]
    assert batch["image_mask"].dtype == torch.bool
    assert batch["pixel_values"].sum((2, 3, 4)).tolist() == [[0, 0], [12, 0], [12, 12]]


def test_audio_of_different_length_and_number_shares_a_batch() -> None:
    batch = batch_of([text(1, **audio(1, 5)), text(2, **audio(2, 3)), text(3)])
    assert batch["input_features"].shape == (3, 2, 4, 5)
    assert batch["feature_attention_mask"].sum(-1).tolist() == [[5, 0], [3, 3], [0, 0]]
    assert batch["input_features"][1, 0].sum(0).tolist() == [4, 4, 4, 0, 0]


def test_raw_waves_and_ast_spectrograms_are_padded_in_time() -> None:
    waves = batch_of([text(1, input_values=torch.ones(1, 6)), text(2, input_values=torch.ones(1, 4))])
    assert waves["input_values"].shape == (2, 1, 6)
    assert waves["feature_attention_mask"].sum(-1).tolist() == [[6], [4]]
    spectrograms = batch_of([text(1, input_values=torch.ones(1, 6, 4)), text(2, input_values=torch.ones(2, 5, 4))])
    assert spectrograms["input_values"].shape == (2, 2, 6, 4)
    assert spectrograms["feature_attention_mask"].sum(-1).tolist() == [[6, 0], [5, 5]]


def test_encoder_states_share_a_batch() -> None:
    windows = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    rows = [
        text(1, vision_states=torch.ones(2, 5, 3)),
        text(2, audio_states=torch.ones(2, 4, 3), audio_states_mask=windows),
        text(3, audio_states=torch.ones(1, 2, 3), vision_states=torch.ones(1, 5, 3)),
    ]
    batch = batch_of(rows)
    assert batch["vision_states"].shape == (3, 2, 5, 3) and batch["audio_states"].shape == (3, 2, 4, 3)
    assert batch["image_mask"].tolist() == [[True, True], [False, False], [True, False]]
    assert batch["audio_states_mask"].dtype == torch.bool
    assert batch["audio_states_mask"].sum(-1).tolist() == [[0, 0], [2, 4], [2, 0]]


def test_a_modality_of_another_table_is_padded_as_the_table_says(monkeypatch) -> None:
    monkeypatch.setitem(MODALITIES, "radar", RADAR)
    batch = batch_of([text(1, echoes=torch.ones(1, 3, 2)), text(2), text(3, echoes=torch.ones(2, 1, 2))])
    assert batch["echoes"].shape == (3, 2, 3, 2)
    assert batch["echo_mask"].sum(-1).tolist() == [[3, 0], [0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [text(1, **images(1)), text(2), text(3, **images(1, size=4))],
            r"pixel_values of row 2 has shape \(1, 3, 4, 4\), that of row 0 \(1, 3, 2, 2\); they cannot share",
        ),
        (
            [text(1, input_features=torch.ones(1, 4, 5)), text(2, input_features=torch.ones(1, 3, 5))],
            r"input_features of row 1 has shape \(1, 3, 5\)",
        ),
        ([text(1), text(1, position_ids=torch.tensor([0]))], "Row 0 holds no position_ids, but row 1 does"),
    ],
)
def test_rows_that_cannot_share_a_batch_are_refused_by_name(rows, message) -> None:
    with pytest.raises(ValueError, match=message):
        batch_of(rows)


def test_padding_fills_behind_in_every_dimension() -> None:
    stacked = stack_padded([torch.ones(1, 2), torch.ones(2, 1), torch.ones(0, 0)])
    assert stacked.tolist() == [[[1, 1], [0, 0]], [[1, 0], [1, 0]], [[0, 0], [0, 0]]]


def test_items_are_dealt_out_to_rows() -> None:
    assert pad_rows(torch.tensor([1, 2, 3]), [2, 0, 1]).tolist() == [[1, 2], [0, 0], [3, 0]]


def test_rows_of_equally_many_items_are_not_copied() -> None:
    items = torch.arange(8).reshape(4, 2)  # (N, D)
    for count in (1, 2):
        dealt = pad_rows(items, [count] * (4 // count))
        assert dealt.tolist() == items.reshape(4 // count, count, 2).tolist() and dealt.data_ptr() == items.data_ptr()


# ---- The processor's own --------------------------------------------------------------------------------------------


def test_a_processor_pads_as_its_tokenizer_does_with_media() -> None:
    processor = make()
    rows = [{"input_ids": [1, 2, 3]}, text(4, **images(1))]
    batch = processor.pad(rows)
    padding = processor.tokenizer.pad_token_id
    assert batch.input_ids.tolist() == [[1, 2, 3], [padding, padding, 4]] and batch.image_mask.tolist() == [[0], [1]]
    right = processor.pad(rows, padding_side="right", return_tensors="np", pad_to_multiple_of=8)
    assert right["input_ids"].tolist()[1] == [4, *[padding] * 7] and right["pixel_values"].shape == (2, 1, 3, 2, 2)
    assert processor.pad(rows, padding="max_length", max_length=5).attention_mask.shape == (2, 5)
    plain = [{"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]}, {"input_ids": [4], "attention_mask": [1]}]
    expected = processor.tokenizer.pad(plain, return_tensors="pt")
    assert all(torch.equal(processor.pad(plain)[name], expected[name]) for name in expected)
