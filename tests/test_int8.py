# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Weights and products of 8 bits: exact kernels, rows by themselves, one table, equal answers of a reloaded folder."""

import copy

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel
from modeling_mm.deploy import Int8Config, quantize
from modeling_mm.int8 import STEPS, Int8Embedding, Int8Linear, int8_scales
from modeling_mm.layers import Projection
from tests.fakes.tiny import AUDIO, IMAGE, difference, draw, gpt2, image, inputs, joined, opened, sound
from tests.fakes.without_package import run_without_package

ROWS = [[5, IMAGE, 6, AUDIO, 7], [8, 9, 10], [IMAGE, 11, IMAGE, 12]]
GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
ALL = Int8Config(least_weights=0)


@torch.no_grad()
def rounded(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Int8Linear:
    """Return the layer of 8 bits of a weight (out, in)."""
    source = nn.Linear(*weight.shape[::-1], bias=bias is not None)
    if bias is not None:
        source.bias.copy_(bias)
    layer = Int8Linear(source)
    layer.round_from(weight)
    return layer


def exact(layer: Int8Linear, states: torch.Tensor) -> torch.Tensor:
    """Return what integers of any length give for the weights and tokens that the layer rounds to, in float64."""
    largest = states.abs().amax(-1, keepdim=True)
    steps = (states / largest * STEPS).round().double()
    product = steps @ layer.weight.double().T * layer.weight_scale.double().T * largest.double() / STEPS
    return product if layer.bias is None else product + layer.bias.double()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(ROWS)).logits


# ---- One layer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 31, 64, 300])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_is_that_of_the_rounded_weights_and_tokens(width, has_bias):
    weight, states = draw(24, width, seed=1), draw(5, 3, width, seed=2)
    layer = rounded(weight, draw(24, seed=3) if has_bias else None)
    with torch.no_grad():
        found = layer(states)
    wanted = exact(layer, states)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert layer.packed is not None, "the kernel has run"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("width", [64, 77, 3072])
def test_the_largest_values_do_not_overflow(sign, width):
    """With weights of full range the kernels for AVX2 return 6 of 768: neighbors are added in 16 bits."""
    states = torch.stack([torch.full((width,), 1.0), torch.full((width,), -1.0), draw(width, seed=4).sign()])
    weight = torch.full((8, width), float(sign))
    weight[4:, ::2] = -float(sign)  # neighbors that cancel out with tokens of one sign, and add up with others
    states = torch.cat([states, weight[4:5]])
    with torch.no_grad():
        found = rounded(weight)(states)
    wanted = states @ weight.T
    assert wanted.abs().max() == width
    assert (found - wanted).abs().max() <= 0.02 * width


def test_scales_leave_room_for_the_largest_pair_of_neighbors():
    weight = draw(50, 33, seed=5)
    layer = rounded(weight)
    padded = nn.functional.pad(layer.weight.int(), (0, 1))
    pairs = padded[:, ::2].abs() + padded[:, 1::2].abs()
    assert 120 <= pairs.max() <= 128, "255 * 128 fits into 16 bits, and steps are as small as that allows"
    assert ((layer.weight * layer.weight_scale - weight).abs() <= 0.5001 * layer.weight_scale).all()
    assert torch.equal(layer.weight_scale, int8_scales(weight))


def test_rows_and_tokens_do_not_change_each_other():
    layer = rounded(draw(40, 64, seed=6), draw(40, seed=7))
    states = draw(4, 5, 64, seed=8)
    with torch.no_grad():
        alone = layer(states[:1, :1])
        beside = states.clone()
        beside[0, 1] = 1e6
        beside[1], beside[2, 0], beside[3] = 0.0, 1e-9, torch.nan
        together = layer(beside)
        assert torch.equal(together[0, 0], alone[0, 0])
        assert torch.equal(together[1], layer.bias.expand(5, -1)), "tokens of zeros add nothing"
        assert together[3].isnan().all() and together[:3].isfinite().all()


def test_gradients_reach_what_is_below():
    layer, states = rounded(draw(8, 16, seed=9), draw(8, seed=10)), draw(2, 16, seed=11).requires_grad_()
    found = layer(states)
    found.sum().backward()
    weight = layer.weight * layer.weight_scale
    assert difference(states.grad, weight.sum(0).expand(2, -1)) <= 1e-5
    with torch.no_grad():
        assert 0 < difference(found, layer(states)) <= 0.05 * found.abs().max()


def test_it_is_packed_anew_for_other_weights_and_copied():
    layer, states = rounded(draw(8, 16, seed=12)), draw(2, 16, seed=13)
    with torch.no_grad():
        before = layer(states)
        other = copy.deepcopy(layer)
        assert other.packed is None and torch.equal(other(states), before)
        layer.round_from(draw(8, 16, seed=14))
        assert difference(layer(states), before) > 0.1 and torch.equal(other(states), before)


# ---- A model --------------------------------------------------------------------------------------------------------


