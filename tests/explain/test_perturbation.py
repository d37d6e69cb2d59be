"""Integrated gradients add up to the difference of the scores; occlusion is the fall of the score."""

import torch

from modeling_mm.explain import Places, blank_media, places_of
from modeling_mm.explain.perturbation import integrated_gradients, occluded_blocks, occlusion
from tests.fakes.planted import planted_targets, random_model


def test_integrated_gradients_sum_to_the_difference_of_the_scores() -> None:
    """Of media and text together; at 256 steps to 2%."""
    for kind in ("image", "audio"):
        model = random_model(kind)
        with torch.no_grad():
            model.score.weight *= 20
        (target,), _, _ = planted_targets(model, kind, count=1)
        relevance, text = integrated_gradients(target, places_of(model, target.media), steps=256)
        blank = {**target.media, **blank_media(target.media)}
        embeddings = model.get_input_embeddings()(target.text["input_ids"]).detach()
        embeddings[:, slice(*target.prompt_spans[0])] = 0
        with torch.no_grad():
            difference = target.scores(target.media) - target.scores(blank, inputs_embeds=embeddings)
        total = relevance.sum() + text.sum()
        assert abs(difference) > 0.1
        torch.testing.assert_close(total, difference.sum(), rtol=0.02, atol=0.01)


def test_gradients_pass_frozen_encoders_which_stay_frozen() -> None:
    model = random_model("image")
    (target,), _, _ = planted_targets(model, "image", count=1)
    places = places_of(model, target.media)
    expected, _ = integrated_gradients(target, places, steps=4)
    model.requires_grad_(False)
    relevance, _ = integrated_gradients(target, places, steps=4)
    torch.testing.assert_close(relevance, expected)
    assert relevance.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_occlusion_is_the_fall_of_the_score() -> None:
    model = random_model("image")
    (target,), _, _ = planted_targets(model, "image", count=1)
    relevance, text = occlusion(target, places_of(model, target.media))
    with torch.no_grad():
        whole = target.scores(target.media)
        pixels = target.media["pixel_values"].clone()
        pixels[..., 8:16, 16:24] = 0  # row 1, column 2 of 4
        fall = whole - target.scores({"pixel_values": pixels})
        masked = {"attention_mask": torch.tensor([[0, 1, 1]])}
        of_word = whole - target.scores(target.media, **masked)
    torch.testing.assert_close(relevance[0, 6], fall[0, 0])
    torch.testing.assert_close(text, torch.tensor([[of_word.item(), 0, 0]]))


def test_fine_grids_and_long_audio_are_occluded_in_blocks() -> None:
    blocks = torch.stack(list(occluded_blocks(Places((1, 14, 14), 1, tuple((0, i, i + 1) for i in range(100))))))
    assert len(blocks) == 7 * 7 + 25
    assert blocks.sum(0).eq(1).all()  # each place once
    assert blocks[0, :196].view(14, 14)[:2, :2].all() and blocks[0].sum() == 4
    assert blocks[-1].nonzero().flatten().tolist() == [292, 293, 294, 295]
    assert len(list(occluded_blocks(Places((2, 2, 2))))) == 8
