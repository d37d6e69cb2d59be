"""The stock `Trainer` of transformers: it trains, accumulates, evaluates, saves and resumes, with no line of ours."""

import pytest
import torch
from transformers import Trainer, TrainingArguments, set_seed

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification
from tests.fakes.tiny import AUDIO, IMAGE, difference, image, inputs, joined, labels, opened, sound

pytest.importorskip("accelerate")
# Rows of unequal numbers of words and media: a mean over micro-batches is not the mean over the words.
ROWS = [
    [5, IMAGE, 6, 7, 8, 9, 10, 11],
    [12, 13],
    [AUDIO, 14, 15, 16],
    [IMAGE, IMAGE, 17, 18, 19],
    [20, 21, 22, 23, 24, 25, 26, 27],
    [AUDIO, IMAGE, 28, 29],
    [30, 31, 32],
    [33, IMAGE, 34],
]


class Samples(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.samples = [{"row": row, "index": i} for i, row in enumerate(rows)]

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def collate(samples):
    rows = [sample["row"] for sample in samples]
    images = [[image(10 * s["index"] + j) for j in range(s["row"].count(IMAGE))] for s in samples]
    sounds = [[sound(10 * s["index"] + j) for j in range(s["row"].count(AUDIO))] for s in samples]
    batch = inputs(rows, images, sounds)
    return batch | {"labels": labels(batch)}


def trainer(model, folder, **arguments):
    defaults = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 3,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "remove_unused_columns": False,
        "seed": 0,
    }
    arguments = TrainingArguments(**{**defaults, **arguments})
    set_seed(0)
    samples = Samples(ROWS)
    return Trainer(model, arguments, data_collator=collate, train_dataset=samples, eval_dataset=samples)


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_accumulated_loss_and_weights_equal_the_full_batch_to_1e_5(tmp_path, size):
    full, parts = opened(), opened()
    whole = trainer(full, tmp_path)
    whole.train()
    split = trainer(parts, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
    split.train()
    assert abs(losses(whole)[0] - losses(split)[0]) <= 1e-5
    start = opened().state_dict()
    moved = 0.0
    for name, tensor in full.state_dict().items():
        assert difference(parts.state_dict()[name], tensor) <= 1e-5, name
        moved = max(moved, difference(tensor, start[name]))
    assert moved > 1e-3


def test_the_loss_reported_is_the_mean_over_all_words(tmp_path):
    run = trainer(opened(), tmp_path)
    run.train()
    batch = collate(Samples(ROWS).samples)
    with torch.no_grad():
        logits = opened()(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert abs(losses(run)[0] - expected.item()) <= 1e-4  # the log rounds


def test_training_lowers_the_loss_and_media_come_to_matter(tmp_path):
    model = joined()
    run = trainer(model, tmp_path, max_steps=30, optim="adamw_torch", learning_rate=1e-2)
    run.train()
    assert losses(run)[-1] < 0.5 * losses(run)[0]
    with torch.no_grad():
        one, other = (model.eval()(**inputs(ROWS[:1], seed=seed)).logits for seed in (0, 50))
    assert difference(one[:, 1:], other[:, 1:]) > 1e-3
    assert difference(one[:, :1], other[:, :1]) == 0.0


def test_the_evaluation_loop_and_predictions(tmp_path):
    model = opened()
    run = trainer(model, tmp_path)
    metrics = run.evaluate()
    batches = [collate(Samples(ROWS).samples[i : i + 3]) for i in (0, 3, 6)]
    with torch.no_grad():
        expected = sum(model(**batch).loss.item() * len(batch["labels"]) for batch in batches) / 8
    assert abs(metrics["eval_loss"] - expected) <= 1e-5
    found = run.predict(Samples(ROWS))
    assert found.predictions.shape == (8, 8, 97), "the logits alone, no caches and no media"
    with torch.no_grad():
        logits = model(**{name: tensor for name, tensor in batches[0].items() if name != "labels"}).logits
    assert difference(torch.tensor(found.predictions[:3]), logits) <= 1e-5
    assert found.label_ids.shape == (8, 8)


def test_save_load_and_resume(tmp_path):
    """Six steps in one go equal three, a checkpoint, and three more."""
    arguments = {"optim": "adamw_torch", "learning_rate": 1e-3, "per_device_train_batch_size": 4, "max_steps": 6}
    whole = opened()
    trainer(whole, tmp_path / "whole", **arguments).train()
    saving = {**arguments, "save_strategy": "steps", "save_steps": 3}
    trainer(opened(), tmp_path / "parts", **saving).train()
    folder = tmp_path / "parts" / "checkpoint-3"
    assert (folder / "model.safetensors").exists()
    resumed = opened()
    run = trainer(resumed, tmp_path / "parts", **arguments)
    run.train(resume_from_checkpoint=str(folder))
    for name, tensor in whole.state_dict().items():
        assert difference(resumed.state_dict()[name], tensor) <= 1e-6, name
    assert resumed.lm_head.weight is resumed.get_input_embeddings().weight
    run.save_model(str(tmp_path / "final"))
    loaded = MMForConditionalGeneration.from_pretrained(tmp_path / "final")
    with torch.no_grad():
        assert difference(loaded(**inputs(ROWS)).logits, resumed.eval()(**inputs(ROWS)).logits) == 0.0


def test_bf16_autocast_and_gradient_checkpointing(tmp_path):
    model = opened()
    kwargs = {"bf16": True, "gradient_checkpointing": True, "max_steps": 3}
    run = trainer(model, tmp_path, **kwargs)
    run.train()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    plain = trainer(opened(), tmp_path, max_steps=3)
    plain.train()
    assert abs(losses(run)[0] - losses(plain)[0]) <= 0.05 * losses(plain)[0]
    assert len(losses(run)) == 3 and all(loss == loss for loss in losses(run))


def test_frozen_parts_do_not_move(tmp_path):
    model = joined(freeze_text=True, freeze_vision=True, freeze_audio=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer(model, tmp_path, max_steps=2).train()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(".cross_blocks." in name or "_connector." in name for name in moved)


def test_the_collator_may_leave_out_what_a_batch_lacks(tmp_path):
    """Batches of one row: some without any media, and every trainable parameter still trains."""
    model = opened()
    run = trainer(model, tmp_path, per_device_train_batch_size=1, max_steps=8)
    run.train()
    assert len(losses(run)) == 8


def test_a_classifier_with_the_stock_trainer(tmp_path):
    model = joined(cls=MMForSequenceClassification, num_labels=2)

    def with_classes(samples):
        return collate(samples) | {"labels": torch.tensor([s["index"] % 2 for s in samples])}

    run = trainer(model, tmp_path, max_steps=30, optim="adamw_torch", learning_rate=5e-3)
    run.data_collator = with_classes
    run.train()
    assert losses(run)[-1] < 0.5 * losses(run)[0]
    found = run.predict(Samples(ROWS))
    assert found.predictions.shape == (8, 2)
