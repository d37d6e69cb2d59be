"""Weights of 8 and 4 bits, near the float model: torchao on CPU and GPU, bitsandbytes on GPU; adapters on top."""

import sys

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from modeling_mm import MMForConditionalGeneration
from modeling_mm.deploy.quantization import KEPT, LinearOfConv1D, quantize
from modeling_mm.training.lora import add_lora
from tests.tiny import AUDIO, IMAGE, difference, inputs, labels, opened, seeded

ROWS = [[5, IMAGE, 6, AUDIO, 7], [8, 9, 10], [IMAGE, 11, IMAGE, 12]]
GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
# Of the greatest logit: steps of 1/127 and of 1/7 of a row's greatest weight, through four blocks of wide weights.
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


def test_a_conv1d_as_a_linear_layer_computes_the_same():
    conv = seeded(lambda: Conv1D(7, 5))
    nn.init.normal_(conv.bias)
    linear, x = LinearOfConv1D(conv), torch.randn(2, 3, 5)
    assert linear.weight.shape == (7, 5) and not linear.weight.requires_grad
    assert difference(linear(x), conv(x)) <= 1e-6


@pytest.mark.parametrize("bits", TOLERANCE)
@pytest.mark.parametrize("connector", ["mlp", "perceiver"])
def test_every_layer_is_quantized_and_the_logits_are_near(bits, connector):
    config = torchao_config(bits)
    from torchao.utils import TorchAOBaseTensor

    fields = {"vision_connector": connector, "audio_connector": connector, "cross_attention_gated": False}
    model = opened(**fields)
    wanted, expected = layers(model), logits(model)
    assert quantize(model, config) is model
    quantized = {name for name, module in model.named_modules()
                 if isinstance(getattr(module, "weight", None), TorchAOBaseTensor)}  # fmt: skip
    assert quantized == wanted and len(wanted) == 2 * 6 + 2 * 6 + 4 * 4 + 2 * 5
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert near(logits(model), expected, bits)


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
    model = opened().to(torch.bfloat16)
    expected = logits(model)
    assert near(logits(quantize(model, torchao_config("int8"))), expected, "int8")


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
    with pytest.raises(ValueError, match=r"quantized already\. Load it anew from its folder"):
        quantize(model, config)


def test_without_torchao_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ImportError, match="pip install torchao"):
        quantize(opened(), None)


@pytest.mark.gpu
@pytest.mark.parametrize("bits", TOLERANCE)
def test_torchao_on_a_gpu(bits):
    model = opened().to("cuda")
    expected = logits(model, "cuda")
    quantize(model, torchao_config(bits))
    assert near(logits(model, "cuda"), expected, bits)
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
