"""Weights of 8 and 4 bits, rounded and no more: torchao on CPU and GPU, bitsandbytes on GPU; adapters on top."""

import copy
import sys
import weakref

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification
from modeling_mm.deploy import KEPT, quantize
from modeling_mm.training import add_lora
from tests.fakes.tiny import AUDIO, CONNECTORS, IMAGE, difference, inputs, joined, labels, opened

ROWS = [[5, IMAGE, 6, AUDIO, 7], [8, 9, 10], [IMAGE, 11, IMAGE, 12]]
GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
BITS = {"int8": 127, "int4": 7}  # steps on each side of zero
# Of the greatest logit, against the float model, where a kernel does not show what it rounds to: through four blocks
# of wide weights. For torchao the rounded weights can be read back, and the tests are exact.
TOLERANCE = {"int8": 0.05, "int4": 0.5}


def torchao_config(bits: str):
    torchao = pytest.importorskip("torchao.quantization")
    if bits == "int8":
        return torchao.Int8WeightOnlyConfig(set_inductor_config=False)  # it would set precisions for other tests too
    return torchao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=torchao.PerGroup(8))


def logits(model, device="cpu"):
    batch = {name: tensor.to(device) for name, tensor in inputs(ROWS).items()}
    with torch.no_grad():
        return model(**batch).logits.float().cpu()


