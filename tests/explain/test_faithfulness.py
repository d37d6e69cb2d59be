"""Deletion and insertion curves: their ends, their order, and the table of methods."""

import pytest
import torch

from modeling_mm.data import to_row
from modeling_mm.explain import (
    Places,
    blank_media,
    compare_methods,
    faithfulness,
    methods_markdown,
    places_of,
)
from modeling_mm.explain.faithfulness import MethodFigures, earliest
from tests.fakes.planted import planted_targets, random_model
from tests.fakes.tiny_chats import CHATS, chat_model, processor


def test_places_are_deleted_by_weight_within_their_modality() -> None:
    places = Places((1, 1, 2), 0, ((0, 0, 1), (0, 1, 2), (0, 2, 3), (0, 3, 4)))
    early = earliest(places, torch.tensor([[0.1, 0.2, 9.0, 7.0, 8.0, 6.0]]))
    torch.testing.assert_close(early, torch.tensor([[1.0, 0.5, 0.25, 0.75, 0.5, 1.0]]), atol=1e-5, rtol=0)


def test_curves_start_and_end_at_whole_and_blank_media() -> None:
    model = random_model("image")
    (target,), _, _ = planted_targets(model, "image", count=1)
    places = places_of(model, target.media)
    weights = torch.arange(16.0)[None]
    curves = faithfulness(target, places, weights, points=4)
    whole = target.scores_in_chunks(target.media).exp()[0]
    blank = target.scores_in_chunks({**target.media, **blank_media(target.media)}).exp()[0]
    torch.testing.assert_close(torch.stack([curves.deletion[0], curves.insertion[-1]]), torch.stack([whole, whole]))
    torch.testing.assert_close(torch.stack([curves.deletion[-1], curves.insertion[0]]), torch.stack([blank, blank]))
    pixels = target.media["pixel_values"].clone()
    pixels[..., 16:, :] = 0  # the last 8 of 16 places
    torch.testing.assert_close(curves.deletion[2], target.scores_in_chunks({"pixel_values": pixels}).exp()[0])
    deletion, _ = curves.areas
    values = curves.deletion[:, 0]
    torch.testing.assert_close(deletion[0], ((values[1:] + values[:-1]) / 2).mean())


def test_methods_are_compared_beside_random_weights() -> None:
    model = chat_model()
    model.set_attn_implementation("eager")
    rows = [to_row(CHATS[0]), to_row(CHATS[4])]
    figures = compare_methods(
        model, processor(), rows, ("attention", "gradient-attention"), points=2, max_new_tokens=2
    )
    assert list(figures) == ["attention", "gradient-attention", "random"]
    assert all(len(own.seconds) == 2 and len(own.deletion) == len(own.insertion) >= 2 for own in figures.values())
    with pytest.raises(ValueError, match="no examples to explain"):
        compare_methods(model, processor(), [])


def test_the_table_has_means_and_their_difference() -> None:
    table = methods_markdown({"occlusion": MethodFigures([0.25, 0.75], [0.5, 1.0], [1.0, 2.0])})
    assert table.splitlines()[-1] == "| occlusion | 0.500 | 0.750 | 0.250 | 1.50 |"
