# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Products by oneDNN: those of torch to rounding, for the CPUs and calls that gain by them, and no others."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from modeling_mm import layers, onednn, quick_steps
from modeling_mm.onednn import multiplies, onednn_linear, product, quick_linear
from tests.fakes.tiny import AUDIO, IMAGE, inputs, opened

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
ROWS = [[5, IMAGE, 6, AUDIO, 7], [8, 9, 10]]
GREEDY = {"do_sample": False, "max_new_tokens": 4, "output_logits": True, "return_dict_in_generate": True}


@pytest.fixture
def used(monkeypatch) -> list[tuple[int, ...]]:
    """On any CPU, for weights of any size: the shapes (out, in) of the weights that oneDNN multiplied."""
    found = []

    def recorded(states, weight, bias=None):
        found.append(tuple(weight.shape))
        return onednn_linear(states, weight, bias)

    monkeypatch.setattr(onednn, "is_quicker", lambda: True)
    for module in (onednn, quick_steps, layers):
        monkeypatch.setattr(module, "LEAST_WEIGHT", 1)
    monkeypatch.setattr(onednn, "LEAST_PRODUCT", 1)
    monkeypatch.setattr(onednn, "onednn_linear", recorded)
    return found


@pytest.mark.parametrize("shape", [(1, 6), (7, 6), (2, 3, 6), (0, 6), (6,)], ids=str)
@pytest.mark.parametrize("is_view", [False, True], ids=["as in Linear", "as in Conv1D"])
@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
def test_products_are_those_of_torch(shape, is_view, has_bias):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=generator).t() if is_view else torch.randn(5, 6, generator=generator)
    states, bias = torch.randn(shape, generator=generator), torch.arange(5.0) if has_bias else None
    with torch.no_grad():
        found, wanted = onednn_linear(states, weight, bias), nn.functional.linear(states, weight, bias)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("is_expanded", [False, True], ids=["of a loss", "of a sum"])
@pytest.mark.parametrize("learning", [(0, 1, 2), (0,), (1,)], ids=["all", "states", "weight"])
def test_gradients_are_those_of_torch_and_have_gradients(is_expanded, learning):
    generator = torch.Generator().manual_seed(0)

    def gradients(multiply):
        given = [torch.randn(shape, generator=generator.manual_seed(1)) for shape in ((2, 3, 6), (6, 5), (5,))]
        learned = [given[i].requires_grad_() for i in learning]
        result = multiply(*given)
        result = result if is_expanded else result.pow(3)
        first = torch.autograd.grad(result.sum(), learned, create_graph=not is_expanded)
        if is_expanded:
            return first
        return *first, *torch.autograd.grad(sum(each.pow(2).sum() for each in first), learned)

    found = gradients(product)
    wanted = gradients(lambda states, weight, bias: nn.functional.linear(states, weight.t(), bias))
    assert all(one.is_contiguous() for one in found[: len(learning)])  # as the weights are
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("learning, kept", [((0, 1), {(2, 6), (6, 5)}), ((0,), {(6, 5)}), ((1,), {(2, 6)})], ids=str)
def test_what_no_gradient_needs_is_not_kept(learning, kept):
    given, saved = [torch.randn(2, 6), torch.randn(6, 5)], []
    for i in learning:
        given[i].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tuple(tensor.shape)) or tensor, lambda x: x
    ):
        product(*given).sum().backward()
    assert set(saved) == kept and all((given[i].grad is not None) == (i in learning) for i in (0, 1))


