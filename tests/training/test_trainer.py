"""MMTrainer piece by piece: its arguments, groups of parameters, shares of rows, figures; what it refuses, and how."""

import sys

import pytest
import torch
from transformers import Trainer, TrainingArguments

from modeling_mm import MMForSequenceClassification
from modeling_mm.data import ChatDataset, ChatRow
from modeling_mm.training import (
    ChatCollator,
    LossProgressCallback,
    MediaLengthGroupedSampler,
    MMTrainer,
    answers,
    encode_conversation,
    media_size,
    parts_of,
    trainer,
)
from tests.fakes.tiny import joined
from tests.fakes.tiny_chats import CHATS, arguments, chat, chat_model, mm_trainer, moved, processor, weights

RATES = {
    "text_learning_rate": 1e-3,
    "cross_attention_learning_rate": 2e-3,
    "connector_learning_rate": 3e-3,
    "encoder_learning_rate": 4e-3,
}
PARTS_OF_RATES = ("text", "cross_attention", "connectors", "vision audio")


# ---- Arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"metrics": ["exact_mach"]}, "Unknown metric 'exact_mach'. Did you mean 'exact_match'?"),
        ({"text_learning_rate": -1.0}, "text_learning_rate must be 0 or more, or None for learning_rate, got -1.0"),
        ({"encoder_learning_rate": float("nan")}, "encoder_learning_rate must be 0 or more"),
        ({"generation_max_new_tokens": 0}, "generation_max_new_tokens must be at least 1, got 0"),
        ({"generation_num_beams": 0}, "generation_num_beams must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, fields, message):
    with pytest.raises(ValueError) as error:
        arguments(tmp_path, **fields)
    assert message in str(error.value)


def test_the_rate_of_a_part_is_its_own_or_the_common_one(tmp_path):
    some = arguments(tmp_path, learning_rate=0.5, text_learning_rate=0.25, encoder_learning_rate=0.0)
    rates = {part: some.rate_of(part) for part in parts_of(joined())}
    assert rates == {"text": 0.25, "cross_attention": 0.5, "connectors": 0.5, "vision": 0.0, "audio": 0.0}


@pytest.mark.parametrize(
    "metric, greater",
    [("wer", False), ("eval_talk_cer", False), ("exact_match", True), ("chrf", True), ("loss", False)],
)
def test_the_best_error_rate_is_the_lowest(tmp_path, metric, greater):
    assert arguments(tmp_path, metric_for_best_model=metric).greater_is_better is greater
    assert (
        arguments(tmp_path, metric_for_best_model=metric, greater_is_better=not greater).greater_is_better
        is not greater
    )


# ---- What it refuses ------------------------------------------------------------------------------------------------


def test_stock_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="MMTrainer takes MMTrainingArguments, got TrainingArguments"):
        MMTrainer(chat_model(), TrainingArguments(str(tmp_path)), processing_class=processor())


ENCODED = [{"input_ids": [1, 2], "labels": [1, 2]}]


@pytest.mark.parametrize(
    "evaluate, message",
    [
        (ENCODED, "the evaluation set must hold chats: a ChatDataset .* Row 0 is a row with input_ids, labels"),
        ({"one": ChatDataset(CHATS), "two": ENCODED}, "Row 0 is a row with input_ids, labels"),
        ([3], "Row 0 is int"),
    ],
)
def test_rows_that_are_no_chats_cannot_be_answered(tmp_path, evaluate, message):
    more = {"data_collator": lambda rows: {}, "processing_class": processor()}
    with pytest.raises(ValueError, match=message):
        MMTrainer(chat_model(), arguments(tmp_path, predict_with_generate=True), eval_dataset=evaluate, **more)
    MMTrainer(chat_model(), arguments(tmp_path), eval_dataset=evaluate, **more)  # without answers all is well


def test_rows_that_are_no_chats_are_named_where_they_come_later(tmp_path):
    run = mm_trainer(chat_model(), tmp_path, predict_with_generate=True)
    with pytest.raises(ValueError, match=r"set predict_with_generate=False"):
        run.answer_dataset(ENCODED)


def test_answers_need_a_processor_a_model_that_generates_and_the_metrics_libraries(tmp_path, monkeypatch):
    collate = {"data_collator": lambda rows: {}}
    with pytest.raises(ValueError, match=r"pass processing_class=processor to MMTrainer \(got NoneType\)"):
        MMTrainer(chat_model(), arguments(tmp_path, predict_with_generate=True), **collate)
    classifier = joined(cls=MMForSequenceClassification, num_labels=2)
    with pytest.raises(ValueError, match="MMForSequenceClassification does not"):
        mm_trainer(classifier, tmp_path, predict_with_generate=True)
    monkeypatch.setitem(__import__("sys").modules, "jiwer", None)
    with pytest.raises(ImportError, match="jiwer, which is not installed"):
        mm_trainer(chat_model(), tmp_path, predict_with_generate=True, metrics=["wer"])
    mm_trainer(chat_model(), tmp_path, metrics=["wer"])


