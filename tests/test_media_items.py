"""Numbers of items (`max_media_items`): a text tells the first image from the second, however the media come to it."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

from tests.fakes.tiny import (
    AUDIO,
    IMAGE,
    PAD,
    difference,
    image,
    inputs,
    opened,
    pad_audio,
    pad_images,
    sound,
)

TOLERANCE = 1e-5
CHANGE = 1e-3  # a hundred times what rounding changes
NUMBERED = {"max_media_items": 3, "placeholders": "hidden"}
ROW = [IMAGE, IMAGE, 5, 6, 7]


@pytest.fixture(scope="module")
def model():
    return opened(**NUMBERED)


def hidden(rows, images=None, sounds=None, **options):
    """A batch whose placeholders are masked."""
    batch = inputs(rows, images, sounds, **options)
    is_hidden = torch.isin(batch["input_ids"], torch.tensor([IMAGE, AUDIO, PAD]))
    return {**batch, "attention_mask": batch["attention_mask"].masked_fill(is_hidden, 0)}


def split(batch):
    """The text of a batch, and its media."""
    text = ("input_ids", "attention_mask")
    return {name: batch[name] for name in text}, {name: batch[name] for name in batch if name not in text}


@torch.no_grad()
def last_logits(model, **kwargs):
    return model(**kwargs).logits[:, -1]


# ---- The order of items ---------------------------------------------------------------------------------------------


def test_the_order_of_images_before_a_text_is_seen_with_numbers(model):
    one, other = (hidden([ROW], [[image(i), image(1 - i)]]) for i in range(2))
    assert difference(last_logits(model, **one), last_logits(model, **other)) > CHANGE


def test_the_order_of_images_before_a_text_is_not_seen_without_numbers():
    model = opened(placeholders="hidden")
    one, other = (hidden([ROW], [[image(i), image(1 - i)]]) for i in range(2))
    assert difference(last_logits(model, **one), last_logits(model, **other)) < TOLERANCE


def test_the_order_of_windows_of_audio_is_seen_too_and_images_are_not_counted_with_them(model):
    row = [IMAGE, AUDIO, AUDIO, 5, 6]
    one, other = (hidden([row], [[image(0)]], [[sound(i), sound(1 - i)]]) for i in range(2))
    first = last_logits(model, **one)
    assert difference(first, last_logits(model, **other)) > CHANGE
    weights = [getattr(model.model, f"{tower}_connector").items.weight for tower in ("vision", "audio")]
    third = [weight[2].clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight[2] += 1.0
        assert difference(last_logits(model, **one), first) == 0  # nothing here is a third item
        for weight, before in zip(weights, third, strict=True):
            weight[2] = before


# ---- Ways of giving the same media ----------------------------------------------------------------------------------

ROWS = [[IMAGE, IMAGE, IMAGE, 5, 6], [IMAGE, AUDIO, AUDIO, 8, 9], [7, 8, 5], [IMAGE, 4]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_with_unlike_numbers_of_items_are_as_each_alone(model, side):
    batch = hidden(ROWS, side=side)
    with torch.no_grad():
        logits = model(**batch).logits
    for number, row in enumerate(ROWS):
        images = [[image(10 * number + j) for j in range(row.count(IMAGE))]]
        sounds = [[sound(10 * number + j) for j in range(row.count(AUDIO))]]
        alone = last_logits(model, **hidden([row], images, sounds))
        last = -1 if side == "left" else len(row) - 1
        assert difference(logits[number : number + 1, last], alone) < TOLERANCE, number


def test_media_that_are_encoded_before_are_numbered_once(model):
    batch = hidden(ROWS)
    text, media = split(batch)
    with torch.no_grad():
        encoded = model.encode_media(**media)
        assert difference(model(**text, media=encoded).logits, model(**batch).logits) == 0


def test_one_row_of_media_serves_all_rows_of_text(model):
    batch = hidden([ROW, ROW], [[image(0), image(1)]] * 2)
    text, _ = split(batch)
    with torch.no_grad():
        encoded = model.encode_media(**pad_images([[image(0), image(1)]]))
        assert difference(model(**text, media=encoded).logits, model(**batch).logits) < TOLERANCE


def test_states_of_an_encoder_are_numbered_as_its_images_are(model):
    batch = hidden([ROW])
    text, media = split(batch)
    with torch.no_grad():
        states = model.get_image_features(media["pixel_values"][0]).last_hidden_state[None]  # (1, 2, L, W)
        assert difference(last_logits(model, **text, vision_states=states), last_logits(model, **batch)) < TOLERANCE


def test_items_behind_a_gap_are_numbered_from_the_first_that_is_real(model):
    text, media = split(hidden([[IMAGE, 5, 6]]))
    gap = pad_images([[image(9), image(0)]])
    gap["image_mask"] = torch.tensor([[False, True]])
    assert difference(last_logits(model, **text, **gap), last_logits(model, **text, **media)) < TOLERANCE


# ---- Later steps ----------------------------------------------------------------------------------------------------


def in_two_steps(model, batch, media, cut, cache=None):
    """The last logits of a text whose media come in two steps, with the tokens up to `cut` in the first."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        cache = model(ids[:, :cut], mask[:, :cut], **media[0], past_key_values=cache, use_cache=True).past_key_values
        return model(ids[:, cut:], mask, **media[1], past_key_values=cache).logits[:, -1]


