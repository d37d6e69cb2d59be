"""LoRA: what it adapts and what trains in full; only that is saved; PEFT loads it; merging changes nothing."""

import re
import sys

import pytest
import torch

from modeling_mm import MMForConditionalGeneration
from modeling_mm.training import LoraOptions, add_lora
from tests.fakes.tiny import difference, inputs, joined, opened
from tests.fakes.tiny_chats import CHATS, chat_model, losses, mm_trainer, moved, processor, weights

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

ROWS = [[5, 90, 6, 91, 7], [8, 9, 10]]
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-2}
CONNECTORS = {"model.vision_connector", "model.audio_connector"}
TEXT = {
    f"model.language_model.h.{i}.{p}"
    for i in range(4)
    for p in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
}
PROJECTIONS = ("cross_attn.q_attn", "cross_attn.c_attn", "cross_attn.c_proj", "mlp.c_fc", "mlp.c_proj")
CROSS = {f"model.language_model.cross_blocks.{i}.{name}" for i in (1, 3) for name in PROJECTIONS}
GATES = {f"model.language_model.cross_blocks.{i}.{name}" for i in (1, 3) for name in ("gate_attn", "gate_mlp")}
BLOCKS = {f"model.language_model.cross_blocks.{i}" for i in (1, 3)}


def adapted(model) -> set[str]:
    names = (re.sub(r"^base_model\.model\.", "", name) for name, _ in model.named_modules())
    return {name.removesuffix(".lora_A") for name in names if name.endswith(".lora_A")}


def in_full(model) -> set[str]:
    names = (re.sub(r"^base_model\.model\.", "", name) for name, _ in model.named_modules())
    return {name.removesuffix(".modules_to_save") for name in names if name.endswith(".modules_to_save")}


# ---- What is adapted and what is trained in full --------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, options, adapters, full",
    [
        (opened, {}, TEXT | CROSS, CONNECTORS | GATES),
        (joined, {}, TEXT, CONNECTORS | BLOCKS),
        (joined, {"train": ["connectors"]}, TEXT | CROSS, CONNECTORS | GATES),
        (joined, {"adapt": ["cross_attention"]}, CROSS, CONNECTORS | GATES),
        (opened, {"adapt": ["text"]}, TEXT, CONNECTORS),
        (opened, {"train": ["connectors", "cross_attention"]}, TEXT, CONNECTORS | BLOCKS),
        (opened, {"train": []}, TEXT | CROSS, GATES),
        (lambda: opened(cross_attention_gated=False), {}, TEXT | CROSS, CONNECTORS),
        (lambda: joined(cross_attention_gated=False), {}, TEXT, CONNECTORS | BLOCKS),
        (lambda: joined(vision=None, audio=None), {}, TEXT, set()),
    ],
    ids=[
        "trained",
        "fresh",
        "fresh_but_told",
        "cross_only",
        "text_only",
        "blocks_in_full",
        "adapters_only",
        "ungated",
        "fresh_and_ungated",
        "text_only_model",
    ],
)
def test_what_is_adapted_and_what_is_trained_in_full(model, options, adapters, full):
    model = add_lora(model(), options)
    assert adapted(model) == adapters
    assert in_full(model) == full
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or ".modules_to_save." in name for name in trainable)
    assert len([name for name in trainable if ".lora_" in name]) == 2 * len(adapters)


def test_rank_alpha_and_dropout():
    model = add_lora(opened(), {"r": 3, "alpha": 12, "dropout": 0.25})
    layer = model.base_model.model.model.language_model.h[0].attn.c_attn
    assert layer.lora_A["default"].weight.shape == (3, 32) and layer.lora_B["default"].weight.shape == (96, 3)
    assert layer.scaling == {"default": 4.0} and layer.lora_dropout["default"].p == 0.25


def test_adapters_start_by_changing_nothing():
    batch = inputs(ROWS)
    with torch.no_grad():
        assert difference(add_lora(opened()).eval()(**batch).logits, opened()(**batch).logits) == 0.0


def test_every_parameter_that_trains_gets_a_gradient():
    model = add_lora(opened()).train()
    batch = inputs(ROWS)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    lacking = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
    assert not model.base_model.model.model.vision_tower.training, "frozen encoders stay in evaluation"