def test_optimizers_with_groups_of_their_own_have_no_rates_of_parts(tmp_path):
    own = {"more": {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"params": [torch.zeros(1)], "lr": 1.0})}}
    with pytest.raises(ValueError, match="groups the parameters itself"):
        mm_trainer(chat_model(), tmp_path, text_learning_rate=1.0, **own).create_optimizer()
    groups = mm_trainer(chat_model(), tmp_path, **own).create_optimizer().param_groups
    assert [group["params"][0].shape for group in groups] == [(1,)]


# ---- A learning rate for each part ----------------------------------------------------------------------------------


def test_each_part_has_a_group_with_and_one_without_weight_decay(tmp_path):
    model = chat_model()
    run = mm_trainer(model, tmp_path, weight_decay=0.1, **RATES)
    optimizer = run.create_optimizer()
    expected = {"text": 1e-3, "cross_attention": 2e-3, "connectors": 3e-3, "vision": 4e-3, "audio": 4e-3}
    assert {group["part"]: group["lr"] for group in optimizer.param_groups} == expected
    decayed = set(run.get_decay_parameter_names(model))
    for part, named in parts_of(model).items():
        for decay in (0.1, 0.0):
            (group,) = (g for g in optimizer.param_groups if g["part"] == part and g["weight_decay"] == decay)
            names = {name for name, _ in named if (name in decayed) == (decay > 0)}
            held = {id(parameter) for parameter in group["params"]}
            assert held == {id(parameter) for name, parameter in named if name in names} and held
    assert run.optimizer_cls_and_kwargs is None, "the trainer is left as it was"


def test_what_is_frozen_for_good_has_no_place_in_the_optimizer(tmp_path):
    run = mm_trainer(chat_model(freeze_vision=True, freeze_text=True), tmp_path)
    assert {group["part"] for group in run.create_optimizer().param_groups} == {
        "cross_attention",
        "connectors",
        "audio",
    }


@pytest.mark.parametrize("rate, part", list(zip(RATES, PARTS_OF_RATES, strict=True)))
def test_a_rate_of_zero_stops_its_part_alone(tmp_path, rate, part):
    model = chat_model()
    before = weights(model)
    mm_trainer(model, tmp_path, **{rate: 0.0}).train()
    changed = moved(model, before)
    parts = {name: {n for n, _ in named} for name, named in parts_of(model).items()}
    assert {name for name, names in parts.items() if names & changed} == set(parts) - set(part.split())


def test_the_schedule_is_the_same_for_all_rates(tmp_path):
    run = mm_trainer(chat_model(), tmp_path, max_steps=4, lr_scheduler_type="linear", **RATES)
    run.train()
    initial = {group["initial_lr"] for group in run.optimizer.param_groups}
    assert initial == set(RATES.values()) and {group["lr"] for group in run.optimizer.param_groups} == {0.0}


def test_an_optimizer_of_the_users_own_is_left_alone(tmp_path):
    model = chat_model()
    optimizer = torch.optim.SGD(model.lm_head.parameters(), lr=0.1)
    run = mm_trainer(model, tmp_path, more={"optimizers": (optimizer, None)})
    before = weights(model)
    run.train()
    assert moved(model, before) == {"lm_head.weight", "model.language_model.wte.weight"}


# ---- Shares and figures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, 5, 6, 7])
@pytest.mark.parametrize("as_stream", [False, True])
def test_the_shares_of_processes_are_equal_and_together_all(rows, as_stream):
    data = [f"row {i}" for i in range(rows)]
    for processes in (1, 2, 3):
        shares = [list(answers.share_of(iter(data) if as_stream else data, p, processes)) for p in range(processes)]
        assert len({len(share) for share in shares}) == 1, "none waits for another"
        assert dict(item for share in shares for item in share) == dict(enumerate(data))
        assert sum(len(share) for share in shares) - rows < processes


def test_figures_of_all_and_of_each_task():
    rows = [
        answers.AnsweredRow(0, "color", "red", "red"),
        answers.AnsweredRow(1, "color", "red", "blue"),
        answers.AnsweredRow(2, "caption/fr", "chat", "chat"),
        answers.AnsweredRow(3, None, "x", "y"),
    ]
    assert answers.score_answers(rows, ["exact_match"], "eval") == {
        "eval_exact_match": 0.5,
        "eval_color_exact_match": 0.5,
        "eval_caption/fr_exact_match": 1.0,
    }