def test_every_layer_but_the_connectors_is_rounded_and_the_table_is_one():
    model, reference = opened(), opened()
    assert quantize(model, ALL) is model
    linear = {name for name, module in reference.named_modules() if isinstance(module, (nn.Linear, Projection))}
    small = {name for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    assert small == {name for name in linear if "_connector." not in name} and "lm_head" in small and len(small) == 51
    table = model.get_input_embeddings()
    assert isinstance(table, Int8Embedding) and model.lm_head.weight is table.weight
    assert model.lm_head.weight_scale is table.weight_scale
    wanted = logits(reference)
    assert 0.01 < difference(logits(model), wanted) <= 0.08 * wanted.abs().max(), "8 bits through all blocks"
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_small_layers_keep_their_precision():
    model = quantize(opened(), Int8Config(least_weights=4096))
    small = {name for name, module in model.named_modules() if isinstance(module, Int8Linear)}
    assert {name.rpartition(".")[2] for name in small} == {"lm_head", "c_fc", "c_proj"} and len(small) == 1 + 2 * 6
    assert model.get_submodule("model.language_model.h.0.attn.c_attn").weight.numel() < 4096


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_a_saved_model_answers_as_before(tmp_path, shard):
    model = quantize(opened(), ALL)
    model.save_pretrained(tmp_path, **({"max_shard_size": shard} if shard else {}))
    loaded, report = MMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert loaded.lm_head.weight_scale is loaded.get_input_embeddings().weight_scale
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".py", ".jinja"}
    names = {}
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert names["model.language_model.wte.weight"] == names["model.language_model.h.0.mlp.c_fc.weight"] == "I8"
    assert not any("lm_head" in name or "packed" in name for name in names), "one table"
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(MMForConditionalGeneration.from_pretrained(tmp_path / "again")), logits(model))


def test_it_is_quantized_while_it_is_loaded_in_any_precision(tmp_path):
    opened().save_pretrained(tmp_path)
    loaded = MMForConditionalGeneration.from_pretrained(tmp_path, quantization_config=ALL, dtype=torch.bfloat16)
    assert loaded.dtype == torch.float32 and torch.equal(logits(loaded), logits(quantize(opened(), ALL)))
    half = quantize(opened().to(torch.bfloat16), ALL)
    assert half.dtype == torch.float32 and logits(half).isfinite().all()


def test_without_the_package_its_code_comes_with_the_folder(tmp_path):
    model = quantize(opened(), ALL)
    model.save_pretrained(tmp_path / "copy")
    save_file({**inputs(ROWS), "wanted": logits(model)}, tmp_path / "batch.safetensors")
    script = (
        "import torch\n"
        "from safetensors.torch import load_file\n"
        "from transformers import AutoModelForImageTextToText\n"
        "model = AutoModelForImageTextToText.from_pretrained('copy', trust_remote_code=True)\n"
        "batch = load_file('batch.safetensors')\n"
        "wanted = batch.pop('wanted')\n"
        "with torch.no_grad():\n"
        "    print(type(model.lm_head).__module__, torch.equal(model(**batch).logits, wanted))"
    )
    printed = run_without_package(script, tmp_path)
    assert "transformers_modules" in printed and "True" in printed


def test_it_generates_with_a_cache_and_in_a_batch_what_it_generates_without_and_alone():
    model = quantize(opened(), ALL)
    batch = inputs(ROWS, side="left")
    text = model.generate(**batch, **GREEDY)
    assert model.generate(**batch, **GREEDY, use_cache=False).tolist() == text.tolist()
    assert model.generate(**batch, **GREEDY, num_beams=2).shape == text.shape
    for i, row in enumerate(ROWS):
        images = [[image(10 * i + j) for j in range(row.count(IMAGE))]]
        audio = [[sound(10 * i + j) for j in range(row.count(AUDIO))]]
        alone = model.generate(**inputs([row], images, audio), **GREEDY)
        assert alone[0, -6:].tolist() == text[i, -6:].tolist(), i


@pytest.mark.parametrize("cls", [MMForSequenceClassification, MMModel])
def test_models_without_a_head_of_words(cls, tmp_path):
    model = quantize(opened(cls=cls), ALL)
    name = "logits" if cls is MMForSequenceClassification else "last_hidden_state"
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = getattr(model(**inputs(ROWS)), name)
        assert torch.equal(getattr(cls.from_pretrained(tmp_path)(**inputs(ROWS)), name), wanted)
    if cls is MMForSequenceClassification:
        assert type(model.score) is nn.Linear


def test_a_head_of_its_own_stays_another_table(tmp_path):
    text = gpt2(tie_word_embeddings=False)
    model = joined(text=text, tie_word_embeddings=False)
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    quantize(model, ALL).save_pretrained(tmp_path)
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert torch.equal(logits(MMForConditionalGeneration.from_pretrained(tmp_path)), logits(model))


def test_it_is_not_quantized_twice_nor_trained():
    model = quantize(opened(), ALL)
    with pytest.raises(ValueError, match=r"quantized already\. Load it from its folder again"):
        quantize(model, ALL)
    assert model.is_quantized and not model.hf_quantizer.is_trainable