# ---- Options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"alfa": 16}, "unknown key 'alfa'. Did you mean 'alpha'?"),
        ({"r": 0}, "r must be at least 1, got 0"),
        ({"r": "8"}, 'lora.r: expected a valid integer, got "8"'),
        ({"alpha": 0}, "alpha must be above 0, got 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1, got 1.0"),
        ({"adapt": ["txt"]}, "adapt takes text, cross_attention, got 'txt'. Did you mean 'text'?"),
        ({"adapt": []}, "adapt names no part"),
        ({"train": ["vision"]}, "train takes connectors, cross_attention, head, got 'vision'"),
        ({"adapt": ["cross_attention"], "train": ["cross_attention"]}, "adapt and train both name cross_attention"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        add_lora(joined(), options)
    assert message in str(error.value)


def test_defaults():
    assert LoraOptions() == LoraOptions(r=8, alpha=16, dropout=0.0, adapt=None, train=None)


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install modeling_mm\[train\]"):
        add_lora(joined())


# ---- Training, saving, loading --------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    """A folder with a trained model, as fine-tuning starts from."""
    chat_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(folder):
    return MMForConditionalGeneration.from_pretrained(folder)


def logits(model, run):
    batch = run.data_collator(CHATS)
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("options", [{}, {"train": ["connectors", "cross_attention"]}], ids=["default", "in_full"])
def test_only_what_trains_is_saved_and_peft_loads_it_and_merging_changes_nothing(tmp_path, base, options):
    from safetensors.torch import load_file

    model = add_lora(load(base), {"r": 4, **options})
    before = weights(model)
    run = mm_trainer(model, tmp_path / "run", max_steps=3, **ADAMW)
    run.train()
    assert losses(run)[-1] < losses(run)[0]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved(model, before) == trainable
    run.save_model(str(tmp_path / "adapter"))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    assert set(saved) == {re.sub(r"(\.modules_to_save)?\.default", "", name) for name in trainable}
    expected = logits(model, run)
    assert difference(expected, logits(load(base), run)) > 1e-2, "training has changed something"
    loaded = peft.PeftModel.from_pretrained(load(base), tmp_path / "adapter")
    assert difference(logits(loaded, run), expected) == 0.0
    merged = loaded.merge_and_unload()
    assert type(merged) is MMForConditionalGeneration
    assert set(merged.state_dict()) == set(load(base).state_dict())
    assert difference(logits(merged, run), expected) <= 1e-4
    merged.save_pretrained(tmp_path / "merged")
    assert difference(logits(load(tmp_path / "merged"), run), expected) <= 1e-4


def test_it_answers_in_evaluation_and_goes_on_from_a_checkpoint(tmp_path, base):
    arguments = {"max_steps": 4, "per_device_train_batch_size": 4, "predict_with_generate": True, **ADAMW}
    whole = add_lora(load(base), {"r": 4})
    torch.manual_seed(1)
    run = mm_trainer(whole, tmp_path / "run", save_strategy="steps", save_steps=2, **arguments)
    start = weights(whole)
    run.train()
    resumed = add_lora(load(base), {"r": 4})
    resumed.load_state_dict(start)  # adapters start at random
    again = mm_trainer(resumed, tmp_path / "again", **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, tensor in whole.state_dict().items():
        assert difference(resumed.state_dict()[name], tensor) <= 1e-6, name
    answers = run.answer_dataset(run.eval_dataset)
    merged = mm_trainer(whole.merge_and_unload(), tmp_path / "merged", **arguments)
    assert merged.answer_dataset(merged.eval_dataset) == answers and len({answer.answer for answer in answers}) > 4


def test_its_parts_have_learning_rates_of_their_own(tmp_path):
    model = add_lora(chat_model())
    before = weights(model)
    rates = {"text_learning_rate": 0.0, "connector_learning_rate": 0.0}
    mm_trainer(model, tmp_path, max_steps=2, **rates, **ADAMW).train()
    assert {name.split(".cross_blocks.")[0] for name in moved(model, before)} == {
        "base_model.model.model.language_model"
    }


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_gradients_are_the_plain_ones(tmp_path, reentrant):
    plain, checkpointed = (add_lora(chat_model(), {"r": 4}) for _ in range(2))
    start = weights(plain)
    checkpointed.load_state_dict(start)
    more = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    mm_trainer(plain, tmp_path, **ADAMW).train()
    mm_trainer(checkpointed, tmp_path, **more, **ADAMW).train()
    assert moved(plain, start)
    for name, tensor in plain.state_dict().items():
        assert difference(checkpointed.state_dict()[name], tensor) <= 1e-5, name


def test_the_processor_is_saved_beside_the_adapter(tmp_path):
    run = mm_trainer(add_lora(chat_model()), tmp_path)
    run.save_model(str(tmp_path / "adapter"))
    assert (
        type(processor()).from_pretrained(tmp_path / "adapter").tokenizer.get_vocab()
        == processor().tokenizer.get_vocab()
    )


def test_a_saved_adapter_is_readable_as_the_configuration_beside_it(tmp_path):
    mm_trainer(add_lora(chat_model()), tmp_path).save_model(str(tmp_path / "adapter"))
    modes = {path.stat().st_mode for path in (tmp_path / "adapter").glob("adapter_*")}
    assert len(modes) == 1 and modes.pop() & 0o777 != 0o600