# ---- Collators ------------------------------------------------------------------------------------------------------


class Louder(ChatCollator):
    """In training every label is ignored."""

    def for_evaluation(self):
        return ChatCollator(self.processor)

    def __call__(self, rows):
        batch = super().__call__(rows)
        return batch | {"labels": torch.full_like(batch["labels"], -100)}


def test_evaluation_goes_without_what_the_collator_does_for_training(tmp_path):
    plain = mm_trainer(chat_model(), tmp_path)
    changed = mm_trainer(chat_model(), tmp_path, more={"data_collator": Louder(processor())})
    assert isinstance(plain.data_collator, ChatCollator)
    assert changed.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"] > 1
    assert (changed.predict(ChatDataset(CHATS)).label_ids == plain.predict(ChatDataset(CHATS)).label_ids).all()
    assert isinstance(changed.data_collator, Louder)
    changed.train()
    assert changed.state.log_history[-1]["train_loss"] == 0.0


# ---- Logits of answers alone ----------------------------------------------------------------------------------------


class Recording(MMTrainer):
    """Keeps of how many tokens logits were made in each step, and how many tokens there were."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        seen = []
        head = model.get_output_embeddings()
        hook = head.register_forward_hook(lambda _, __, logits: seen.append(logits[..., 0].numel()))
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        hook.remove()
        learned = int((inputs["labels"][:, 1:] != -100).sum())
        self.positions = [*getattr(self, "positions", []), (seen[0], learned, inputs["input_ids"].numel())]
        return loss


@pytest.mark.parametrize("fields", [{}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}])
def test_logits_are_made_of_what_is_learned_and_the_weights_are_the_stock_trainers(tmp_path, fields):
    run = mm_trainer(chat_model(), tmp_path, trainer_class=Recording, **fields)
    more = {"data_collator": ChatCollator(processor())}
    stock = mm_trainer(chat_model(), tmp_path, trainer_class=Trainer, more=more, **fields)
    run.train(), stock.train()
    assert all(made == learned < tokens for made, learned, tokens in run.positions)
    assert run.state.log_history[0]["loss"] == pytest.approx(stock.state.log_history[0]["loss"], rel=1e-6)
    for name, value in weights(stock.model).items():
        torch.testing.assert_close(weights(run.model)[name], value, rtol=1e-5, atol=1e-7, msg=name)
    run.evaluate()
    made, _, tokens = run.positions[-1]
    assert made == tokens  # evaluation returns the logits, so all are made


@pytest.mark.parametrize(
    "batch",
    [
        {"input_ids": torch.ones(2, 3, dtype=torch.long)},
        {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.ones(2, dtype=torch.long)},
        {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.ones(2, 3)},
        {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.full((2, 3), -100)},
    ],
    ids=["none", "of rows", "of several kinds", "all ignored"],
)
def test_labels_that_are_not_those_of_tokens_are_left_alone(batch):
    assert trainer.with_answers_only(batch) is batch


def test_only_what_predicts_an_answer_is_kept():
    labels = torch.tensor([[-100, -100, -100, 7], [-100, -100, 8, 9]])
    batch = trainer.with_answers_only({"input_ids": torch.zeros_like(labels), "labels": labels})
    assert "labels" not in batch
    assert batch["logits_to_keep"].tolist() == [[False, False, True, False], [False, True, True, False]]
    assert batch["shift_labels"][batch["logits_to_keep"]].tolist() == [7, 8, 9]


class Prompting(ChatCollator):
    """Writes prompts itself: always the same one."""

    asked = 0

    def prompt_batch(self, rows):
        assert all(isinstance(row, ChatRow) for row in rows)
        Prompting.asked += len(rows)
        row = encode_conversation(self.processor, chat("hello", "a")["messages"])
        return {name: row[name][None].expand(len(rows), -1) for name in ("input_ids", "attention_mask")}


def test_a_collator_that_writes_prompts_is_asked_for_them(tmp_path):
    run = mm_trainer(
        chat_model(), tmp_path, more={"data_collator": Prompting(processor())}, predict_with_generate=True
    )
    answered = run.answer_dataset(run.eval_dataset)
    assert Prompting.asked == len(CHATS) and len({row.answer for row in answered}) == 1
    plain = mm_trainer(chat_model(), tmp_path, predict_with_generate=True)
    assert len({answer.answer for answer in plain.answer_dataset(plain.eval_dataset)}) > 4


def test_the_collators_processor_serves_where_none_was_given(tmp_path):
    collate = {"data_collator": ChatCollator(processor()), "processing_class": None}
    run = mm_trainer(chat_model(), tmp_path, predict_with_generate=True, more=collate)
    with_processor = mm_trainer(chat_model(), tmp_path, predict_with_generate=True)
    assert run.answer_dataset(run.eval_dataset) == with_processor.answer_dataset(with_processor.eval_dataset)


# ---- The bar --------------------------------------------------------------------------------------------------------


def test_without_a_terminal_each_logging_step_and_evaluation_is_a_line(tmp_path, capsys):
    fields = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
    run = mm_trainer(chat_model(), tmp_path, disable_tqdm=False, **fields)
    LossProgressCallback.take_over(run)
    run.train()
    first, second, evaluated = run.state.log_history[:3]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    expected = [f"step 1 of 2: loss {first['loss']:.3f}", f"step 2 of 2: loss {second['loss']:.3f}"]
    assert lines == [*expected, f"step 2: loss {evaluated['eval_loss']:.3f}"]


def test_the_bar_shows_the_loss_and_a_line_for_each_evaluation(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fields = {"predict_with_generate": True, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    run = mm_trainer(chat_model(), tmp_path, disable_tqdm=False, **fields)
    LossProgressCallback.take_over(run)
    run.train()
    written, bar = capsys.readouterr()
    loss, evaluated = run.state.log_history[0]["loss"], run.state.log_history[1]["eval_loss"]
    assert f"loss={loss:.3f}" in bar
    lines = [line for line in written.splitlines() if line.startswith("step ")]
    tasks = ", ".join(f"{name}exact_match 0.000" for name in ("", "color_", "talk_", "sound_"))
    assert lines[0] == f"step 1: loss {evaluated:.3f}, {tasks}" and lines[1].startswith("step 2: loss ")


# ---- Batches of alike samples ---------------------------------------------------------------------------------------


def test_samples_of_a_batch_are_alike_in_their_media_if_asked_for(tmp_path):
    """Eight chats: three with one image, one with audio, one with both, three with text alone."""
    trainer = mm_trainer(chat_model(), tmp_path / "grouped", group_by_media=True, per_device_train_batch_size=2)
    sampler = trainer._get_train_sampler()
    assert isinstance(sampler, MediaLengthGroupedSampler) and sampler.batch_size == 2
    order = list(sampler)
    kinds = [media_size(CHATS[i])[:2] for i in order]
    assert sorted(order) == list(range(8))
    assert sum(kinds[i] == kinds[i + 1] for i in range(0, 8, 2)) >= 2
    trainer.train()
    plain = mm_trainer(chat_model(), tmp_path / "plain")
    assert not isinstance(plain._get_train_sampler(), MediaLengthGroupedSampler)


# ---- What several processes need ------------------------------------------------------------------------------------


def test_every_process_reads_its_own_share_of_a_stream(tmp_path):
    """Dispatched batches would have to be of one shape."""
    assert arguments(tmp_path).accelerator_config.dispatch_batches is False
    given = arguments(tmp_path, accelerator_config={"dispatch_batches": True})
    assert given.accelerator_config.dispatch_batches is True


def test_data_that_fill_no_batch_are_refused(tmp_path):
    """The stock trainer ends at step 0 with a warning."""
    options = {"per_device_train_batch_size": len(CHATS) + 1, "max_steps": 1}
    dropping = mm_trainer(chat_model(), tmp_path, dataloader_drop_last=True, **options)
    with pytest.raises(
        ValueError, match=rf"hold {len(CHATS)} examples, but a batch takes {len(CHATS) + 1} in each of 1"
    ):
        dropping.train()


def test_evaluation_data_that_fill_no_batch_are_measured(tmp_path):
    """The stock trainer drops their only batch, and leaves out the loss without a word."""
    losses = []
    for drops, size in ((True, len(CHATS) + 1), (False, len(CHATS))):
        options = {"dataloader_drop_last": drops, "per_device_eval_batch_size": size}
        one = mm_trainer(chat_model(), tmp_path, **options)
        losses += [one.evaluate()["eval_loss"], one.predict(one.eval_dataset).metrics["test_loss"]]
        assert one.args.dataloader_drop_last is drops
    assert losses == [pytest.approx(losses[0], abs=1e-6)] * 4


def test_the_training_data_are_told_which_epoch_begins(tmp_path):
    told = []

    class Told(ChatDataset):
        def set_epoch(self, epoch):
            told.append(epoch)
            super().set_epoch(epoch)

    mm_trainer(chat_model(), tmp_path, train=Told(CHATS), max_steps=-1, num_train_epochs=2).train()
    assert {0, 1} <= set(told)
