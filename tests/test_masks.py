"""masks.py: masks and positions from lists small enough to check by eye."""

import pytest
import torch

from modeling_mm.masks import (
    check_continuous,
    check_placeholders,
    check_positions,
    cross_attention_mask,
    first_visible,
    mask_of_padding,
    mask_tokens_without_media,
    packed_examples,
    text_positions,
)


def test_cross_attention_mask_lets_a_token_without_media_attend_and_reports_it():
    visible = torch.tensor([[[False, False], [True, False]]])
    allowed, has_media = cross_attention_mask(visible, torch.float32, boolean=True)
    assert allowed.shape == (1, 1, 2, 2) and allowed.dtype == torch.bool
    assert allowed[0, 0].tolist() == [[True, True], [True, False]]
    assert has_media.tolist() == [[[False], [True]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_additive_cross_attention_mask_blocks_by_the_lowest_number_of_its_dtype(dtype):
    visible = torch.tensor([[[False, False], [True, False]]])
    added, has_media = cross_attention_mask(visible, dtype, boolean=False)
    lowest = torch.finfo(dtype).min
    assert added.dtype == dtype and added.shape == (1, 1, 2, 2)
    assert added[0, 0].tolist() == [[0.0, 0.0], [0.0, lowest]]
    assert has_media.tolist() == [[[False], [True]]]
    assert torch.isfinite((added.float()).softmax(-1)).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_positions_do_not_move_with_padding(side):
    rows = {"left": [[0, 0, 1, 1, 1]], "right": [[1, 1, 1, 0, 0]]}
    positions = text_positions(torch.tensor(rows[side]), 5, 0, "cpu")
    real = torch.tensor(rows[side]).bool()
    assert positions[real].tolist() == [0, 1, 2]
    assert positions.min() >= 0


def test_text_positions_of_a_cached_step_are_the_last_ones_of_the_mask():
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    assert text_positions(mask, 2, 4, "cpu").tolist() == [[2, 3], [4, 5]]


@pytest.mark.parametrize("past_length", [4, torch.tensor(4)], ids=["int", "tensor"])
def test_text_positions_without_a_mask_count_from_the_cache(past_length):
    assert text_positions(None, 3, past_length, "cpu").tolist() == [[4, 5, 6]]


def test_text_positions_ignore_a_prepared_4d_mask():
    assert text_positions(torch.zeros(1, 1, 3, 3), 3, 0, "cpu").tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([[1, 1, 1], [1, 1, 1]], 0),
        ([[0, 1, 1], [0, 1, 1]], 1),
        ([[0, 0, 1]], 2),
        ([[0, 1, 1], [1, 1, 1]], None),  # other paddings
        ([[0, 1, 1], [1, 0, 1]], None),  # as many hidden, but not the same
        ([[1, 0, 1], [1, 0, 1]], None),  # not the first
        ([[0, 0, 0], [0, 0, 0]], None),
        ([[0, 0, 0], [1, 1, 1]], None),
        ([[2, 0, 1], [2, 0, 1]], None),  # anything but zero is visible
    ],
)
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32], ids=str)
def test_what_is_hidden_in_front_of_all_rows_is_counted(rows, expected, dtype):
    assert first_visible(torch.tensor(rows).to(dtype)) == expected


def test_check_placeholders_names_the_first_wrong_row_both_counts_and_the_id():
    with pytest.raises(ValueError) as raised:
        check_placeholders("image", 90, placeholders=[1, 3, 0], items=[1, 2, 1])
    message = str(raised.value)
    assert message.startswith("Row 1: 3 image placeholder token(s) (id 90)")
    assert "for 2 image(s)" in message and "MMProcessor" in message


def test_check_placeholders_is_silent_where_the_counts_agree():
    check_placeholders("audio", None, placeholders=[0, 2], items=[0, 2])


def test_check_positions_names_the_row_its_length_the_limit_and_the_remedy():
    positions = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]])
    check_positions(positions, 5)
    with pytest.raises(ValueError, match=r"^Row 1: 5 text tokens, but the decoder has 4 positions\..*sinusoidal"):
        check_positions(positions, 4)


def test_check_positions_refuses_negative_ones():
    with pytest.raises(ValueError, match=r"^Row 1: position_ids must not be negative, got -2"):
        check_positions(torch.tensor([[0, 1], [-2, 0]]), 4)


def test_positions_that_jump_are_refused_with_the_row():
    check_continuous(torch.tensor([[0, 1, 2], [0, 0, 1]]))
    with pytest.raises(ValueError, match=r"^Row 1: position_ids neither count on"):
        check_continuous(torch.tensor([[0, 1, 2], [0, 2, 3]]))


def test_positions_that_start_again_number_the_examples_of_a_row():
    positions = torch.tensor([[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]])
    assert packed_examples(positions, None).tolist() == [[1, 1, 2, 2, 2, 3], [0] * 6]
    assert packed_examples(positions[1:], None) is None


def test_a_masked_token_at_the_first_position_starts_the_example_behind_it():
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 0, 0]])
    positions = torch.tensor([[0, 0, 1, 0, 0, 0, 0, 0]])  # two examples behind hidden placeholders, and padding
    assert packed_examples(positions, mask).tolist() == [[1, 1, 1, 2, 2, 2, 2, 2]]
    inside = torch.tensor([[1, 0, 1, 0, 1]]), torch.tensor([[0, 0, 1, 1, 0]])  # a hidden one behind the first token
    assert packed_examples(inside[1], inside[0]).tolist() == [[1, 1, 1, 1, 2]]
    left_padding = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1, 1, 0, 1]]), torch.tensor([[0, 0, 0, 1]])
    for given in left_padding[1:]:
        assert packed_examples(given, left_padding[0]) is None


def test_tokens_without_media_get_exactly_zero_even_for_what_is_not_a_number():
    branch = torch.tensor([[[float("nan")], [2.0]]])
    assert mask_tokens_without_media(branch, torch.tensor([[[False], [True]]])).flatten().tolist() == [0.0, 2.0]
    assert mask_tokens_without_media(branch, None) is branch


def test_zeros_beyond_a_rows_placeholders_are_padding():
    items = torch.ones(3, 2, 1, 1)
    items[1, 1] = items[2] = 0
    assert mask_of_padding(items, [2, 1, 0]).tolist() == [[True, True], [True, False], [False, False]]
    assert mask_of_padding(items, [2, 2, 2]) is None, "zeros are an item where there is a placeholder for them"
    assert mask_of_padding(items, [1, 1, 0]) is None, "what is not zero is no padding"
    assert mask_of_padding(items, [3, 1, 0]) is None and mask_of_padding(items, [2, 1]) is None
