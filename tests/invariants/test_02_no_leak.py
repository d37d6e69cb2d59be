"""Invariant 2: tokens that see no media have text-only logits, exactly (== 0.0), also after training and in mixed
batches; the attention and the feed-forward of the gated block are both silent there."""

import pytest
import torch

from tests.fakes.tiny import (
    AUDIO,
    CONNECTORS,
    IMAGE,
    cross_parameters,
    difference,
    image,
    inputs,
    joined,
    labels,
    opened,
    sound,
    train,
)

# Words before the first placeholder, and rows without any, in one batch.
ROWS = [[5, 6, 7, IMAGE, 8, 9, 10, 11], [12, 13, 14, 15, 16, AUDIO, 17, 18], [19, 20, 21, 22, 23, 24, 25, 26]]
BLIND = [slice(0, 3), slice(0, 5), slice(0, 8)]
SIGHTED = [slice(3, 8), slice(5, 8)]
KINDS = [
    pytest.param({"cross_attention_gated": gated, "cross_attention_feed_forward": ffn}, id=f"{name}-{ffn_name}")
    for gated, name in ((True, "gated"), (False, "ungated"))
    for ffn, ffn_name in ((True, "ffn"), (False, "no_ffn"))
]


def check_no_leak(model, side="right"):
    with torch.no_grad():
        one = model(**inputs(ROWS, seed=0, side=side)).logits
        other = model(**inputs(ROWS, seed=50, side=side)).logits
    for i, (blind, row) in enumerate(zip(BLIND, ROWS, strict=True)):
        moved = difference(one[i, blind], other[i, blind])
        assert moved == 0.0, f"row {i}: text before the media moved by {moved} when the media changed"
        if i < 2:
            assert (one[i, SIGHTED[i]] - other[i, SIGHTED[i]]).abs().amax(-1).min() > 1e-4, f"row {i} is blind: {row}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_text_before_the_media_moves_by_exactly_0(kind, implementation):
    model = opened(**kind)
    model.set_attn_implementation(implementation)
    check_no_leak(model)


@pytest.mark.parametrize("connector", CONNECTORS)
def test_no_leak_through_any_connector(connector):
    check_no_leak(opened(vision_connector=connector, audio_connector=connector))


@pytest.mark.parametrize("encoding", ["sinusoidal", "learned", "none"])
@pytest.mark.parametrize("text_encoding", ["sinusoidal", "learned"])
def test_no_leak_with_any_position_encoding(encoding, text_encoding):
    check_no_leak(opened(media_position_encoding=encoding, text_position_encoding=text_encoding))


@pytest.mark.parametrize("kind", KINDS)
def test_no_leak_after_5_steps_of_training_in_mixed_batches(kind):
    model = joined(**kind)
    batch = inputs(ROWS)
    train(model, [batch | {"labels": labels(batch)}], steps=5, lr=1e-2)
    moved = [name for name, p in cross_parameters(model).items() if name.endswith("gate_attn.weight") and p.abs() > 0]
    assert moved or not kind["cross_attention_gated"], "the gates did not open"
    check_no_leak(model)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tokens_that_see_no_media_have_text_only_logits(kind):
    """Exactly those of the same batch with silent cross blocks, and to 1e-5 those of the text run without media."""
    model = opened(**kind)
    batch = inputs(ROWS)
    actual = model(**batch).logits
    for i, blind in enumerate(BLIND):
        alone = model(input_ids=torch.tensor([ROWS[i][blind]])).logits[0]
        assert difference(actual[i, blind], alone) <= 1e-5, f"row {i}"
    for name, parameter in cross_parameters(model).items():
        last = "gate_" in name if kind["cross_attention_gated"] else "c_proj" in name
        if last:
            parameter.zero_()
    silent = model(**batch).logits
    for i, blind in enumerate(BLIND):
        assert difference(actual[i, blind], silent[i, blind]) == 0.0, f"row {i}"
    assert difference(actual[0, SIGHTED[0]], silent[0, SIGHTED[0]]) > 1e-2


