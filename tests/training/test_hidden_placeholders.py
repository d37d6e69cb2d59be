"""Models whose placeholders are hidden train, and answer in evaluation, as others do."""

import copy

import torch

from tests.fakes.tiny import difference, open_gates
from tests.fakes.tiny_chats import CHATS, chat_model, losses, mm_trainer, moved, processor, weights


def hidden_processor():
    made = copy.deepcopy(processor())
    made.placeholders = "hidden"
    return made


def test_the_stock_recipe_of_chats_trains_and_answers(tmp_path):
    model = open_gates(chat_model(placeholders="hidden"))
    before = weights(model)
    more = {"processing_class": hidden_processor()}
    trainer = mm_trainer(model, tmp_path, more=more, max_steps=6, predict_with_generate=True, learning_rate=3e-3)
    trainer.train()
    found = losses(trainer)
    assert found[-1] < found[0]
    assert any("cross_blocks" in name for name in moved(model, before))
    assert trainer.evaluate()["eval_loss"] > 0


def test_what_a_placeholder_says_changes_no_loss(tmp_path):
    """The collator keeps the processor's mask: the text does not read placeholders."""
    model = open_gates(chat_model(placeholders="hidden"))
    more = {"processing_class": hidden_processor()}
    batch = mm_trainer(model, tmp_path, more=more).data_collator([CHATS[0], CHATS[3]])
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # the head stays as it is
    with torch.no_grad():
        before = model(**batch).loss
        for token_id in model.config.placeholder_ids:
            model.get_input_embeddings().weight[token_id] = torch.randn(model.config.text_config.n_embd)
        assert difference(model(**batch).loss, before) < 1e-6
    model.config.placeholders = "text"
    with torch.no_grad():
        read = model(**{**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}).loss
    assert difference(read, before) > 1e-3
