"""Shapley values of modalities: exact for games by hand, and adding up for a model."""

import torch

from modeling_mm.explain import blank_media, make_target, modality_contributions
from modeling_mm.explain.contributions import shapley
from tests.fakes.tiny_chats import CHATS, chat_model, processor

ALL = torch.tensor([[False, False], [False, True], [True, False], [True, True]])


def test_shapley_values_of_games_by_hand() -> None:
    added = torch.tensor([[0.0], [2.0], [1.0], [3.0]])
    assert [shapley(ALL, added, player).item() for player in (0, 1)] == [1.0, 2.0]
    both = torch.tensor([[0.0], [0.0], [0.0], [1.0]])  # each needs the other
    assert [shapley(ALL, both, player).item() for player in (0, 1)] == [0.5, 0.5]
    gloves = torch.tensor([[0.0], [0.0], [0.0], [1.0], [0.0], [1.0], [0.0], [1.0]])  # the last with either other
    three = torch.tensor([[bool(n & 4), bool(n & 2), bool(n & 1)] for n in range(8)])
    values = torch.stack([shapley(three, gloves, player)[0] for player in range(3)])
    torch.testing.assert_close(values, torch.tensor([1 / 6, 1 / 6, 4 / 6]))


def test_contributions_add_up_to_the_probability_of_each_word() -> None:
    model = chat_model()
    ids = processor().tokenizer("a cat", add_special_tokens=False).input_ids
    target = make_target(model, processor(), CHATS[4]["messages"][:1], answer_ids=ids)
    found = modality_contributions(target)
    assert list(found.values) == ["image", "audio", "text"]
    torch.testing.assert_close(sum(found.values.values()), found.full - found.base)
    torch.testing.assert_close(found.full, target.scores_in_chunks(target.media)[0].exp())
    blank = {**target.media, **blank_media(target.media)}
    masks = target.without_words(torch.ones(1, len(target.prompt_words), dtype=torch.bool))
    torch.testing.assert_close(found.base, target.scores_in_chunks(blank, masks)[0].exp())
    assert all(values.abs().max() > 0 for values in found.values.values())


def test_a_modality_that_adds_nothing_has_no_value() -> None:
    model = chat_model()
    with torch.no_grad():
        for parameter in model.model.audio_connector.projector.parameters():
            parameter.zero_()
    ids = processor().tokenizer("a", add_special_tokens=False).input_ids
    found = modality_contributions(make_target(model, processor(), CHATS[4]["messages"][:1], answer_ids=ids))
    torch.testing.assert_close(found.values["audio"], torch.zeros(1))
    assert found.values["image"].abs() > 0
