"""decoder.py: the bidirectional mode (`is_causal=False`): a token reads all of its row and all of its media."""

import pytest
import torch
from transformers import DynamicCache

from tests.fakes.tiny import AUDIO, IMAGE, difference, image, inputs, labels, opened

ROWS = [[5, 6, IMAGE, 7], [8, AUDIO, 9, IMAGE, 10, 11], [12, 13]]


def moved(model, one: dict, other: dict, **options) -> list[list[bool]]:
    """Return the tokens whose logits differ between two batches."""
    with torch.no_grad():
        logits = [model(**batch, **options).logits for batch in (one, other)]
    return (difference_by_token(*logits) > 1e-6).tolist()


def difference_by_token(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one - other).abs().amax(-1)


def test_every_token_reads_the_last_one():
    batch = inputs([[5, 6, 7, 8]])
    other = {**batch, "input_ids": torch.tensor([[5, 6, 7, 9]])}
    assert moved(opened(), batch, other) == [[False, False, False, True]]
    assert moved(opened(), batch, other, is_causal=False) == [[True] * 4]


@pytest.mark.parametrize("own", [{}, {"vision_cross_attention_layers": [0], "cross_attention_stand_in": True}])
def test_every_token_reads_media_whose_placeholder_comes_later(own):
    batch = inputs([[5, 6, IMAGE, 7]], [[image(0)]])
    other = inputs([[5, 6, IMAGE, 7]], [[image(1)]])
    assert moved(opened(**own), batch, other) == [[False, False, True, True]]
    assert moved(opened(**own), batch, other, is_causal=False) == [[True] * 4]


@torch.no_grad()
def test_media_are_read_the_same_wherever_their_placeholder_is():
    """By every token directly, and not by way of the tokens behind the placeholder alone."""
    model = opened().model
    media = model.encode_media(pixel_values=image(0)[None])
    given = {"input_ids": torch.tensor([[5, 6, 7]]), "media_states": media.states, "media_mask": media.mask}
    given |= {"media_sizes": media.sizes, "is_causal": False, "use_cache": False}
    first, last = (
        model.language_model(**given, media_index=torch.full_like(media.position, place)).last_hidden_state
        for place in (0, 2)
    )
    assert difference(first, last) == 0


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_reads_neither_padding_nor_the_rows_beside_it(side, attention):
    model = opened()
    model.set_attn_implementation(attention)
    batch = inputs(ROWS, side=side)
    together = model(**batch, is_causal=False).logits
    for row in range(len(ROWS)):
        real = batch["attention_mask"][row].bool()
        alone = {name: value[row : row + 1] for name, value in batch.items()}
        alone |= {name: alone[name][:, real] for name in ("input_ids", "attention_mask")}
        assert difference(model(**alone, is_causal=False).logits[0], together[row][real]) < 1e-5


def test_eager_attention_equals_sdpa_and_checkpointed_equals_plain():
    model, batch = opened().train(), inputs(ROWS)
    found = {}
    for name in ("sdpa", "eager", "checkpointed"):
        model.set_attn_implementation("eager" if name == "eager" else "sdpa")
        if name == "checkpointed":
            model.gradient_checkpointing_enable()
        model.zero_grad()
        loss = model(**batch, labels=labels(batch), is_causal=False).loss
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found[name] = (loss.item(), gradients)
    for name in ("eager", "checkpointed"):
        assert found[name][0] == pytest.approx(found["sdpa"][0], abs=1e-5)
        off = {n: difference(g, found["sdpa"][1][n]) for n, g in found[name][1].items()}
        assert len(off) > 100 and max(off.values()) < 1e-4, max(off, key=off.get)


@torch.no_grad()
def test_there_is_no_cache():
    model, batch = opened(), inputs(ROWS)
    assert model(**batch, is_causal=False).past_key_values is None
    assert model(**batch).past_key_values is not None
    for wrong in ({"use_cache": True}, {"past_key_values": DynamicCache()}):
        with pytest.raises(ValueError, match=r"bidirectional mode \(is_causal=False\) reads a row at once"):
            model(**batch, is_causal=False, **wrong)


@torch.no_grad()
def test_the_causal_mode_is_the_same_by_name():
    model, batch = opened(), inputs(ROWS)
    assert difference(model(**batch, is_causal=True).logits, model(**batch).logits) == 0
