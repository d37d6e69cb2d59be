"""masks.py: who sees what, from lists small enough to check by eye."""

import pytest
import torch

from modeling_mm.masks import (
    check_placeholders,
    check_positions,
    cross_attention_mask,
    media_indices,
    placeholder_indices,
    text_positions,
    visible_media,
)


def test_placeholder_indices_names_the_place_of_each_placeholder_and_then_the_length():
    rows = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]]).bool()
    assert placeholder_indices(rows).tolist() == [[1, 3, 4, 4], [4, 4, 4, 4], [0, 1, 2, 3], [3, 4, 4, 4]]


def test_placeholder_indices_of_one_token_and_of_no_token():
    assert placeholder_indices(torch.tensor([[True], [False]])).tolist() == [[0], [1]]
    assert placeholder_indices(torch.zeros(2, 0, dtype=torch.bool)).shape == (2, 0)


def test_placeholder_indices_equal_a_plain_loop_on_random_rows():
    rows = torch.rand(50, 13) < 0.4
    expected = []
    for row in rows.tolist():
        places = [i for i, placeholder in enumerate(row) if placeholder]
        expected.append(places + [13] * (13 - len(places)))
    assert placeholder_indices(rows).tolist() == expected


def test_media_indices_give_every_token_of_an_item_its_placeholder_and_padding_the_length():
    is_placeholder = torch.tensor([[0, 1, 0, 1, 0], [0, 0, 1, 0, 0]]).bool()
    position = torch.tensor([[0, 0, 1, 1], [0, 0, -1, -1]])
    assert media_indices(is_placeholder, position).tolist() == [[1, 1, 3, 3], [2, 2, 5, 5]]


def test_media_indices_of_an_item_without_a_placeholder_are_never_reached():
    """More items than placeholders, and more items than tokens: both stand behind the last token."""
    is_placeholder = torch.tensor([[True, False]])
    assert media_indices(is_placeholder, torch.tensor([[0, 1, 2, 7]])).tolist() == [[0, 2, 2, 2]]


def test_a_token_sees_an_item_if_and_only_if_its_placeholder_is_at_or_before_it():
    index = torch.tensor([[1, 1, 3, 9]])
    mask = torch.tensor([[True, True, True, False]])
    visible = visible_media(index, mask, query_index=torch.arange(5))
    assert visible.int().tolist() == [
        [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]],
    ]


def test_masked_media_are_not_visible_though_their_placeholder_is():
    visible = visible_media(torch.tensor([[0, 0]]), torch.tensor([[True, False]]), torch.arange(2))
    assert visible.int().tolist() == [[[1, 0], [1, 0]]]


def test_later_query_indices_count_from_the_cache():
    visible = visible_media(torch.tensor([[2, 6]]), torch.ones(1, 2).bool(), query_index=torch.arange(2) + 5)
    assert visible.int().tolist() == [[[1, 0], [1, 1]]]


def test_cross_attention_mask_lets_a_token_that_sees_nothing_attend_and_reports_it():
    visible = torch.tensor([[[False, False], [True, False]]])
    allowed, sees = cross_attention_mask(visible, torch.float32, boolean=True)
    assert allowed.shape == (1, 1, 2, 2) and allowed.dtype == torch.bool
    assert allowed[0, 0].tolist() == [[True, True], [True, False]]
    assert sees.tolist() == [[[False], [True]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_additive_cross_attention_mask_blocks_by_the_lowest_number_of_its_dtype(dtype):
    visible = torch.tensor([[[False, False], [True, False]]])
    added, sees = cross_attention_mask(visible, dtype, boolean=False)
    lowest = torch.finfo(dtype).min
    assert added.dtype == dtype and added.shape == (1, 1, 2, 2)
    assert added[0, 0].tolist() == [[0.0, 0.0], [0.0, lowest]]
    assert sees.tolist() == [[[False], [True]]]
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