def test_it_multiplies_in_float32_what_is_large_enough(monkeypatch):
    monkeypatch.setattr(onednn, "is_quicker", lambda: True)
    weight, states = nn.Parameter(torch.zeros(256, 256)), torch.zeros(2, 2, 256)
    assert multiplies(states, weight) and not multiplies(states[:1, :1], weight)
    assert not multiplies(torch.zeros(2000, 255), weight[:, :255])
    assert not multiplies(states.double(), weight) and not multiplies(states, weight.bfloat16())
    assert not multiplies(states.to("meta"), weight) and not multiplies(nn.Parameter(states), weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not multiplies(states, weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not multiplies(states, weight)
    seen = []
    torch.func.grad(lambda x: seen.append(multiplies(states, weight)) or x)(torch.tensor(1.0))
    with forward_ad.dual_level():
        seen.append(multiplies(states, weight))
    assert seen == [False, False] and multiplies(states, weight)
    monkeypatch.setattr(onednn, "is_quicker", lambda: False)
    assert not multiplies(states, weight)


@pytest.mark.parametrize(
    "maker, capability", [("AuthenticAMD", "AVX512"), ("AuthenticAMD", "AVX2"), ("GenuineIntel", "AVX512")]
)
def test_it_is_quicker_on_processors_of_amd_with_avx512(maker, capability, monkeypatch, tmp_path):
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"processor\t: 0\nvendor_id\t: {maker}\n")
    monkeypatch.setattr(onednn, "CPU_FACTS", facts)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    onednn.is_quicker.cache_clear()
    assert onednn.is_quicker() is ((maker, capability) == ("AuthenticAMD", "AVX512"))
    onednn.is_quicker.cache_clear()


def test_a_model_generates_the_same_and_all_its_parts_use_it(used):
    model = opened()
    batch = inputs(ROWS, side="left")
    found = model.generate(**batch, **GREEDY)
    parts = {
        name: {tuple(w.shape) for w in part.parameters() if w.ndim == 2}
        for name, part in {
            "vision": model.model.vision_tower,
            "audio": model.model.audio_tower,
            "connector": model.model.vision_connector,
        }.items()
    }
    decoder = model.model.language_model
    parts["decoder"] = {tuple(decoder.h[0].mlp.c_fc.weight.t().shape)}
    parts["head"] = {tuple(model.lm_head.weight.shape)}
    assert all(shapes & set(used) for shapes in parts.values()), parts
    steps = used.count(tuple(decoder.h[0].mlp.c_fc.weight.t().shape))
    assert steps >= 4 * len(decoder.h)  # the prompt, and quick steps
    used.clear()
    with torch.backends.mkldnn.flags(enabled=False):
        wanted = model.generate(**batch, **GREEDY)
    assert not used and torch.equal(found.sequences, wanted.sequences)
    for one, other in zip(found.logits, wanted.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_in_training_frozen_encoders_projections_and_the_loss_use_it(used):
    batch = inputs(ROWS)

    def gradients():
        torch.manual_seed(0)
        model = opened(freeze_vision=True, freeze_audio=True).train()
        model(**batch, labels=batch["input_ids"], skip_logits=True).loss.backward()
        return model, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    model, found = gradients()
    shapes = set(used)
    towers = [model.model.vision_tower, model.model.audio_tower]
    assert all(shapes & {tuple(weight.shape) for weight in tower.parameters()} for tower in towers)
    assert tuple(model.lm_head.weight.shape) in shapes
    up = model.model.language_model.h[0].mlp.c_fc.weight  # (in, out)
    assert tuple(up.t().shape) in shapes and tuple(up.shape) in shapes  # forward, and the gradient of its states
    with torch.backends.mkldnn.flags(enabled=False):
        _, wanted = gradients()
    assert set(found) == set(wanted)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-4)


def test_a_graph_is_captured_without_it(used):
    layer, states = nn.Linear(4, 3).requires_grad_(False), torch.ones(2, 4)

    def forward(states):
        with quick_linear():
            return layer(states)

    with torch.no_grad():
        traced = torch.jit.trace(forward, states, check_trace=False)
        compiled = torch.compile(forward, backend="eager", fullgraph=True)(states)
        assert not used and torch.equal(forward(states), compiled) and used == [(3, 4)]
    assert torch.equal(traced(states), layer(states))
