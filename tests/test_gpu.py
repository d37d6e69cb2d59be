"""What only a CUDA device can show: the same logits and text as on the CPU, in half precision, with every cache.

Run with `make test-gpu`; a machine without a device leaves them out.
"""

import copy
from contextlib import contextmanager

import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from modeling_mm import MMForConditionalGeneration
from tests.fakes.tiny import AUDIO, IMAGE, difference, gpt2, inputs, joined, labels, open_gates, opened

pytestmark = pytest.mark.gpu

TOLERANCE = 1e-4
NEW = 8
GREEDY = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
ROWS = [[5, IMAGE, 6, AUDIO, 7, 8], [9, 10, 11], [IMAGE, 12, IMAGE, 13], [AUDIO, 14, 15, 16, 17]]
HALF = 0.05  # of the greatest logit: bfloat16 has 8 bits, and a few blocks add up


def to(device, batch):
    return {name: tensor.to(device) for name, tensor in batch.items()}


@contextmanager
def exact_float32():
    """TF32 has ten bits: the CPU cannot be compared with it. The settings of the process are put back."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(autouse=True)
def without_tf32():
    with exact_float32():
        yield


@pytest.fixture(scope="module")
def on_cpu():
    return opened()


@pytest.fixture(scope="module")
def on_cuda(on_cpu):
    return copy.deepcopy(on_cpu).to("cuda")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("connector", ["mlp", "conv", "gru", "perceiver"])
def test_logits_are_those_of_the_cpu(connector, implementation):
    model = opened(vision_connector=connector, audio_connector=connector, attn_implementation=implementation)
    batch = inputs(ROWS)
    with torch.no_grad():
        expected = model(**batch).logits
        found = model.to("cuda")(**to("cuda", batch)).logits
    assert found.is_cuda
    assert difference(found.cpu(), expected) <= TOLERANCE


def test_logits_of_waves_are_those_of_the_cpu():
    from tests.fakes.tiny import wave

    model = opened(audio="wav2vec2")
    batch = inputs(ROWS, make_sound=wave)
    with torch.no_grad():
        expected = model(**batch).logits
        found = model.to("cuda")(**to("cuda", batch)).logits
    assert difference(found.cpu(), expected) <= TOLERANCE


def test_loss_and_gradients_are_those_of_the_cpu():
    model = opened()
    batch = inputs(ROWS)
    batch["labels"] = labels(batch)
    other = copy.deepcopy(model).to("cuda")
    one, two = model(**batch).loss, other(**to("cuda", batch)).loss
    one.backward()
    two.backward()
    assert two.item() == pytest.approx(one.item(), abs=TOLERANCE)
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (theirs[name].grad is None), name
        if parameter.grad is not None:
            scale = max(1.0, parameter.grad.abs().max().item())
            assert difference(theirs[name].grad.cpu(), parameter.grad) <= 1e-3 * scale, name


@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"num_beams": 3}], ids=["greedy", "no cache", "beams"])
def test_generated_text_is_that_of_the_cpu(on_cpu, on_cuda, how):
    batch = inputs(ROWS, side="left")
    expected = on_cpu.generate(**batch, **GREEDY, **how)
    found = on_cuda.generate(**to("cuda", batch), **GREEDY, **how)
    assert found.is_cuda and found.tolist() == expected.tolist()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bfloat16_is_near_float32(on_cpu, implementation):
    batch = inputs(ROWS)
    model = opened(attn_implementation=implementation).to("cuda", torch.bfloat16)
    with torch.no_grad():
        expected = on_cpu(**batch).logits
        found = model(**to("cuda", batch)).logits  # media are cast to the towers' precision
    assert found.dtype == torch.bfloat16
    real = batch["attention_mask"].bool()
    assert difference(found.float().cpu()[real], expected[real]) <= HALF * expected.abs().max().item()


def test_bfloat16_with_a_cache_is_bfloat16_without():
    model = opened().to("cuda", torch.bfloat16)
    batch = to("cuda", inputs(ROWS, side="left"))
    how = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}
    cached, plain = (model.generate(**batch, **how, use_cache=use_cache) for use_cache in (True, False))
    assert difference(cached.logits[0], plain.logits[0]) <= HALF * plain.logits[0].abs().max().item()
    assert all(torch.isfinite(step).all() for step in cached.logits)


def test_autocast_trains_in_bfloat16_with_a_finite_loss():
    model = opened().to("cuda").train()
    batch = inputs(ROWS)
    batch = to("cuda", batch | {"labels": labels(batch)})
    expected = model(**batch).loss
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=HALF)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static", "static"])
@pytest.mark.parametrize("rows", [ROWS, ROWS[1:2]], ids=["mixed", "text"])
def test_each_kind_of_cache_gives_what_a_dynamic_one_gives(on_cuda, kind, rows):
    """Offloaded caches keep keys and values on the CPU, and fetch a layer while the one before it is computed."""
    batch = to("cuda", inputs(rows, side="left"))
    expected = on_cuda.generate(**batch, **GREEDY, cache_implementation="dynamic")
    found = on_cuda.generate(**batch, **GREEDY, cache_implementation=kind, disable_compile=True)
    assert found.tolist() == expected.tolist()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rows", [ROWS[:1], ROWS], ids=["one row", "padded rows"])
def test_a_compiled_static_cache_gives_what_a_dynamic_one_gives(on_cpu, rows):
    """On CUDA `generate` compiles by itself as soon as the cache is static."""
    torch.compiler.reset()
    model = copy.deepcopy(on_cpu).to("cuda")  # a model keeps its compiled call
    batch = to("cuda", inputs(rows, side="left"))
    expected = model.generate(**batch, **GREEDY, cache_implementation="dynamic")
    for _ in range(2):  # the second time from the graphs of the first
        found = model.generate(**batch, **GREEDY, cache_implementation="static")
        assert found.tolist() == expected.tolist()


MAPS = {
    "vision on the cpu": {"model.vision_tower": "cpu"},
    "both towers on the cpu": {"model.vision_tower": "cpu", "model.audio_tower": "cpu"},
    "audio on the cpu": {"model.audio_tower": "cpu"},
    "connectors too": dict.fromkeys(("model.vision_tower", "model.vision_connector"), "cpu"),
    "everything on cuda": {},
}


@pytest.mark.parametrize("name", MAPS)
def test_towers_on_the_cpu_and_the_rest_on_cuda_by_a_device_map(on_cpu, tmp_path, name):
    pytest.importorskip("accelerate")
    on_cpu.save_pretrained(tmp_path)
    parts = [f"model.{part}" for part in ("vision_tower", "audio_tower", "vision_connector", "audio_connector")]
    device_map = dict.fromkeys([*parts, "model.language_model", "lm_head"], "cuda:0") | MAPS[name]
    model = MMForConditionalGeneration.from_pretrained(tmp_path, device_map=device_map)
    assert model.model.language_model.wte.weight.is_cuda
    batch = inputs(ROWS, side="left")
    with torch.no_grad():
        found = model(**to("cuda", batch)).logits
        expected = on_cpu(**batch).logits
    assert difference(found.cpu(), expected) <= TOLERANCE
    generated = model.generate(**to("cuda", batch), **GREEDY)
    assert generated.tolist() == on_cpu.generate(**batch, **GREEDY).tolist()


def test_flash_attention_is_near_sdpa():
    """Of the text; cross-attention needs a mask of its own, and stays on sdpa."""
    if not is_flash_attn_2_available():
        pytest.skip("the flash-attn package is not there")
    batch = to("cuda", inputs(ROWS))
    real = batch["attention_mask"].bool()
    logits = {}
    for implementation in ("sdpa", "flash_attention_2"):
        model = open_gates(joined(gpt2(), attn_implementation=implementation, dtype=torch.bfloat16)).to("cuda")
        assert model.config.text_config._attn_implementation == implementation
        with torch.no_grad():
            logits[implementation] = model(**batch).logits.float()[real]
    one, other = logits.values()
    assert difference(one, other) <= HALF * one.abs().max().item()


def test_media_encoded_on_the_cpu_serve_a_model_on_cuda(on_cpu, on_cuda):
    """Media kept for many prompts may lie where there is more memory."""
    batch = inputs(ROWS)
    text = {name: batch.pop(name).to("cuda") for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        media = on_cpu.encode_media(**batch)
        expected = on_cuda(**text, **to("cuda", batch)).logits
        assert difference(on_cuda(**text, media=media).logits, expected) <= TOLERANCE
