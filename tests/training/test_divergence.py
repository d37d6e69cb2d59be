"""Training that diverged stops at the step, names it and its examples, and keeps the weights of before."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from modeling_mm.data import ChatDataset
from modeling_mm.training import AlignmentOptions, MMTrainer, align, named_media
from tests.fakes.ranks import launch
from tests.fakes.tiny_chats import CHATS, chat_model, mm_trainer, processor, weights

NAMED = [{**chat, "id": f"chat-{number}"} for number, chat in enumerate(CHATS)]


class FailsAt(MMTrainer):
    """Its loss, or the gradient of one weight, is `value` in the forward passes from `first` on, in rank `rank`."""

    first, value, rank, in_gradient, forwards = 2, math.nan, 0, False, 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not model.training or self.args.process_index != self.rank:
            return result
        self.forwards += 1
        if self.forwards <= self.first:
            return result
        if self.in_gradient:
            self.model.lm_head.weight.register_hook(lambda gradient: gradient * self.value)
            return result
        return result * self.value


def failing(folder, **fields):
    known = {name: fields.pop(name) for name in ("first", "value", "rank", "in_gradient") if name in fields}
    options = {"max_steps": 3, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 1}
    trainer = mm_trainer(chat_model(), folder, train=NAMED, trainer_class=FailsAt, **{**options, **fields})
    vars(trainer).update(known)
    return trainer


@pytest.mark.parametrize(("value", "max_grad_norm"), [(math.nan, 0.0), (math.inf, 1.0)])
def test_the_first_loss_that_is_not_finite_stops_training(tmp_path, value, max_grad_norm):
    trainer = failing(tmp_path, value=value, max_grad_norm=max_grad_norm)
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    message = str(caught.value)
    assert f"diverged at step 3: the loss is {value}." in message
    assert f"The last good checkpoint is {tmp_path / 'checkpoint-2'}." in message
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


def test_the_examples_of_the_batch_are_named(tmp_path):
    trainer = failing(tmp_path, first=0)
    batches = [batch["input_ids"].shape[0] for batch in trainer.get_train_dataloader()]
    assert batches == [2, 2, 2, 2]
    with pytest.raises(FloatingPointError, match=r"Examples of the batch: chat-\d, chat-\d\. No checkpoint"):
        trainer.train()


def test_examples_without_an_id_are_named_by_question_and_files(tmp_path):
    from modeling_mm.data import ChatRow
    from modeling_mm.training.divergence import example_name

    parts = [{"type": "image", "path": "pictures/cat.png"}, {"type": "text", "text": "What is it?"}]
    assert example_name(ChatRow([{"role": "user", "content": parts}])) == "'What is it?' cat.png"
    assert example_name({"id": 7, "messages": []}) == "7" and example_name({"input_ids": [1]}) == "dict without id"


@pytest.mark.parametrize("value", [math.nan])
def test_gradients_that_are_not_finite_stop_training_before_they_change_a_weight(tmp_path, value):
    trainer = failing(tmp_path, in_gradient=True, value=value, first=1)
    with pytest.raises(FloatingPointError, match=r"diverged at step 2: the norm of the gradients is (nan|inf)\."):
        trainer.train()
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


def test_every_batch_of_an_accumulated_step_is_checked_and_named(tmp_path):
    trainer = failing(tmp_path, first=1, gradient_accumulation_steps=4, per_device_train_batch_size=2)
    before = weights(trainer.model)
    with pytest.raises(FloatingPointError, match=r"at step 1: the loss is nan.*(chat-\d, ){7}chat-\d\."):
        trainer.train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize("workers", [0, 1])
def test_the_model_never_sees_the_names(tmp_path, workers):
    trainer = mm_trainer(chat_model(), tmp_path, train=NAMED, dataloader_num_workers=workers)
    plain = mm_trainer(chat_model(), tmp_path)
    assert trainer.train().training_loss == pytest.approx(plain.train().training_loss, abs=1e-6)


def test_an_evaluation_without_figures_stops_training_before_it_is_saved(tmp_path):
    class NoFigure(MMTrainer):
        def prediction_step(self, *args, **kwargs):
            loss, *others = super().prediction_step(*args, **kwargs)
            return (loss * math.nan, *others)

    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    trainer = mm_trainer(chat_model(), tmp_path, trainer_class=NoFigure, **options)
    with pytest.raises(FloatingPointError, match=r"after step 1 gives no figure: eval_loss is nan\."):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_alignment_that_diverged_stops(tmp_path):
    model = chat_model()
    with torch.no_grad():
        next(model.model.vision_connector.parameters())[0] = math.nan
    media = {"image": named_media(iter(ChatDataset(NAMED[:1])), "image", processor().tokenizer)}
    collator = mm_trainer(model, tmp_path).data_collator
    with pytest.raises(FloatingPointError, match=r"diverged at step 1: the loss is nan.*chat-0"):
        align(model, collator, media, AlignmentOptions(steps=2, image_batch_size=4), progress=False)


# ---- Together -------------------------------------------------------------------------------------------------------


def program(folder: Path) -> None:
    trainer = failing(folder / "run", first=1, rank=1, per_device_train_batch_size=1)
    try:
        trainer.train()
    except FloatingPointError as error:
        finite = all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())
        print(f"weights are finite: {finite}", error)
        sys.exit(1)


@pytest.mark.timeout(200)
def test_processes_stop_together_when_one_of_them_diverges(tmp_path):
    ended = launch(__file__, tmp_path, timeout=150)
    assert [each.code for each in ended] == [1, 1], ended
    errors = [next(line for line in each.log.splitlines() if "diverged" in line) for each in ended]
    assert (
        errors[0] == errors[1] and "weights are finite: True Training diverged at step 2: the loss is nan" in errors[0]
    )
    assert errors[0].count("chat-") == 1, "only the example of the process whose loss is not finite"
    assert "checkpoint-1." in errors[0]


def test_fp16_that_overflows_goes_on_until_its_scale_is_lost(tmp_path, monkeypatch):
    class Scaler:
        scale = 65536.0

        def get_scale(self):
            return self.scale

    trainer = failing(tmp_path)
    trainer.step_losses, trainer.accelerator.scaler = [torch.ones(())], Scaler()
    trainer.stop_if_diverged(math.inf)
    Scaler.scale = 1e-5
    with pytest.raises(FloatingPointError, match="the norm of the gradients is inf"):
        trainer.stop_if_diverged(nn.Parameter(torch.tensor(math.inf)))


if __name__ == "__main__":
    program(Path(sys.argv[1]))
