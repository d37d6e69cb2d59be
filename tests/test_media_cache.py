"""media_cache.py: which media a cache keeps, and when it forgets them."""

import pytest
import torch
from transformers import DynamicCache

from modeling_mm.media_cache import CrossAttentionCache


def media_cache(mask=((True, True, False),), index=((1, 4, 9),)) -> CrossAttentionCache:
    return CrossAttentionCache(torch.tensor(mask), torch.tensor(index))


def keys_and_values(length: int, fill: float, rows: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((rows, 2, length, 4), fill), torch.full((rows, 2, length, 4), -fill)


def on_a_cache(given: CrossAttentionCache) -> DynamicCache:
    cache = DynamicCache()
    cache.cross_attention_cache = given
    return cache


def later_masks(given: CrossAttentionCache, text_length: int):
    return given.later_masks(text_length, torch.float32, boolean=True)


def test_no_cache_and_a_fresh_cache_have_no_media():
    assert CrossAttentionCache.of(None, 0) is None
    assert CrossAttentionCache.of(DynamicCache(), 0) is None
    assert CrossAttentionCache.of(DynamicCache(), 5) is None


def test_a_cache_keeps_its_media_until_it_is_emptied():
    given = media_cache()
    cache = on_a_cache(given)
    assert CrossAttentionCache.of(cache, 9) is given
    assert CrossAttentionCache.of(cache, 0) is None
    assert CrossAttentionCache.of(cache, 9) is None


@pytest.mark.parametrize(
    ("past_length", "left"),
    [(9, [True, True, False]), (5, [True, True, False]), (4, [True, False, False]), (1, [False, False, False])],
)
def test_media_whose_placeholder_was_cropped_away_are_forgotten(past_length, left):
    assert CrossAttentionCache.of(on_a_cache(media_cache()), past_length).mask[0].tolist() == left


def test_forgotten_media_do_not_come_back_when_text_grows_again():
    cache = on_a_cache(media_cache())
    CrossAttentionCache.of(cache, 2)
    assert CrossAttentionCache.of(cache, 9).mask[0].tolist() == [True, False, False]


def test_static_caches_count_in_a_tensor_and_are_never_cropped():
    given = media_cache()
    assert CrossAttentionCache.of(on_a_cache(given), torch.tensor(2)) is given
    assert given.mask[0].tolist() == [True, True, False]


def test_cropping_forgets_media_and_the_masks_of_later_tokens():
    given = media_cache(((True, True),), ((1, 4),))
    cache = on_a_cache(given)
    assert later_masks(given, 6) == (None, None)
    for past_length, left in ((6, [True, True]), (5, [True, True]), (3, [True, False])):
        assert CrossAttentionCache.of(cache, past_length).mask[0].tolist() == left
    assert later_masks(given, 3)[0].tolist() == [[[[True, False]]]]


@pytest.mark.parametrize(
    ("mask", "index", "text_length", "expected"),
    [
        (((True, True),), ((1, 4),), 5, None),
        (((True, True),), ((1, 4),), 4, [[True, False]]),  # the second placeholder is yet to come
        (((True, False),), ((1, 1),), 5, [[True, False]]),  # padding
        (((True, True), (True, False)), ((0, 0), (0, 9)), 5, [[True, True], [True, False]]),  # in one row
        (((False, False),), ((1, 1),), 5, [[True, True]]),  # without media; has_media drops it
        (((True, True),), ((0, 0), (1, 4)), 5, None),  # media of one row for two
    ],
)
def test_later_tokens_need_no_mask_only_if_they_all_see_all_media(mask, index, text_length, expected):
    allowed, has_media = later_masks(media_cache(mask, index), text_length)
    assert (allowed if allowed is None else allowed[:, 0, 0].tolist()) == expected
    if expected is not None:
        assert has_media[:, 0, 0].tolist() == [any(row) for row in mask]


def test_masks_of_later_tokens_are_made_once():
    given = media_cache()
    first = later_masks(given, 5)
    assert later_masks(given, 8)[0] is first[0] and CrossAttentionCache.of(on_a_cache(given), 8) is given
    assert later_masks(given, 8)[0] is first[0]


def test_keys_and_values_grow_layer_by_layer():
    given = media_cache()
    first, second = keys_and_values(3, 1.0), keys_and_values(2, 2.0)
    assert given.update(5, first)[0] is first[0]
    keys, values = given.update(5, second)
    assert keys[0, 0, :, 0].tolist() == [1.0, 1.0, 1.0, 2.0, 2.0]
    assert values[0, 0, :, 0].tolist() == [-1.0, -1.0, -1.0, -2.0, -2.0]
    assert given.layers[5][0] is keys and set(given.layers) == {5}


def test_extending_leaves_the_old_memory_as_it_was():
    given = media_cache()
    given.update(0, keys_and_values(3, 1.0))
    longer = given.extend(torch.tensor([[True]]), torch.tensor([[12]]))
    longer.update(0, keys_and_values(1, 2.0))
    assert longer.mask.tolist() == [[True, True, False, True]] and longer.index.tolist() == [[1, 4, 9, 12]]
    assert given.mask.shape == (1, 3) and given.layers[0][0].shape[2] == 3
    assert longer.layers[0][0].shape[2] == 4
    assert longer.visible_from is None


def test_media_of_another_number_of_rows_are_refused_with_both_counts():
    with pytest.raises(ValueError, match=r"media of 1 rows, but the new media are for 2 rows"):
        media_cache().extend(torch.ones(2, 1).bool(), torch.zeros(2, 1).long())


def test_media_of_one_row_are_extended_by_media_of_several():
    given = media_cache(((True,),), ((1,), (2,)))
    given.update(0, keys_and_values(1, 1.0))
    longer = given.extend(torch.tensor([[True], [False]]), torch.tensor([[5], [9]]))
    keys, _ = longer.update(0, keys_and_values(1, 2.0, rows=2))
    assert longer.mask.tolist() == [[True, True], [True, False]] and longer.index.tolist() == [[1, 5], [2, 9]]
    assert keys[:, 0, :, 0].tolist() == [[1.0, 2.0], [1.0, 2.0]]
