"""The base of mm-whisper-tiny: connector and tags start as the encoder's own head."""

import pytest
import torch

from scripts.workshop.base_folder import start_connector, start_tags
from scripts.workshop.lessons import ImageNetHead
from tests.fakes.tiny import difference
from tests.fakes.tiny_chats import processor
from tests.workshop.test_prototypes import CLASSES, NAMES, WIDTH, seeing_model

TEXTS = sorted({*NAMES, *CLASSES})


def head() -> ImageNetHead:
    generator = torch.Generator().manual_seed(2)
    return ImageNetHead(torch.randn(len(CLASSES), WIDTH, generator=generator), torch.tensor([0.5, -0.5]))


def test_tags_of_classes_are_what_the_head_says_and_others_are_even():
    model = seeing_model(vision_tags=len(TEXTS), vision_tag_length=4)
    start_tags(model, processor(), head(), CLASSES, TEXTS)
    tagger, states = model.model.vision_connector.tagger, torch.randn(3, 4, WIDTH)
    logits = tagger.logits(states, torch.ones(3, 4, dtype=torch.bool))
    expected = states.mean(1) @ head().weight.T + head().bias
    assert difference(logits[:, [TEXTS.index(name) for name in CLASSES]], expected) < 1e-5
    assert logits[:, [TEXTS.index(name) for name in NAMES]].abs().max() == 0
    ids = processor().tokenizer([f" {name}" for name in TEXTS], add_special_tokens=False)["input_ids"]
    assert [row[: len(each)] for row, each in zip(tagger.ids.tolist(), ids, strict=True)] == [each[:4] for each in ids]


@pytest.mark.parametrize("size", [1, 2])
def test_hidden_units_see_what_matters_to_the_head(size):
    model, given = seeing_model(vision_connector_size=size), head()
    start_connector(model, given)
    hidden = model.model.vision_connector.projector.hidden[0]
    strongest = torch.linalg.svd(given.weight)[2][:size]
    seen = hidden.weight @ strongest.T @ strongest  # nothing outside of the strongest directions
    assert difference(seen, hidden.weight) < 1e-5
    assert difference(hidden.weight.norm(), torch.linalg.svdvals(given.weight)[:size].norm()) < 1e-4
