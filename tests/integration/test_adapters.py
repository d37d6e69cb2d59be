"""PEFT: LoRA and DoRA on decoder and cross-attention, by its own functions; merged, taken off, swapped, trained."""

import re

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification
from modeling_mm.training import MODULES_TO_SAVE, TARGET_MODULES, add_lora
from tests.fakes.tiny import AUDIO, IMAGE, difference, gpt2, inputs, joined, labels, opened
from tests.fakes.tiny_chats import CHATS, chat_model, losses, mm_trainer, moved, weights

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

ROWS = [[5, IMAGE, 6, AUDIO, 7], [8, 9, 10], [IMAGE, 11, IMAGE, 12]]
GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 3}
KINDS = {"lora": {}, "dora": {"dora": True}}


def plain_name(name: str) -> str:
    return name.removeprefix("base_model.model.")


def stock(model, **fields):
    """An adapter by PEFT's own config, with nothing of ours but the two constants."""
    config = peft.LoraConfig(
        r=4, target_modules=TARGET_MODULES, modules_to_save=MODULES_TO_SAVE, fan_in_fan_out=True, **fields
    )
    return peft.get_peft_model(model, config).eval()


@torch.no_grad()
def stirred(model, seed: int = 0):
    """As after training: everything that trains has moved, the half of the adapters that starts at zero too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model, seed: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(ROWS, seed=seed)).logits


# ---- What is adapted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [True, False])
def test_the_constant_names_every_projection_of_decoder_and_cross_attention(gated):
    model = opened(cross_attention_gated=gated, vision_connector="perceiver")
    named = {name for name, _ in model.named_modules() if re.fullmatch(TARGET_MODULES, name)}
    decoder = {
        name for name, module in model.named_modules() if isinstance(module, Conv1D) and ".language_model." in name
    }
    assert named == decoder and len(named) == 4 * 4 + 2 * 5


@pytest.mark.parametrize("dora", [False, True])
def test_what_trains_are_adapters_connectors_and_gates(dora):
    model = stock(opened(), use_dora=dora)
    trainable = {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
    adapters = {name for name in trainable if ".lora_" in name}
    assert len(adapters) == (3 if dora else 2) * (4 * 4 + 2 * 5)
    in_full = {name.split(".modules_to_save.")[0] for name in trainable - adapters}
    assert in_full == {
        *("model.vision_connector", "model.audio_connector"),
        *(f"model.language_model.cross_blocks.{i}.{gate}" for i in (1, 3) for gate in ("gate_attn", "gate_mlp")),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_our_function_and_pefts_own_config_make_the_same(kind):
    ours = add_lora(opened(), {"r": 4, "alpha": 8, **KINDS[kind]})
    theirs = stock(opened(), use_dora=kind == "dora", lora_alpha=8)
    shapes = [{name: p.shape for name, p in model.named_parameters() if p.requires_grad} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    theirs.load_state_dict(ours.state_dict())
    stirred(ours), stirred(theirs)
    assert difference(logits(ours.eval()), logits(theirs)) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_start_by_changing_nothing_and_each_gets_a_gradient(kind):
    model = add_lora(opened(), KINDS[kind])
    assert (
        difference(logits(model.eval()), logits(opened())) <= 1e-5
    )  # DoRA's length over itself is 1, but for rounding
    batch = inputs(ROWS)
    model.train()(**batch, labels=labels(batch)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("way", ["ours", "pefts"])
def test_a_classifiers_head_is_trained_and_saved_in_full(way, tmp_path):
    """It is fresh: frozen it would be noise, and an adapter without it would be read by another head."""
    build = lambda: opened(cls=MMForSequenceClassification)  # noqa: E731
    build().save_pretrained(tmp_path / "base")
    model = add_lora(build(), {"r": 4}) if way == "ours" else stock(build())
    assert {name for name, p in model.named_parameters() if p.requires_grad and ".score." in name} == {
        "base_model.model.score.modules_to_save.default.weight"
    }
    expected = logits(stirred(model).eval())
    model.save_pretrained(tmp_path / "adapter")
    base = MMForSequenceClassification.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert difference(logits(loaded), expected) == 0.0
    merged = loaded.merge_and_unload()
    assert difference(merged.score.weight, build().score.weight) > 1e-3
    assert difference(logits(merged), expected) <= 1e-4


def test_the_head_is_a_part_that_can_be_left_out():
    model = add_lora(opened(cls=MMForSequenceClassification), {"train": ["connectors"]})
    assert not [name for name, p in model.named_parameters() if p.requires_grad and ".score" in name]


@pytest.mark.parametrize("method", ["LoraConfig", "IA3Config", "AdaLoraConfig", "LNTuningConfig", "LoKrConfig"])
@pytest.mark.parametrize("cls", [MMForConditionalGeneration, MMForSequenceClassification])
def test_pefts_defaults_adapt_us_as_they_adapt_gpt2(cls, method):
    """And cross-attention's own projections beside GPT-2's; encoders and connectors never."""
    task = "CAUSAL_LM" if cls is MMForConditionalGeneration else "SEQ_CLS"
    options = {"total_step": 10} if method == "AdaLoraConfig" else {}
    make = lambda: getattr(peft, method)(task_type=task, **options)  # noqa: E731
    try:
        peft.get_peft_model(gpt2(), getattr(peft, method)(task_type="CAUSAL_LM", **options))
    except (TypeError, ValueError):
        pytest.skip(f"PEFT's {method} has no default for GPT-2")
    model = peft.get_peft_model(opened(cls=cls), make())
    trainable = {plain_name(name) for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all(".language_model." in name or "score" in name for name in trainable)
    assert any(".h.0." in name for name in trainable)
    if method in ("LoraConfig", "IA3Config"):
        assert any(".cross_blocks.1.cross_attn.q_attn." in name for name in trainable)
    model.train()
    batch = inputs(ROWS)
    target = labels(batch) if cls is MMForConditionalGeneration else torch.tensor([0, 1, 0])
    model(**batch, labels=target).loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert any(grad is not None and bool(grad.any()) for grad in grads)


def test_a_default_adapter_of_an_ungated_fresh_model_learns_to_see():
    """Its last projections are zero: without them among the adapted modules, media would stay without effect."""
    batch = inputs(ROWS)
    fresh = joined(cross_attention_gated=False, cross_attention_feed_forward=False)
    model = peft.get_peft_model(fresh, peft.LoraConfig(init_lora_weights=False)).eval()
    with torch.no_grad():
        seen = model(**batch).logits
        batch["pixel_values"] = batch["pixel_values"] + 3.0 * batch["image_mask"][..., None, None, None]
        assert difference(model(**batch).logits, seen) > 1e-3


def test_new_tokens_learned_beside_adapters_reach_the_tied_head():
    """PEFT's `trainable_token_indices`: the head reads the same rows, before and after merging."""
    config = peft.LoraConfig(r=4, trainable_token_indices={"wte": [20, 21]})
    model = peft.get_peft_model(opened(), config).eval()
    plain = logits(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens" in name and parameter.requires_grad:
                parameter.add_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    learned = logits(model)
    assert (learned - plain)[..., 20].abs().max() > 0.1
    others = [index for index in range(learned.shape[-1]) if index not in (20, 21)]
    assert difference(learned[..., others], plain[..., others]) == 0.0, "no token of the batch is new"
    assert difference(logits(model.merge_and_unload()), learned) <= 1e-4


# ---- Merged, taken off, swapped -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_merge_and_unload_gives_the_adapters_logits_and_text(kind, tmp_path):
    model = stirred(stock(opened(), use_dora=kind == "dora"))
    expected, batch = logits(model), inputs(ROWS, side="left")
    text = model.generate(**batch, **GREEDY)
    assert difference(expected, logits(opened())) > 0.1
    merged = model.merge_and_unload()
    assert type(merged) is MMForConditionalGeneration
    assert set(merged.state_dict()) == set(opened().state_dict())
    assert difference(logits(merged), expected) <= 1e-4
    assert merged.generate(**batch, **GREEDY).tolist() == text.tolist()
    assert merged.lm_head.weight is merged.get_input_embeddings().weight
    merged.save_pretrained(tmp_path)
    loaded = MMForConditionalGeneration.from_pretrained(tmp_path)
    assert difference(logits(loaded), logits(merged)) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_merging_can_be_undone_and_adapters_switched_off(kind):
    model = stirred(stock(opened(), use_dora=kind == "dora"))
    expected, base = logits(model), logits(opened())
    with model.disable_adapter():
        assert difference(logits(model), base) == 0.0
    model.merge_adapter()
    assert difference(logits(model), expected) <= 1e-4
    model.unmerge_adapter()
    assert difference(logits(model), expected) <= 1e-4


def test_two_adapters_on_one_model(tmp_path):
    expected = {}
    for seed, name in enumerate(("one", "other")):
        model = stirred(stock(opened()), seed)
        expected[name] = logits(model)
        model.save_pretrained(tmp_path / name)
    model = peft.PeftModel.from_pretrained(opened(), tmp_path / "one", adapter_name="one")
    model.load_adapter(tmp_path / "other", adapter_name="other")
    for name in ("other", "one"):
        model.set_adapter(name)
        assert difference(logits(model.eval()), expected[name]) == 0.0, name
    assert difference(expected["one"], expected["other"]) > 0.1


def test_an_adapter_hears_and_sees_through_connectors_of_its_own():
    """Without `modules_to_save` the same adapter would read what the base model's connectors make."""
    model = stirred(stock(opened()))
    with torch.no_grad():
        media = {name: tensor for name, tensor in inputs(ROWS).items() if name not in ("input_ids", "attention_mask")}
        ours, base = model.encode_media(**media).states, opened().encode_media(**media).states
    assert difference(ours, base) > 1e-2


# ---- Training -------------------------------------------------------------------------------------------------------


def test_dora_trains_saves_loads_and_merges(tmp_path):
    """LoRA likewise, in tests/training/test_lora.py."""
    chat_model().save_pretrained(tmp_path / "base")
    base = MMForConditionalGeneration.from_pretrained
    model = add_lora(base(tmp_path / "base"), {"r": 4, "dora": True})
    before = weights(model)
    run = mm_trainer(model, tmp_path / "run", **ADAMW)
    run.train()
    assert losses(run)[-1] < losses(run)[0]
    changed = moved(model, before)
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    assert len([name for name in changed if "lora_magnitude_vector" in name]) == 4 * 4 + 2 * 5
    run.save_model(str(tmp_path / "adapter"))
    batch = run.data_collator(CHATS)
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        loaded = peft.PeftModel.from_pretrained(base(tmp_path / "base"), tmp_path / "adapter").eval()
        assert difference(loaded(**batch).logits, expected) == 0.0
        assert difference(loaded.merge_and_unload()(**batch).logits, expected) <= 1e-4
