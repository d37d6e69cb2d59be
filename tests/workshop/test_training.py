"""Preparing the training of the released model; the training of recipes has tests of its package."""

import torch

from modeling_mm.data import ChatRow
from scripts.workshop.name_matching import say_what_was_found
from scripts.workshop.phrases import VERIFY_NAME
from scripts.workshop.prototypes import open_blocks
from scripts.workshop.training import adds_nothing, asked_name, parts_that_stay, spread
from tests.fakes.encoder_decoders import pixels
from tests.fakes.tiny import vit
from tests.fakes.tiny_chats import chat
from tests.fakes.whisper_parts import converted
from tests.workshop.test_prototypes import questions, seeing_model

FIELDS = {
    "cross_attention_gated": False,
    "cross_attention_query_gate": True,
    "cross_attention_token_gate": True,
}


def test_a_model_is_prepared_once():
    model = seeing_model(**FIELDS)
    for block in model.model.language_model.vision_cross_blocks.values():
        block.cross_attn.c_proj.weight.data.zero_()
    assert adds_nothing(model)
    open_blocks(model, questions())
    assert not adds_nothing(model)


def test_what_a_name_finds_does_not_change_when_the_rest_learns():
    hears, _ = converted()
    fields = {"cross_attention_stand_in": True, "max_media_items": 2}
    fields |= {"cross_attention_query_gate": True, "cross_attention_token_gate": True}
    model = hears.add_vision(vit(), cross_attention_layers=[0, 1], **fields)
    for part in parts_that_stay(model):
        part.requires_grad_(False)
    say_what_was_found(model, strength=1.0)
    found = {}
    decoder = model.model.language_model
    decoder.vision_cross_blocks["0"].register_forward_hook(lambda module, given, output: found.update(state=output))
    batch = {
        "input_ids": torch.tensor([[model.config.image_token_id, 3, 4, 5]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1]]),
        **pixels(1),
    }
    model(**batch)
    before = found["state"].detach()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(learned) > 5
    with torch.no_grad():
        for parameter in learned:
            parameter.add_(1.0)
    model(**batch)
    assert torch.equal(found["state"], before)


def test_the_name_is_what_a_question_ends_in():
    (row,) = (ChatRow(chat("Is this called a red square?", "yes", color="red")["messages"], "verify_name/en", "1", 0),)
    assert asked_name(row, VERIFY_NAME.partition("{name}")[0]) == "a red square"


def test_rows_are_taken_evenly():
    assert spread(range(10), 3) == range(0, 9, 3) and list(spread(range(2), 5)) == [0, 1]
