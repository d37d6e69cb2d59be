"""Preparing the training of the released model; the training of recipes has tests of its package."""

from types import SimpleNamespace

import torch

from modeling_mm.data import ChatRow
from modeling_mm.training import ChatCollator
from scripts.workshop import training
from scripts.workshop.name_matching import say_what_was_found
from scripts.workshop.phrases import VERIFY_NAME
from scripts.workshop.prototypes import open_blocks
from scripts.workshop.training import GateQuestions, GatesCallback, adds_nothing, asked_name, parts_that_stay, spread
from tests.fakes.encoder_decoders import pixels
from tests.fakes.tiny import vit
from tests.fakes.tiny_chats import chat, processor
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


def test_gates_are_learned_again_now_and_then_but_not_at_the_end():
    taught: list[int] = []
    callback = GatesCallback(SimpleNamespace(teach=lambda model: taught.append(model)), steps=10)
    for step in range(1, 41):
        state = SimpleNamespace(global_step=step, max_steps=40)
        callback.on_step_end(None, state, None, model=step)
    assert taught == [10, 20, 30]


def test_gates_learn_from_each_kind_of_question_what_it_is_for(monkeypatch):
    def row(task: str, answer: str, **media) -> ChatRow:
        return ChatRow(chat("Look and listen.", answer, **media)["messages"], task, task, 0)

    rows = [
        row("caption/en", "red", color="red"),
        row("category/en", "green", color="red"),
        row("transcribe/en", "blue", hears=True),
        row("transcribe_beside_image/en", "a cat", color="red", hears=True),
        row("match_audio_image/en", "a bird dog yes", color="red", hears=True),
    ]
    given = {}
    monkeypatch.setattr(training, "VERDICT_MARK", " dog")  # one token of this tokenizer, as the dash is of Whisper's
    monkeypatch.setattr(training, "close_over_transcripts", lambda model, *args: given.update(args=args))
    GateQuestions(rows, ChatCollator(processor())).teach(None)
    transcripts, others, ((heard, words),) = given["args"]

    def answers(batches) -> list[str]:
        tokens = [
            [token for token in labels if token != -100] for batch in batches for labels in batch["labels"].tolist()
        ]
        return [processor().tokenizer.decode(each, skip_special_tokens=True).strip() for each in tokens]

    assert answers(transcripts) == ["a cat"] and answers(others) == ["red", "green"]
    assert answers([heard]) == ["a bird dog yes"]
    said = heard["labels"][words.roll(1, 1)].tolist()
    assert processor().tokenizer.decode(said).strip() == "a bird", "what was heard, without the mark and the verdict"