def layers(model) -> set[str]:
    """Names of what has a matrix to multiply by, but for the head and the connectors."""
    names = {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    return {name for name in names if name != "lm_head" and "_connector." not in name}


def near(found: torch.Tensor, expected: torch.Tensor, bits: str) -> bool:
    return 0.0 < difference(found, expected) <= TOLERANCE[bits] * expected.abs().max().item()


# ---- torchao --------------------------------------------------------------------------------------------------------


def is_small(module: nn.Module) -> bool:
    from torchao.utils import TorchAOBaseTensor

    return isinstance(getattr(module, "weight", None), TorchAOBaseTensor)


def read_back(model: nn.Module) -> nn.Module:
    """Return the quantized model in floats again: the same numbers, multiplied by torch's own kernels."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if is_small(module):
            module.weight = nn.Parameter(module.weight.dequantize().float())
    model.is_quantized = False
    return model.float()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("connector", ["mlp", "perceiver"])
def test_every_layer_is_rounded_to_the_nearest_step_and_the_logits_are_those_of_the_rounded_weights(bits, connector):
    config = torchao_config(bits)
    fields = {"vision_connector": connector, "audio_connector": connector, "cross_attention_gated": False}
    model, reference = opened(**fields), opened(**fields)
    wanted = layers(model)
    assert quantize(model, config) is model
    assert {name for name, module in model.named_modules() if is_small(module)} == wanted
    assert len(wanted) == 2 * 6 + 2 * 6 + 4 * 4 + 2 * 5
    rounded = read_back(model)
    for name in wanted:
        layer = reference.get_submodule(name)
        weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight  # (out, in)
        group = weight.shape[1] if bits == "int8" else 8  # that share a step
        exact, near = (w.detach().unflatten(1, (-1, group)) for w in (weight, rounded.get_submodule(name).weight))
        step = exact.abs().amax(-1, keepdim=True) / BITS[bits]
        assert 0 < ((near - exact).abs() / step).max() <= 0.51, name
        assert layer.bias is None or torch.equal(rounded.get_submodule(name).bias, layer.bias), name
    assert difference(logits(model), logits(rounded)) <= 1e-4
    assert difference(logits(rounded), logits(reference)) > 1e-3, "this tolerance is below what rounding does"
    assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("cls", [MMForConditionalGeneration, MMForSequenceClassification])
@pytest.mark.parametrize("connector", CONNECTORS)
def test_heads_and_connectors_are_kept(cls, connector):
    """By the function that all quantizers of transformers, such as that of bitsandbytes, ask about each module."""
    model = joined(cls=cls, vision_connector=connector, audio_connector=connector)
    names = {name for name, _ in model.named_modules()}
    head = {"lm_head"} if cls is MMForConditionalGeneration else {"score"}
    small = ("model.vision_connector", "model.audio_connector")
    kept = head | {name for name in names if name.startswith(small)}
    assert len(kept) >= 5 and head <= names
    assert {name for name in names if not should_convert_module(name, KEPT)} == kept
    assert should_convert_module("model.scores", KEPT) and should_convert_module("model.score_of", KEPT)


def test_a_classifier_keeps_its_head():
    model = quantize(opened(cls=MMForSequenceClassification), torchao_config("int8"))
    assert type(model.score.weight) is nn.Parameter and is_small(model.model.language_model.h[0].mlp.c_fc)
    with torch.no_grad():
        assert difference(model(**inputs(ROWS)).logits, read_back(model)(**inputs(ROWS)).logits) <= 1e-4


def test_peak_memory_is_one_extra_layer(monkeypatch):
    """A decoder that just fits into memory is quantized there: the weights of earlier layers are freed."""
    quantization = pytest.importorskip("torchao.quantization")
    model = opened()
    old = [weakref.ref(module.weight) for module in model.modules() if isinstance(module, Conv1D)]
    turned, plain = [], quantization.quantize_

    def quantize_one(layer, *args):
        if layer[0].weight.data_ptr() not in {p.data_ptr() for p in model.parameters()}:  # a copy of a Conv1D's
            assert not any(weight() is not None for weight in turned)
            assert sum(weight() is None for weight in old) == len(turned)
            turned.append(weakref.ref(layer[0].weight))
        plain(layer, *args)

    monkeypatch.setattr(quantization, "quantize_", quantize_one)
    quantize(model, torchao_config("int8"))
    assert len(turned) == len(old) == 4 * 4 + 2 * 5


def test_eight_bits_are_a_quarter_of_the_bytes_of_float32():
    model = opened()
    weight = model.model.language_model.h[0].mlp.c_fc.weight
    quantize(model, torchao_config("int8"))
    small = model.model.language_model.h[0].mlp.c_fc.weight
    assert small.qdata.dtype == torch.int8 and small.qdata.numel() == weight.numel()
    assert small.shape == weight.T.shape


def test_it_generates_with_a_cache_what_it_generates_without():
    model = quantize(opened(), torchao_config("int8"))
    batch = inputs(ROWS, side="left")
    text = model.generate(**batch, **GREEDY)
    assert model.generate(**batch, **GREEDY, use_cache=False).tolist() == text.tolist()
    assert text.shape[1] == batch["input_ids"].shape[1] + 6


def test_bfloat16_inputs_and_weights():
    """Against float32 arithmetic on the same rounded weights: 8 bits of mantissa through four blocks."""
    model = quantize(opened().to(torch.bfloat16), torchao_config("int8"))
    exact = logits(read_back(model))
    with torch.no_grad():
        found = model(**inputs(ROWS)).logits
    assert found.dtype == torch.bfloat16
    assert 0.0 < difference(found, exact) <= 0.03 * exact.abs().max().item()


def test_adapters_on_quantized_weights_learn():
    """As QLoRA: gradients pass through frozen quantized weights to the adapters below."""
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model = add_lora(quantize(opened(), torchao_config("int8")), {"r": 4})
    batch = inputs(ROWS)
    batch["labels"] = labels(batch)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rsplit(".modules_to_save.")[0].split(".")[-1] for name in trainable if ".lora_" not in name} == {
        *("vision_connector", "audio_connector", "gate_attn", "gate_mlp"),
    }
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model.train()(**batch).loss
        loss.backward()
        losses.append(loss.item())
        assert [name for name, p in trainable.items() if p.grad is None] == []
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


def test_it_cannot_be_saved_nor_quantized_twice(tmp_path):
    config = torchao_config("int8")
    model = quantize(opened(), config)
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"quantized already\. Load it from its folder again"):
        quantize(model, config)


def test_without_torchao_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match="pip install torchao"):
        quantize(opened(), None)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", BITS)
def test_torchao_on_a_gpu(bits):
    model = quantize(opened().to("cuda"), torchao_config(bits))
    assert difference(logits(model, "cuda"), logits(read_back(model), "cuda")) <= 1e-3
    batch = {name: tensor.to("cuda") for name, tensor in inputs(ROWS, side="left").items()}
    assert model.generate(**batch, **GREEDY).shape[1] == batch["input_ids"].shape[1] + 6


# ---- bitsandbytes ---------------------------------------------------------------------------------------------------

BITSANDBYTES = {
    "int8": {"load_in_8bit": True},
    "int4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
}
BITSANDBYTES = {bits: {**fields, "llm_int8_skip_modules": KEPT} for bits, fields in BITSANDBYTES.items()}


@pytest.mark.gpu
@pytest.mark.parametrize("bits", BITSANDBYTES)
def test_bitsandbytes_on_a_gpu(bits, tmp_path):
    """By `from_pretrained`: it turns `Conv1D` round by itself."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    opened().save_pretrained(tmp_path)
    how = {"quantization_config": BitsAndBytesConfig(**BITSANDBYTES[bits]), "device_map": {"": 0}}
    model = MMForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32, **how)
    kind = bitsandbytes.nn.Linear8bitLt if bits == "int8" else bitsandbytes.nn.Linear4bit
    quantized = {name for name, module in model.named_modules() if isinstance(module, kind)}
    assert quantized == layers(opened())
    assert near(logits(model, "cuda"), logits(opened()), bits)
    batch = {name: tensor.to("cuda") for name, tensor in inputs(ROWS, side="left").items()}
    assert model.generate(**batch, **GREEDY).shape[1] == batch["input_ids"].shape[1] + 6


@pytest.mark.gpu
def test_qlora_with_bitsandbytes_on_a_gpu(tmp_path):
    pytest.importorskip("bitsandbytes"), pytest.importorskip("peft")
    from transformers import BitsAndBytesConfig

    opened().save_pretrained(tmp_path)
    how = {"quantization_config": BitsAndBytesConfig(**BITSANDBYTES["int4"]), "device_map": {"": 0}}
    model = add_lora(MMForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32, **how), {"r": 4})
    batch = inputs(ROWS)
    batch["labels"] = labels(batch)
    batch = {name: tensor.to("cuda") for name, tensor in batch.items()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(trainable, lr=1e-2), []
    for _ in range(5):
        loss = model.train()(**batch).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
