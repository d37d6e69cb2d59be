"""Gradient-weighted attention by hand, and every method on layouts with separate layers and mixed connectors."""

import pytest
import torch

from modeling_mm.cross_attention import CrossAttentionGroup
from modeling_mm.explain import METHODS, Target, explain_target, modality_contributions, places_of, weights_of
from modeling_mm.explain.attention import accumulate, positive_part
from tests.fakes.tiny import AUDIO, IMAGE, inputs, opened

FIRST, SECOND = torch.tensor([[0.5, 0.0], [0.25, 0.5]]), torch.tensor([[0.0, 0.0], [0.5, 0.0]])
READ = torch.tensor([[1.0, 0.0], [0.0, 2.0]])  # of two media tokens, by two text tokens


def test_relevance_passes_through_the_text_of_later_blocks() -> None:
    before = (CrossAttentionGroup("shared", (0, 1), (1,), "before"),)
    text, media = accumulate([FIRST, SECOND], [READ], before, (1, 1))
    torch.testing.assert_close(text, (torch.eye(2) + SECOND) @ (torch.eye(2) + FIRST))
    torch.testing.assert_close(media, READ + SECOND @ READ)
    inside = (CrossAttentionGroup("shared", (0, 1), (1,), "inside"),)
    _, media = accumulate([FIRST, SECOND], [READ], inside, (1, 1))
    torch.testing.assert_close(media, READ)  # behind the self-attention of the last block


def test_groups_write_to_the_columns_of_their_modalities() -> None:
    """Recorded by block, those before it first: audio before block 0, the image inside it."""
    groups = (
        CrossAttentionGroup("vision", (0,), (0,), "inside"),
        CrossAttentionGroup("audio", (1,), (0,), "before"),
    )
    audio, image = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 4.0], [0.0, 8.0]])
    _, media = accumulate([FIRST], [audio, image], groups, (2, 1))
    torch.testing.assert_close(media, torch.cat([image, audio + FIRST @ audio], dim=1))


def test_weights_that_lower_the_score_are_left_out() -> None:
    weights = torch.tensor([[[[0.5, 0.5]], [[1.0, 0.0]]]])  # two heads
    gradient = torch.tensor([[[[2.0, -1.0]], [[1.0, 3.0]]]])
    assert positive_part(weights, gradient).tolist() == [[1.0, 0.0]]
    assert positive_part(weights, None).tolist() == [[0.0, 0.0]]


LAYOUTS = {
    "separate": {"vision_cross_attention_layers": [0, 2], "vision_cross_attention_placement": "inside"},
    "pooled": {"audio_pooling": 2, "audio_connector": "conv"},
    "perceivers": {"vision_connector": "perceiver", "audio_connector": "perceiver", "audio_pooling": 4},
    "direct": {"audio_connector": "direct", "vision_connector": "linear"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_method_explains_every_layout(layout: str) -> None:
    """Two images and two windows, of which the second is half silent; weights of a word sum to 1, or are all 0."""
    model = opened(**LAYOUTS[layout])
    model.set_attn_implementation("eager")
    batch = inputs([[5, IMAGE, AUDIO, IMAGE, AUDIO, 6, 7, 8]])
    batch["feature_attention_mask"][:, 1, 20:] = 0
    text = {name: batch.pop(name) for name in ("input_ids", "attention_mask")}
    about = {"prompt_words": ["what", "now"], "prompt_spans": [(0, 1), (5, 6)], "seconds": 0.6}
    target = Target(model, text, batch, ["one", "two"], **about, answer_ids=[7, 8, 9], spans=[(0, 2), (2, 3)])
    places = places_of(model, batch)
    assert places.grid == (2, 2, 2) and places.windows == [20, 10]
    for method in METHODS:
        seen = explain_target(target, method, places)
        assert seen.patches.shape == (2, 2, 2, 2) and seen.moments.shape == (2, 30)
        weights = weights_of(seen)
        assert (weights >= 0).all() and (weights.sum(1) <= 1.0001).all()
        if method != "attention":
            torch.testing.assert_close(weights.sum(1), torch.ones(2))
            assert [round(total, 4) in (0.0, 1.0) for total in seen.text.sum(1).tolist()] == [True, True]
        assert seen.patches.sum() > 0 and seen.moments.sum() > 0
    found = modality_contributions(target)
    torch.testing.assert_close(sum(found.values.values()), found.full - found.base)