@pytest.mark.parametrize("branch", ["attn", "mlp"])
@torch.no_grad()
def test_each_branch_alone_is_silent_where_no_media_is_seen(branch):
    """Opening only the gate of the attention, or of the feed-forward: neither leak can hide behind the other."""
    model = joined()
    batch = inputs(ROWS)
    closed = model(**batch).logits
    for name, parameter in cross_parameters(model).items():
        if name.endswith(f"gate_{branch}.weight"):
            parameter.fill_(0.9)
    actual = model(**batch).logits
    for i, blind in enumerate(BLIND):
        assert difference(actual[i, blind], closed[i, blind]) == 0.0, f"row {i}"
    for i, sighted in enumerate(SIGHTED):
        assert (actual[i, sighted] - closed[i, sighted]).abs().amax(-1).min() > 1e-4, f"row {i}: the branch is dead"


def test_gradient_of_earlier_text_to_media_is_exactly_0():
    model = opened()
    batch = inputs(ROWS)
    for name in ("pixel_values", "input_features"):
        batch[name].requires_grad_(True)
    logits = model(**batch).logits
    blind = torch.stack([logits[i, blind].square().sum() for i, blind in enumerate(BLIND)]).sum()
    for name in ("pixel_values", "input_features"):
        (gradient,) = torch.autograd.grad(blind, batch[name], retain_graph=True, allow_unused=True)
        assert gradient is None or gradient.abs().max() == 0.0, name
        (gradient,) = torch.autograd.grad(logits.square().sum(), batch[name], retain_graph=True)
        assert gradient.abs().max() > 0.0, name


def test_second_image_does_not_move_the_text_between_the_two():
    model = opened()
    row = [5, IMAGE, 6, 7, 8, IMAGE, 9, 10]
    with torch.no_grad():
        one = model(**inputs([row], images=[[image(0), image(1)]])).logits[0]
        other = model(**inputs([row], images=[[image(0), image(2)]])).logits[0]
        swapped = model(**inputs([row], images=[[image(3), image(1)]])).logits[0]
    assert difference(one[:5], other[:5]) == 0.0
    assert (one[5:] - other[5:]).abs().amax(-1).min() > 1e-4
    assert difference(one[:1], swapped[:1]) == 0.0
    assert (one[1:] - swapped[1:]).abs().amax(-1).min() > 1e-4


def test_a_sound_after_an_image_does_not_move_the_text_between_the_two():
    model = opened()
    row = [5, IMAGE, 6, 7, AUDIO, 9, 10]
    with torch.no_grad():
        one = model(**inputs([row], audio=[[sound(0)]])).logits[0]
        other = model(**inputs([row], audio=[[sound(1)]])).logits[0]
    assert difference(one[:4], other[:4]) == 0.0
    assert (one[4:] - other[4:]).abs().amax(-1).min() > 1e-4


def test_left_padded_rows_do_not_leak_either():
    model = opened()
    rows = [[5, 6, 7, IMAGE, 8], [12, 13, 14, 15, 16, 17, AUDIO, 18], [19, 20]]
    with torch.no_grad():
        one, other = (model(**inputs(rows, seed=seed, side="left")).logits for seed in (0, 50))
    assert difference(one[0, 3:6], other[0, 3:6]) == 0.0
    assert difference(one[1, :6], other[1, :6]) == 0.0
    assert difference(one[2, 6:], other[2, 6:]) == 0.0
    assert difference(one[0, 6:], other[0, 6:]) > 1e-4 and difference(one[1, 6:], other[1, 6:]) > 1e-4


def test_pictures_are_not_mixed_across_rows():
    model = opened()
    rows = [[5, IMAGE, 6, 7], [5, IMAGE, 6, 7]]
    with torch.no_grad():
        one = model(**inputs(rows, images=[[image(0)], [image(1)]])).logits
        other = model(**inputs(rows, images=[[image(0)], [image(2)]])).logits
    assert difference(one[0], other[0]) == 0.0
    assert difference(one[1, 1:], other[1, 1:]) > 1e-4
