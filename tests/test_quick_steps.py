# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Quick decoding steps: the logits of plain ones exactly, and plain steps wherever quick ones would not be right."""

import copy

import pytest
import torch
from transformers import DynamicCache

import modeling_mm.modeling_mm as models
from modeling_mm import quick_steps
from modeling_mm.deploy import Int8Config, quantize
from tests.fakes.tiny import AUDIO, IMAGE, gpt2, inputs, opened

ROWS = [[5, IMAGE, 6, AUDIO, 7], [8, 9, 10], [IMAGE, 11, IMAGE, 12]]
GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
LOGITS = {"output_logits": True, "return_dict_in_generate": True}
KINDS = {
    "gated": {},
    "without gates": {"cross_attention_gated": False, "cross_attention_token_gate": True},
    "sink, query gate, no feed-forward": {
        "cross_attention_sink": True,
        "cross_attention_query_gate": True,
        "cross_attention_token_gate": True,
        "cross_attention_feed_forward": False,
    },
    "separate layers": {"vision_cross_attention_layers": [0, 2], "audio_cross_attention_layers": [1, 3]},
    "inside": {
        "cross_attention_placement": "inside",
        "cross_attention_gated": False,
        "cross_attention_feed_forward": False,
    },
    "stand-ins": {
        "vision_cross_attention_layers": [0, 2],
        "audio_cross_attention_layers": [0, 1, 2, 3],
        "audio_cross_attention_placement": "inside",
        "cross_attention_stand_in": True,
    },
    "hidden placeholders": {"placeholders": "hidden"},
    "numbered items": {"max_media_items": 3},
    "sinusoidal": {"text_position_encoding": "sinusoidal"},
}


@pytest.fixture
def taken(monkeypatch) -> list[bool]:
    """List of the steps with a cache: True for each that was quick."""
    found = []

    def recorded(*arguments):
        states = quick_steps.quick_states(*arguments)
        found.append(states is not None)
        return states

    monkeypatch.setattr(models, "quick_states", recorded)
    return found


