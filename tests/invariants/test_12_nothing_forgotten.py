"""Invariant 12: what a modality learns in separate layers leaves every logit of rows without it bit-equal."""

import pytest
import torch

from tests.fakes.tiny import AUDIO, IMAGE, difference, inputs, joined, labels, open_gates, train

ROWS = [[5, AUDIO, 6, 7, 8], [9, 10, AUDIO, AUDIO, 11]]
FROZEN = {"freeze_text": True, "freeze_audio": True, "freeze_vision": True, "freeze_cross_attention": True}
FIELDS = {"cross_attention_gated": False, "cross_attention_feed_forward": False, "audio_connector": "direct", **FROZEN}


@pytest.mark.parametrize("placement", ["before", "inside"])
@pytest.mark.parametrize("shared", ["before", "inside"])
def test_pictures_are_learned_and_no_logit_of_a_sound_moves(shared, placement):
    own = {"vision_cross_attention_layers": [0, 1], "vision_cross_attention_placement": placement}
    hears = open_gates(joined(vision=None, **FIELDS, cross_attention_placement=shared))
    model = joined(**FIELDS, cross_attention_placement=shared, **own)
    state = hears.state_dict()
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    heard = inputs(ROWS)
    expected = hears(**heard).logits
    assert difference(model(**heard).logits, expected) == 0.0
    seen = inputs([[IMAGE, 12, 13, 14], [IMAGE, 15, 16, 17]])
    losses = train(model, [{**seen, "labels": labels(seen)}], steps=60, lr=1e-2)
    assert losses[-1] < losses[0] / 2
    with torch.no_grad():
        assert difference(model(**heard).logits, expected) == 0.0
        greedy = {"do_sample": False, "max_new_tokens": 8}
        assert torch.equal(model.generate(**heard, **greedy), hears.generate(**heard, **greedy))