@pytest.mark.parametrize("kind", [None, "dynamic", "static"])
def test_items_of_a_later_step_count_on_from_those_in_the_cache(model, kind):
    caches = {"dynamic": DynamicCache, "static": lambda: StaticCache(config=model.config, max_cache_len=16)}
    rows = [[IMAGE, AUDIO, 5, 6, IMAGE, 7, 8], [IMAGE, AUDIO, 5, 9, 4, 3, 8]]
    images, sounds = [[image(0), image(1)], [image(2)]], [[sound(0)], [sound(1)]]
    batch = hidden(rows, images, sounds)
    first = pad_images([row[:1] for row in images]) | pad_audio(sounds)
    second = pad_images([row[1:] for row in images])
    found = in_two_steps(model, batch, (first, second), 4, caches[kind]() if kind else None)
    assert difference(found, last_logits(model, **batch)) < TOLERANCE


def test_items_whose_placeholders_were_cropped_are_not_counted(model):
    batch = hidden([[IMAGE, 5, IMAGE, 6]])
    with torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
        cache.crop(-2)
        mask = batch["attention_mask"]
        again = model(batch["input_ids"][:, 2:], mask, **pad_images([[image(1)]]), past_key_values=cache).logits
    assert difference(again[:, -1], last_logits(model, **batch)) < TOLERANCE


@pytest.mark.parametrize("empty", [lambda cache: cache.reset(), lambda cache: cache.crop(-cache.get_seq_length())])
def test_a_cache_that_was_emptied_begins_to_count_again(model, empty):
    cache = DynamicCache()
    with torch.no_grad():
        model(**hidden([ROW]), past_key_values=cache, use_cache=True)
    empty(cache)
    if cache.get_seq_length() > 0:
        pytest.skip("`reset` of a dynamic cache zeroes it in 5.17, but keeps its length: it is not empty")
    batch = hidden([[5, 6, IMAGE, 7]])
    media = split(batch)[1]
    assert difference(in_two_steps(model, batch, ({}, media), 2, cache), last_logits(model, **batch)) < TOLERANCE


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}], ids=str)
def test_generation_sees_the_order_that_forward_sees(model, options):
    """Every way writes what greedy search by hand without a cache writes."""
    batch = hidden([ROW])
    found = model.generate(**batch, **options, do_sample=False, max_new_tokens=1, min_new_tokens=1)
    scores = last_logits(model, **batch)
    scores[:, [0, *range(IMAGE, PAD + 1)]] = -torch.inf
    assert found[0, -1].item() == scores.argmax().item()


# ---- More items than numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoded", [False, True])
def test_a_row_with_more_items_than_numbers_is_refused(model, encoded):
    text, media = split(hidden([[IMAGE] * 4 + [5]]))
    media = {"media": model.encode_media(**media)} if encoded else media
    with pytest.raises(ValueError, match="A row has 4 items of a modality, but max_media_items is 3"):
        model(**text, **media)


def test_padding_of_a_batch_is_no_item(model):
    text, _ = split(hidden([[IMAGE, 5, 6]]))
    padded = pad_images([[image(0)]], size=5)
    assert torch.isfinite(last_logits(model, **text, **padded)).all()


def test_items_of_all_steps_together_may_not_be_more_than_numbers(model):
    batch = hidden([[IMAGE, IMAGE, 5, IMAGE, IMAGE, 6]])
    media = [pad_images([[image(0), image(1)]]), pad_images([[image(2), image(3)]])]
    with pytest.raises(ValueError, match="A row has 4 items of a modality, but max_media_items is 3"):
        in_two_steps(model, batch, media, 3)


def test_direct_connectors_take_any_number_of_items():
    model = opened(vision_connector="direct", audio_connector="direct", max_media_items=1, placeholders="hidden")
    assert not any("items" in name for name, _ in model.named_parameters())
    assert torch.isfinite(last_logits(model, **hidden([ROW]))).all()


# ---- Learning and compiling -----------------------------------------------------------------------------------------


def test_only_numbers_that_occur_learn(model):
    batch = hidden([ROW])
    model.zero_grad()
    model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss.backward()
    learned = model.model.vision_connector.items.weight.grad.abs().amax(-1)
    assert (learned[:2] > 0).all() and learned[2] == 0
    assert model.model.audio_connector.items.weight.grad is None
    model.zero_grad()


def test_a_compiled_graph_gives_the_same(model):
    batch = hidden(ROWS)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(**batch).logits
    found = batch["attention_mask"].bool()
    with torch.no_grad():
        assert difference(compiled[found], model(**batch).logits[found]) < TOLERANCE