def plain(call):
    """Return what a call returns when no step is quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "quick_states", lambda *_: None)
        return call()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [[8, 9, 10]]], ids=["padded", "one", "text alone"])
def test_logits_are_those_of_plain_steps(kind, rows, taken):
    model = opened(**KINDS[kind])
    batch = inputs(rows, side="left")
    if kind == "hidden placeholders":
        batch["attention_mask"] = (
            batch["attention_mask"] * (batch["input_ids"] != IMAGE) * (batch["input_ids"] != AUDIO)
        )
    found = model.generate(**batch, **GREEDY, **LOGITS)
    assert taken == [False] + [True] * 5, "the prompt is plain, and every step behind it is quick"
    wanted = plain(lambda: model.generate(**batch, **GREEDY, **LOGITS))
    assert torch.equal(found.sequences, wanted.sequences)
    for one, other in zip(found.logits, wanted.logits, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(found.past_key_values.layers, wanted.past_key_values.layers, strict=True):
        assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)


@pytest.mark.parametrize("upcasts", [False, True], ids=["", "upcast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_quick(dtype, upcasts, taken):
    model = opened(text=gpt2(reorder_and_upcast_attn=upcasts)).to(dtype)
    batch = inputs([[5, IMAGE, 6, AUDIO, 7], [8, IMAGE, 9, AUDIO, 10]], side="left")  # nothing is masked
    found = model.generate(**batch, **GREEDY, **LOGITS)
    wanted = plain(lambda: model.generate(**batch, **GREEDY, **LOGITS))
    assert taken == [False] + [True] * 5 and torch.equal(found.sequences, wanted.sequences)
    assert all(torch.equal(one, other) for one, other in zip(found.logits, wanted.logits, strict=True))


def test_a_quantized_model_is_quick(taken):
    model = quantize(opened(), Int8Config(least_weights=0))
    batch = inputs(ROWS, side="left")
    found = model.generate(**batch, **GREEDY, **LOGITS)
    wanted = plain(lambda: model.generate(**batch, **GREEDY, **LOGITS))
    assert taken == [False] + [True] * 5 and torch.equal(found.logits[-1], wanted.logits[-1])


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"do_sample": True, "num_return_sequences": 2},
        {"prompt_lookup_num_tokens": 2},
        {"num_beams": 2, "length_penalty": 0.0, "early_stopping": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_beams_samples_and_lookup_are_those_of_plain_steps(options, taken):
    model, row = opened(), [[5, IMAGE, 6, 7, 6, 7]]
    options = {**GREEDY, **options}

    def generate():
        torch.manual_seed(0)
        return model.generate(**inputs(row), **options)

    found = generate()
    assert any(taken)
    assert torch.equal(found, plain(generate))


def test_a_cache_that_is_cropped_copied_or_continued_stays_right(taken):
    model, batch = opened(), inputs([[5, IMAGE, 6, AUDIO, 7]])
    first = model.generate(**batch, **GREEDY, **LOGITS)
    cache = first.past_key_values
    copied = copy.deepcopy(cache)
    assert isinstance(getattr(cache, quick_steps.NAME), quick_steps.QuickSteps)
    assert getattr(copied, quick_steps.NAME) is None, "modules of a model are not copied with a cache"
    ids = first.sequences[:, -1:]

    def step(cache):
        with torch.no_grad():
            return model(input_ids=ids, past_key_values=cache, use_cache=True).logits

    taken.clear()
    wanted = plain(lambda: step(copy.deepcopy(cache)))
    assert torch.equal(step(copied), wanted) and torch.equal(step(cache), wanted) and taken == [True, True]
    for each in (cache, copied):
        each.crop(-3)
    assert torch.equal(step(cache), plain(lambda: step(copied)))
    longer = torch.cat([ids, ids], dim=1)
    with torch.no_grad():
        outputs = [model(input_ids=longer, past_key_values=each, use_cache=True).logits for each in (cache, copied)]
    assert torch.equal(*outputs)
    assert torch.equal(step(cache), plain(lambda: step(copied)))


def test_more_tokens_than_a_buffer_has_room_for(monkeypatch, taken):
    monkeypatch.setattr(quick_steps, "ROOM", 2)
    model, batch = opened(), inputs(ROWS, side="left")
    found = model.generate(**batch, **GREEDY, **LOGITS)
    wanted = plain(lambda: model.generate(**batch, **GREEDY, **LOGITS))
    assert all(torch.equal(one, other) for one, other in zip(found.logits, wanted.logits, strict=True)) and any(taken)


def steps_taken(model, taken, **options) -> bool:
    taken.clear()
    model.generate(**inputs(ROWS[:1]), **{**GREEDY, **options})
    return any(taken)


def test_steps_that_it_does_not_know_are_plain(taken):
    model = opened()
    assert steps_taken(model, taken)
    assert not steps_taken(model, taken, output_attentions=True, return_dict_in_generate=True)
    assert not steps_taken(model, taken, output_hidden_states=True, return_dict_in_generate=True)
    assert not steps_taken(model, taken, use_cache=False)
    assert not steps_taken(model, taken, cache_implementation="static", disable_compile=True)
    seen = []
    hook = model.model.language_model.h[1].attn.register_forward_hook(lambda *_: seen.append(1))
    assert not steps_taken(model, taken) and len(seen) == 6
    hook.remove()
    block = next(iter(model.model.language_model.cross_blocks.values()))
    block.gate_new = torch.nn.Linear(4, 1)  # a part that may come one day
    assert not steps_taken(model, taken)
    del block.gate_new
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    assert not steps_taken(model, taken)
    hook.remove()
    assert steps_taken(model, taken)
    model.config.text_config.output_hidden_states = True
    assert not steps_taken(model, taken)
    eager = opened()
    eager.set_attn_implementation("eager")
    assert not steps_taken(eager, taken)


def test_a_hook_on_a_layer_is_called(taken):
    model, seen = opened(), []
    model.model.language_model.h[1].mlp.c_fc.register_forward_hook(lambda *_: seen.append(1))
    assert steps_taken(model, taken) and len(seen) == 6


def test_gradients_and_training_are_plain(taken):
    model, cache = opened(), DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.tensor([[8, 9]]), past_key_values=cache, use_cache=True)
    step = {"input_ids": torch.tensor([[7]]), "past_key_values": cache, "use_cache": True}
    assert model(**step).logits.requires_grad and taken[-1] is False
    with torch.no_grad():
        model(**step)
        assert taken[-1] is True
        model.train()(**step)
        assert taken[-1] is False


def test_adapters_are_heard(taken):
    pytest.importorskip("peft")
    from modeling_mm.training import add_lora

    model = add_lora(opened(), {"r": 4})
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.eval()
    batch = inputs(ROWS, side="left")
    found = model.generate(**batch, **GREEDY)
    assert any(taken)
    assert torch.equal(found, plain(lambda: model.generate(**batch, **GREEDY)))
    assert not torch.equal(found, opened().generate(**batch, **GREEDY))
