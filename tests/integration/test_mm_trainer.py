"""MMTrainer end to end: figures of answers, and the losses and weights that accumulation, checkpointing, precision and
clipping must give; all that the stock `Trainer` does; two processes.

This module is also the program of the two processes (gloo, CPU), which run every case below in one launch.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from modeling_mm import MMForConditionalGeneration
from modeling_mm.data import ChatDataset, load_chats
from modeling_mm.evaluation import generate_answers, score
from modeling_mm.training import ChatCollator, MMTrainer, ThawCallback, encode_conversation
from tests.fakes.ranks import launch_well
from tests.fakes.tiny import difference
from tests.fakes.tiny_chats import (
    CHATS,
    DEFAULTS,
    arguments,
    chat_model,
    losses,
    mm_trainer,
    moved,
    processor,
    weights,
)

PROMPTS = [sample["messages"][:1] for sample in CHATS]
TRUTHS = [sample["messages"][1]["content"][0]["text"] for sample in CHATS]
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-3}
TIMEOUT = 150  # seconds for all the cases of one launch


def stock_trainer(model, folder, **fields):
    """The stock Trainer with the same data, collator and arguments."""
    set_seed(0)
    known = {name: value for name, value in {**DEFAULTS, **fields}.items() if not name.startswith("generation_")}
    return Trainer(model, TrainingArguments(str(folder), **known), ChatCollator(processor()), ChatDataset(CHATS))


TRAINERS = {"mm": mm_trainer, "stock": stock_trainer}


def same_weights(one, other, tolerance):
    for name, tensor in one.state_dict().items():
        assert difference(other.state_dict()[name], tensor) <= tolerance, name


# ---- Losses and weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_accumulated_loss_and_weights_equal_the_full_batch_to_1e_5(tmp_path, size, trainer):
    lengths = {len(processor().tokenizer(truth).input_ids) for truth in TRUTHS}
    assert len(lengths) > 4, "answers of different lengths: the mean of means would be another"
    full, parts = chat_model(), chat_model()
    start = weights(full)
    whole = TRAINERS[trainer](full, tmp_path)
    whole.train()
    fields = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
    split = TRAINERS[trainer](parts, tmp_path, **fields)
    split.train()
    assert abs(losses(whole)[0] - losses(split)[0]) <= 1e-5
    same_weights(full, parts, 1e-5)
    assert max(difference(tensor, start[name]) for name, tensor in full.state_dict().items()) > 1e-3


def test_the_loss_is_the_mean_over_the_answers_tokens(tmp_path):
    run = mm_trainer(chat_model(), tmp_path)
    run.train()
    batch = ChatCollator(processor())(CHATS)
    with torch.no_grad():
        logits = chat_model()(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert abs(losses(run)[0] - expected.item()) <= 1e-5


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_loss_and_weights_are_the_plain_ones(tmp_path, reentrant):
    plain, checkpointed = chat_model(), chat_model()
    runs = [mm_trainer(plain, tmp_path, max_steps=2)]
    kwargs = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    runs.append(mm_trainer(checkpointed, tmp_path, max_steps=2, gradient_checkpointing=True, **kwargs))
    for run in runs:
        run.train()
    assert any(getattr(module, "gradient_checkpointing", False) for module in checkpointed.modules())
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), abs=1e-6)
    same_weights(plain, checkpointed, 1e-5)


def test_bf16_autocast_is_close_and_keeps_float32_weights(tmp_path):
    plain, low = chat_model(), chat_model()
    runs = [mm_trainer(plain, tmp_path, max_steps=4), mm_trainer(low, tmp_path, max_steps=4, bf16=True)]
    for run in runs:
        run.train()
    assert losses(runs[1]) != losses(runs[0])
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=0.02)
    assert {parameter.dtype for parameter in low.parameters()} == {torch.float32}


def test_fp16_autocast_is_close():
    """What the CPU can do of fp16: forward and backward. Its loss scaling needs a GPU."""
    batch = ChatCollator(processor())(CHATS)
    plain, low = chat_model(), chat_model()
    expected = plain(**batch).loss
    with torch.autocast("cpu", torch.float16):
        loss = low(**batch).loss
    loss.backward()
    assert loss.item() != expected.item() and loss.item() == pytest.approx(expected.item(), rel=0.01)
    assert all(torch.isfinite(parameter.grad).all() for parameter in low.parameters() if parameter.grad is not None)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_low_precision_on_a_gpu(tmp_path, precision):
    runs = [mm_trainer(chat_model(), tmp_path, use_cpu=False, max_steps=6, **ADAMW, **fields)
            for fields in ({}, {precision: True, "predict_with_generate": True})]  # fmt: skip
    for run in runs:
        run.train()
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=0.05)
    assert "eval_exact_match" in runs[1].evaluate()


def test_clipping_clips_the_norm_of_the_whole_gradient(tmp_path):
    """With plain gradient descent the weights move by the gradient times the learning rate."""
    moves = {}
    for limit in (0.0, 1.0):
        model = chat_model()
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        run = mm_trainer(model, tmp_path, max_grad_norm=limit, learning_rate=0.5)
        run.train()
        squares = sum((p.detach() - before[name]).double().pow(2).sum() for name, p in model.named_parameters())
        moves[limit] = squares.sqrt().item() / 0.5
        assert run.state.log_history[0]["grad_norm"] == pytest.approx(moves[0.0], rel=1e-4), "the norm before clipping"
    assert moves[0.0] > 2 and moves[1.0] == pytest.approx(1.0, rel=1e-3)


# ---- Answers in evaluation ------------------------------------------------------------------------------------------


def test_evaluation_adds_figures_of_all_answers_and_of_each_task(tmp_path):
    metrics = ["exact_match", "cer", "chrf"]
    pytest.importorskip("jiwer"), pytest.importorskip("sacrebleu")
    model = chat_model()
    run = mm_trainer(
        model, tmp_path, max_steps=40, predict_with_generate=True, metrics=metrics, **ADAMW | {"learning_rate": 1e-2}
    )
    run.train()
    found = run.evaluate()
    answers = generate_answers(model, processor(), PROMPTS, max_new_tokens=6)
    tasks = [sample["task"] for sample in CHATS]
    for metric in metrics:
        assert found[f"eval_{metric}"] == score(metric, answers, TRUTHS)
        for task in ("color", "talk", "sound"):
            pairs = [(a, t) for a, t, of in zip(answers, TRUTHS, tasks, strict=True) if of == task]
            assert found[f"eval_{task}_{metric}"] == score(metric, *map(list, zip(*pairs, strict=True)))
    assert 0 < found["eval_exact_match"] < 1, "some are right and some too long for six tokens"
    plain = mm_trainer(model, tmp_path)
    assert found["eval_loss"] == plain.evaluate()["eval_loss"], "the loss as usual"
    assert not any("exact" in name for name in plain.evaluate())


def test_length_and_beams_of_the_answers_are_as_asked(tmp_path):
    model = chat_model()
    for fields, options in (
        ({"generation_max_new_tokens": 2}, {"max_new_tokens": 2}),
        ({"generation_num_beams": 3}, {}),
    ):
        run = mm_trainer(model, tmp_path, predict_with_generate=True, **fields)
        inputs = processor().apply_chat_template(
            PROMPTS[:3], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        beams = {"num_beams": fields.get("generation_num_beams", 1), "do_sample": False}
        sequences = model.generate(**inputs, **{"max_new_tokens": 6, **beams, **options})
        expected = processor().batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert [answer.answer for answer in run.answer_dataset(ChatDataset(CHATS[:3]))] == [
            text.strip() for text in expected
        ]


def test_several_evaluation_sets_and_predictions(tmp_path):
    sets = {"first": ChatDataset(CHATS[:2]), "second": ChatDataset(CHATS[2:5])}
    run = mm_trainer(chat_model(), tmp_path, evaluate=sets, predict_with_generate=True, eval_strategy="steps")
    run.train()
    found = run.evaluate()
    for name in (
        "eval_first_loss",
        "eval_first_exact_match",
        "eval_first_color_exact_match",
        "eval_second_exact_match",
    ):
        assert name in found
    assert "eval_first_talk_exact_match" not in found and "eval_exact_match" not in found
    predicted = run.predict(sets["first"])
    assert predicted.metrics["test_exact_match"] == found["eval_first_exact_match"]
    assert len(predicted.predictions) == 2


def test_answering_does_not_disturb_training(tmp_path):
    """Dropout draws the same numbers, frozen encoders stay in evaluation, the rest trains on."""
    runs = []
    for answers in (False, True):
        model = chat_model(freeze_vision=True)
        model.config.text_config.resid_pdrop = 0.1
        for block in model.model.language_model.h:
            block.mlp.dropout = 0.3
        fields = {"eval_strategy": "steps", "eval_steps": 1, "predict_with_generate": answers}
        runs.append(mm_trainer(model, tmp_path, max_steps=3, per_device_train_batch_size=4, **fields))
        runs[-1].train()
    assert losses(runs[0]) == losses(runs[1])
    same_weights(runs[0].model, runs[1].model, 0.0)


def test_answers_with_checkpointing_and_bf16(tmp_path):
    fields = {"bf16": True, "gradient_checkpointing": True, "predict_with_generate": True, "eval_strategy": "steps"}
    run = mm_trainer(chat_model(), tmp_path, eval_steps=1, max_steps=2, **fields)
    run.train()
    assert sum("eval_exact_match" in entry for entry in run.state.log_history) == 2


# ---- All that the stock Trainer does --------------------------------------------------------------------------------


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "train.jsonl"
    texts = [sample for sample in CHATS if len(sample["messages"][0]["content"]) == 1]
    path.write_text("".join(json.dumps(sample) + "\n" for sample in texts))
    return path, len(texts)


def test_streams_train_and_are_answered(tmp_path, jsonl):
    path, rows = jsonl
    stream = load_chats(str(path), streaming=True)
    run = mm_trainer(chat_model(), tmp_path / "out", stream, stream, predict_with_generate=True, max_steps=4)
    before = weights(run.model)
    run.train()
    assert moved(run.model, before)
    table = load_chats(str(path))
    assert [answer.row for answer in run.answer_dataset(stream)] == list(range(rows))
    assert run.answer_dataset(stream) == run.answer_dataset(table)
    assert run.evaluate()["eval_exact_match"] == run.evaluate(table)["eval_exact_match"]


def test_workers_load_the_data(tmp_path):
    plain = mm_trainer(chat_model(), tmp_path, per_device_train_batch_size=4)
    workers = mm_trainer(chat_model(), tmp_path, per_device_train_batch_size=4, dataloader_num_workers=1)
    plain.train(), workers.train()
    assert losses(workers) == losses(plain)


def test_rows_already_encoded_and_a_collator_of_the_users_own(tmp_path):
    rows = [encode_conversation(processor(), sample["messages"]) for sample in CHATS]
    collate = {"data_collator": partial(processor().pad, padding_side="right")}
    run = mm_trainer(chat_model(), tmp_path, ChatDataset(CHATS), None)
    encoded = MMTrainer(chat_model(), run.args, train_dataset=rows, eval_dataset=rows, **collate)
    encoded.train(), run.train()
    assert losses(encoded) == losses(run)
    assert encoded.evaluate()["eval_loss"] == run.evaluate(ChatDataset(CHATS))["eval_loss"]


class Halt(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 3


def test_training_goes_on_where_it_stopped(tmp_path):
    fields = {"max_steps": 6, "per_device_train_batch_size": 4, "text_learning_rate": 5e-4, **ADAMW}
    whole, resumed = chat_model(), chat_model()
    one = mm_trainer(whole, tmp_path / "whole", **fields)
    one.train()
    saving = {"save_strategy": "steps", "save_steps": 3}
    mm_trainer(chat_model(), tmp_path / "parts", callbacks=[Halt()], **saving, **fields).train()
    two = mm_trainer(resumed, tmp_path / "parts", **saving, **fields)
    two.train(resume_from_checkpoint=True)
    same_weights(whole, resumed, 1e-6)
    assert losses(two)[3:] == pytest.approx(losses(one)[3:], abs=1e-6)
    loaded = MMForConditionalGeneration.from_pretrained(tmp_path / "parts" / "checkpoint-6")
    same_weights(whole, loaded, 1e-6)


def test_the_best_model_by_its_answers_is_kept_and_training_stops_early(tmp_path):
    fields = {
        "predict_with_generate": True,
        "metric_for_best_model": "cer",
        "metrics": ["cer"],
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "save_strategy": "steps",
        "save_steps": 5,
        "max_steps": 200,
    }
    pytest.importorskip("jiwer")
    run = mm_trainer(
        chat_model(), tmp_path, callbacks=[EarlyStoppingCallback(2)], **fields, **ADAMW | {"learning_rate": 1e-2}
    )
    run.train()
    rates = [entry["eval_cer"] for entry in run.state.log_history if "eval_cer" in entry]
    assert run.state.global_step < 200 and min(rates) < rates[0]
    assert run.state.best_metric == min(rates)
    assert run.evaluate()["eval_cer"] == min(rates)


def test_hyperparameter_search_over_rates_of_parts(tmp_path):
    pytest.importorskip("optuna")
    made = []

    def model_init():
        made.append(chat_model())
        return made[-1]

    fields = {"predict_with_generate": True, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 2}
    more = {"model_init": model_init, "callbacks": [ThawCallback({"vision": 1})]}
    run = MMTrainer(
        args=arguments(tmp_path, **fields),
        train_dataset=ChatDataset(CHATS),
        eval_dataset=ChatDataset(CHATS),
        processing_class=processor(),
        **more,
    )
    rates = iter([0.0, 0.1])
    best = run.hyperparameter_search(
        lambda trial: {"text_learning_rate": trial.suggest_float("text_learning_rate", *[next(rates)] * 2)},
        compute_objective=lambda metrics: metrics["eval_loss"],
        n_trials=2,
    )
    assert best.run_id == "1" and best.hyperparameters == {"text_learning_rate": 0.1}
    start = chat_model().state_dict()
    for model, learns in zip(made[-2:], (False, True), strict=True):
        changed = moved(model, start)
        assert ("lm_head.weight" in changed) is learns
        assert any("vision_tower" in name for name in changed), "each trial's model thaws"


def test_tensorboard_shows_losses_and_figures_of_answers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fields = {"report_to": ["tensorboard"], "predict_with_generate": True, "eval_strategy": "steps", "eval_steps": 1}
    run = mm_trainer(chat_model(), tmp_path, max_steps=2, **fields)
    run.train()
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    assert {"train/loss", "eval/loss", "eval/exact_match", "eval/color_exact_match"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("eval/exact_match")] == [1, 2]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses(run))


def test_tensorboard_shows_media_with_their_answers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    image = {"type": "image", "image": np.full((4, 8, 3), 200, np.uint8)}
    audio = {"type": "audio", "audio": np.zeros(1600, np.float32), "sampling_rate": 16_000}
    pairs = [(image, "Which | color?", "gray"), (audio, "What is heard?", "nothing")]
    chats = [
        {
            "messages": [
                {"role": "user", "content": [part, {"type": "text", "text": question}]},
                {"role": "assistant", "content": [{"type": "text", "text": truth}]},
            ]
        }
        for part, question, truth in pairs
    ]
    fields = {"report_to": ["tensorboard"], "predict_with_generate": True, "generation_max_new_tokens": 2}
    run = mm_trainer(chat_model(), tmp_path, evaluate=chats, max_steps=1, **fields)
    run.train()
    answers = [each.answer for each in run.answer_dataset(run.eval_dataset)]
    run.evaluate(metric_key_prefix="test_held")  # training has closed the writer
    (folder,) = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    assert events.Tags()["images"] == ["test/held/row 0, image 0"]
    assert events.Tags()["audio"] == ["test/held/row 1, audio 0"]
    (table,) = events.Tensors("test/held/answers/text_summary")
    lines = table.tensor_proto.string_val[0].decode().splitlines()
    assert lines[2] == f"| 0 | Which \\| color? | {answers[0]} | gray |"
    assert lines[3] == f"| 1 | What is heard? | {answers[1]} | nothing |"


# ---- Two processes --------------------------------------------------------------------------------------------------

THAW = {"callbacks": [ThawCallback({"vision": 1, "text": 2})], "max_steps": 4}
ODD = CHATS[:5]  # not to be divided by two
# Different chats, so that counting one twice would change the figures.
FIELDS = {"predict_with_generate": True, "metrics": ["exact_match"]}


def rank_program(rank: int, folder: Path) -> None:
    """Answers, and training with parts that thaw; each process writes down what it got."""
    run = mm_trainer(chat_model(), folder / "answers", evaluate=ODD, per_device_eval_batch_size=2, **FIELDS)
    answers = [vars(answer) for answer in run.answer_dataset(run.eval_dataset)]
    streamed = [vars(answer) for answer in run.answer_dataset(sample for sample in ODD)]
    figures = {name: value for name, value in run.evaluate().items() if "exact" in name}
    model = chat_model()
    run = mm_trainer(model, folder / "thaw", per_device_train_batch_size=2, gradient_accumulation_steps=2, **THAW)
    run.train()
    torch.save(model.state_dict(), folder / f"weights-{rank}.pt")
    found = {"answers": answers, "streamed": streamed, "figures": figures, "losses": losses(run)}
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch_well(__file__, folder, timeout=TIMEOUT)
    return folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_every_process_gets_all_answers_once_and_in_order(two_processes, tmp_path):
    _, found = two_processes
    alone = mm_trainer(chat_model(), tmp_path, evaluate=ODD, **FIELDS)
    expected = [vars(answer) for answer in alone.answer_dataset(alone.eval_dataset)]
    assert [answer["row"] for answer in expected] == [0, 1, 2, 3, 4]
    figures = {name: value for name, value in alone.evaluate().items() if "exact" in name}
    for one in found:
        assert one["answers"] == one["streamed"] == expected
        assert one["figures"] == figures


def test_parts_that_thaw_under_ddp_learn_as_in_one_process(two_processes, tmp_path):
    folder, found = two_processes
    one, other = (torch.load(folder / f"weights-{rank}.pt", weights_only=True) for rank in range(2))
    assert all(difference(one[name], other[name]) == 0.0 for name in one), "the processes agree"
    model = chat_model()
    run = mm_trainer(model, tmp_path, **THAW)
    start = weights(model)
    run.train()
    assert any("vision_tower" in name for name in moved(model, start)) and "lm_head.weight" in moved(model, start)
    assert found[0]["losses"] == pytest.approx(losses(run), abs=1e-4)
    for name, tensor in model.state_dict().items():
        assert difference(one[name], tensor) <= 1e-4, name


if __name__ == "__main__":
    rank_program(int(os.environ["RANK"]), Path(sys.argv[1]))
