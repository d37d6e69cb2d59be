"""cross_attention_cache.py: what the cache remembers of the media, and when it forgets."""

import pytest
import torch
from transformers import DynamicCache

from modeling_mm.media_cache import CrossAttentionCache


def memory(mask=((True, True, False),), index=((1, 4, 9),)) -> CrossAttentionCache:
    return CrossAttentionCache(torch.tensor(mask), torch.tensor(index))


def keys_and_values(length: int, fill: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((1, 2, length, 4), fill), torch.full((1, 2, length, 4), -fill)


def on_a_cache(given: CrossAttentionCache) -> DynamicCache:
    cache = DynamicCache()
    given.attach_to(cache)
    return cache


def test_no_cache_and_a_fresh_cache_remember_nothing():
    assert CrossAttentionCache.of(None, 0) is None
    assert CrossAttentionCache.of(DynamicCache(), 0) is None
    assert CrossAttentionCache.of(DynamicCache(), 5) is None


def test_a_cache_gives_back_the_memory_that_was_put_on_it():
    given = memory()
    assert CrossAttentionCache.of(on_a_cache(given), 9) is given


def test_a_cache_without_text_has_been_reset_and_remembers_nothing():
    assert CrossAttentionCache.of(on_a_cache(memory()), 0) is None


@pytest.mark.parametrize(
    ("past_length", "left"),
    [(9, [True, True, False]), (5, [True, True, False]), (4, [True, False, False]), (1, [False, False, False])],
)
def test_media_whose_placeholder_was_cropped_away_are_forgotten(past_length, left):
    assert CrossAttentionCache.of(on_a_cache(memory()), past_length).mask[0].tolist() == left


def test_forgotten_media_do_not_come_back_when_text_grows_again():
    cache = on_a_cache(memory())
    CrossAttentionCache.of(cache, 2)
    assert CrossAttentionCache.of(cache, 9).mask[0].tolist() == [True, False, False]


def test_static_caches_count_in_a_tensor_and_are_never_cropped():
    given = memory()
    assert CrossAttentionCache.of(on_a_cache(given), torch.tensor(2)) is given
    assert given.mask[0].tolist() == [True, True, False]


def test_cropping_ends_the_knowledge_that_all_is_visible():
    given = memory(((True, True),), ((1, 4),))
    cache = on_a_cache(given)
    given.mark_all_visible(6)
    assert CrossAttentionCache.of(cache, 6).all_visible_from == 6
    assert CrossAttentionCache.of(cache, 5).all_visible_from is None
    assert given.mask[0].tolist() == [True, True]
    CrossAttentionCache.of(cache, 3)
    assert given.mask[0].tolist() == [True, False]


@pytest.mark.parametrize(
    ("mask", "index", "text_length", "expected"),
    [
        (((True, True),), ((1, 4),), 5, 5),
        (((True, True),), ((1, 4),), 4, None),  # the second placeholder is yet to come
        (((True, False),), ((1, 1),), 5, None),  # padding must be masked for ever
        (((True, True), (True, False)), ((0, 0), (0, 9)), 5, None),  # one row with less is enough
    ],
)
def test_all_is_visible_only_if_every_token_is_real_and_its_placeholder_past(mask, index, text_length, expected):
    given = memory(mask, index)
    given.mark_all_visible(text_length)
    assert given.all_visible_from == expected


def test_keys_and_values_grow_layer_by_layer():
    given = memory()
    first, second = keys_and_values(3, 1.0), keys_and_values(2, 2.0)
    assert given.update(5, first)[0] is first[0]
    keys, values = given.update(5, second)
    assert keys[0, 0, :, 0].tolist() == [1.0, 1.0, 1.0, 2.0, 2.0]
    assert values[0, 0, :, 0].tolist() == [-1.0, -1.0, -1.0, -2.0, -2.0]
    assert given.layers[5][0] is keys and set(given.layers) == {5}


def test_extending_leaves_the_old_memory_as_it_was():
    given = memory()
    given.update(0, keys_and_values(3, 1.0))
    longer = given.extend(torch.tensor([[True]]), torch.tensor([[12]]))
    longer.update(0, keys_and_values(1, 2.0))
    assert longer.mask.tolist() == [[True, True, False, True]] and longer.index.tolist() == [[1, 4, 9, 12]]
    assert given.mask.shape == (1, 3) and given.layers[0][0].shape[2] == 3
    assert longer.layers[0][0].shape[2] == 4
    assert longer.all_visible_from is None


def test_media_of_another_number_of_rows_are_refused_with_both_counts():
    with pytest.raises(ValueError, match=r"media of 1 rows, but the new media are for 2 rows"):
        memory().extend(torch.ones(2, 1).bool(), torch.zeros(2, 1).long())


def test_the_mask_is_left_out_only_while_decoding_with_everything_in_sight():
    given = memory(((True, True),), ((1, 4),))
    query = torch.arange(1) + 7
    mask, sees = given.attention_mask(query, torch.float32, boolean=True, decoding=True)
    assert mask.tolist() == [[[[True, True]]]] and sees.tolist() == [[[True]]]
    given.mark_all_visible(6)
    assert given.attention_mask(query, torch.float32, boolean=True, decoding=True) == (None, None)
    mask, sees = given.attention_mask(torch.arange(2), torch.float32, boolean=True, decoding=False)
    assert mask.tolist() == [[[[True, True], [True, False]]]] and sees.tolist() == [[[False], [True]]]
