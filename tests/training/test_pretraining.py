"""pretraining.py: chats become batches for four objectives, and a trainer measures each of them."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from modeling_mm import MODALITIES, MMForPreTraining
from modeling_mm.configuration_mm import OBJECTIVES
from modeling_mm.data import ChatDataset
from modeling_mm.training import (
    IGNORED,
    ChatCollator,
    Masking,
    MMTrainer,
    MMTrainingArguments,
    ModalityDropout,
    PretrainingCollator,
    RetrievalCollator,
)
from modeling_mm.training.pretraining import NamedFigures, measure_objectives
from tests.fakes.pipeline_parts import COLORS, build
from tests.training.test_matching import WORDS, chats, heard, seen

LOSSES = [f"{name}_loss" for name in OBJECTIVES]


@pytest.fixture(scope="module")
def parts():
    return build(MMForPreTraining, projection_dim=8)


@pytest.fixture
def rows():
    return chats([seen("red")], [seen("blue"), heard(1)], [heard(2)])


def test_a_batch_has_what_each_objective_learns_from(parts, rows):
    model, processor = parts
    collate = PretrainingCollator(processor, Masking(tokens=0.5, modalities=0.0))
    batch, plain = collate(rows), ChatCollator(processor)(rows)
    assert {name: torch.equal(value, plain[name]) for name, value in batch.items() if name in plain} == (
        dict.fromkeys(plain, True)
    )
    texts = processor.tokenizer.batch_decode(batch["text_input_ids"], skip_special_tokens=True)
    assert tuple(texts) == WORDS
    answers = RetrievalCollator(processor)(rows)
    assert torch.equal(batch["text_input_ids"], answers["input_ids"])
    assert torch.equal(batch["text_attention_mask"], answers["attention_mask"])
    assert not batch["hidden_modalities"].any()
    targets, ids = batch["masked_targets"], batch["input_ids"]
    is_masked = targets != IGNORED
    assert torch.equal(targets[is_masked], ids[is_masked])
    special = set(processor.tokenizer.all_special_ids)
    for row in range(3):
        words = [token for token in ids[row].tolist() if token not in special]
        assert is_masked[row].sum() == round(0.5 * len(words))
        assert not special & set(targets[row][is_masked[row]].tolist())
    output = model(**batch)
    assert set(output.losses) == {"causal_lm", "masked_lm", "matching", "contrastive"} and output.loss.isfinite()


def test_masks_depend_on_the_example_its_epoch_and_the_seed_alone(parts, rows):
    def masks(rows, **options) -> tuple[list, list]:
        batch = PretrainingCollator(parts[1], Masking(tokens=0.4, modalities=0.5, **options))(rows)
        width = max(len(row) for row in batch["masked_targets"])
        return batch["masked_targets"][:, :width].tolist(), batch["hidden_modalities"].tolist()

    (found, hidden), (again, hidden_again) = masks(rows), masks(rows[::-1])
    assert found == again[::-1] and hidden == hidden_again[::-1]
    later = [dataclasses.replace(row, epoch=1) for row in rows]
    assert masks(later)[0] != found and masks(rows, seed=1)[0] != found
    epochs = [masks([dataclasses.replace(row, epoch=epoch) for row in rows])[1] for epoch in range(60)]
    shares = torch.tensor(epochs, dtype=torch.float).mean(0)  # (3, M)
    there = torch.tensor([[True, False], [True, True], [False, True]])
    assert not shares[~there].any()
    assert (shares[there] - 0.5).abs().max() < 0.25


@pytest.mark.parametrize(("options", "message"), [
    ({"tokens": 1.5}, "`tokens` of Masking must lie in"),
    ({"modalities": -0.1}, "`modalities` of Masking must lie in"),
    ({"tokens": 0}, "Set masked_lm_weight to 0 to mask none"),
])  # fmt: skip
def test_wrong_masks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Masking(**options)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_never_masked_nor_is_the_first_token(parts, rows, side):
    collate = PretrainingCollator(parts[1], Masking(tokens=1.0), ChatCollator(parts[1], padding_side=side))
    collate.special_ids = collate.special_ids[:0]  # else the first token, a role's, would not be masked anyway
    batch = collate(rows)
    is_masked = batch["masked_targets"] != IGNORED
    assert not (is_masked & ~batch["attention_mask"].bool()).any()
    first = batch["attention_mask"].int().argmax(-1)
    assert not is_masked[torch.arange(3), first].any()
    assert torch.equal(is_masked.sum(-1), batch["attention_mask"].sum(-1) - 1)


def test_the_smallest_share_masks_one_token(parts, rows):
    batch = PretrainingCollator(parts[1], Masking(tokens=1e-3))(rows)
    assert (batch["masked_targets"] != IGNORED).sum(-1).tolist() == [1, 1, 1]


def test_texts_are_padded_on_the_right_whatever_the_rows_are(parts, rows):
    batch = PretrainingCollator(parts[1], chats=ChatCollator(parts[1], padding_side="left"))(rows)
    assert not batch["attention_mask"][:, 0].all()
    expected = RetrievalCollator(parts[1])(rows)
    assert not expected["attention_mask"][:, -1].all()
    assert torch.equal(batch["text_input_ids"], expected["input_ids"])
    assert torch.equal(batch["text_attention_mask"], expected["attention_mask"])


def test_evaluation_goes_without_dropout_but_with_the_same_masks(parts, rows):
    chats = ChatCollator(parts[1], modality_dropout=ModalityDropout(image=1.0, unchanged_tasks=()))
    collate = PretrainingCollator(parts[1], Masking(tokens=1.0), chats)
    plain = PretrainingCollator(parts[1], Masking(tokens=1.0))(rows)
    assert "pixel_values" not in collate(rows[1:2])
    found = collate.for_evaluation()(rows)
    assert found.keys() == plain.keys()
    assert {name: torch.equal(found[name], plain[name]) for name in plain} == dict.fromkeys(plain, True)


def test_a_last_row_alone_is_measured_with_the_batch_before_it(parts, rows):
    model, processor = parts
    collate = PretrainingCollator(processor)
    five = [*rows, *rows[:2]]
    whole, first, last = (measure_objectives(model, collate, each, 5) for each in (five, five[:2], five[2:]))
    assert {*LOSSES, "masked_lm_accuracy"} <= set(whole)
    assert measure_objectives(model, collate, five, rows_at_once=4) == whole
    found = measure_objectives(model, collate, five, rows_at_once=2)
    for name in LOSSES:
        assert found[name] == pytest.approx((first[name] + last[name]) / 2, abs=1e-6), name
    with pytest.raises(ValueError, match="but the batch has 1 row"):
        measure_objectives(model, collate, rows[:1], rows_at_once=4)


def test_accuracies_count_what_is_right():
    figures = NamedFigures()
    targets = torch.tensor([[IGNORED, 2, 0], [1, IGNORED, IGNORED]])
    words = torch.eye(3)[torch.tensor([2, 0, 2])]  # the last of three is wrong
    # Logits of the texts with their own media, then of the same texts with others.
    matches = torch.tensor([3.0, -1.0, -2.0, -4.0])
    losses = {"masked_lm": torch.tensor(0.5), "matching": torch.tensor(0.25)}
    output = SimpleNamespace(losses=losses, masked_logits=words, matching_logits=matches)
    figures.add({"masked_targets": targets}, output)
    figures.add({}, SimpleNamespace(losses=None))
    found = figures.take()
    assert found == pytest.approx({
        "masked_lm_loss": 0.5, "matching_loss": 0.25, "masked_lm_accuracy": 2 / 3, "matching_accuracy": 3 / 4
    })  # fmt: skip
    assert figures.take() == {}


def test_a_trainer_learns_logs_and_measures_every_objective(parts, tmp_path):
    processor = parts[1]
    model = build(MMForPreTraining, projection_dim=8)[0]
    rows = ChatDataset(chats(*[[seen(color), heard(seed)] for seed, color in enumerate(COLORS)]))
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "max_steps": 30}
    options |= {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 3, "learning_rate": 3e-3}
    options |= {"eval_strategy": "steps", "eval_steps": 30, "metric_for_best_model": "matching_accuracy"}
    arguments = MMTrainingArguments(str(tmp_path), logging_steps=10, **options)
    collate = PretrainingCollator(processor, Masking(tokens=0.3, modalities=0.1))
    trainer = MMTrainer(model, arguments, collate, rows, rows, processor)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    for name in LOSSES:
        assert after[f"eval_{name}"] < before[f"eval_{name}"], name
    total = sum(after[f"eval_{name}"] for name in LOSSES)
    assert after["eval_loss"] == pytest.approx(total, abs=1e-3)
    assert before["eval_masked_lm_accuracy"] < 0.5 < after["eval_masked_lm_accuracy"] <= 1
    assert 0 <= after["eval_matching_accuracy"] <= 1
    assert {f"eval_text_to_{name}_recall_at_1" for name in MODALITIES} <= set(after)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3
    for entry in logged:
        assert sum(entry[name] for name in LOSSES) == pytest.approx(entry["loss"], rel=1e-3)


def test_what_is_off_is_neither_measured_nor_a_metric_to_choose_by(parts, tmp_path):
    processor = parts[1]
    model = build(MMForPreTraining, contrastive_weight=0.0, matching_weight=0.0)[0]
    rows = ChatDataset(chats([seen("red")], [seen("blue")]))
    options = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "max_steps": 1}
    options |= {"eval_strategy": "steps", "metric_for_best_model": "text_to_image_recall_at_1"}
    trainer = MMTrainer(
        model, MMTrainingArguments(str(tmp_path), **options), PretrainingCollator(processor), rows, rows
    )
    found = trainer.evaluate()
    assert {name for name in LOSSES if f"eval_{name}" in found} == {"causal_lm_loss", "masked_lm_loss"}
    assert not [name for name in found if "recall" in name or "matching" in name]
    with pytest.raises(ValueError, match="evaluation gives no 'text_to_image_recall_at_1'"):
        trainer.train()
