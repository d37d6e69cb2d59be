"""Invariant 10: float32 inputs into a bf16 or fp16 model, and autocast, just work; exact invariants stay exact."""

import pytest
import torch

from modeling_mm import MMForSequenceClassification
from tests.fakes.tiny import (
    AUDIO,
    CONNECTORS,
    IMAGE,
    difference,
    gpt2,
    inputs,
    joined,
    labels,
    open_gates,
    opened,
    pad_images,
    vit,
    wav2vec2,
    wave,
    whisper,
)

HALF = [torch.bfloat16, torch.float16]
ROUNDING = {torch.bfloat16: 0.08, torch.float16: 0.01}  # of the logits' standard deviation, on average
ROWS = [[5, 6, IMAGE, 7, AUDIO, 8], [9, 10, 11], [IMAGE, IMAGE, 12, 13]]


def check_close(half, full, dtype):
    error = (half.float() - full).abs().mean() / full.std()
    assert torch.isfinite(half).all() and error <= ROUNDING[dtype], f"{error:.3f} of the standard deviation off"


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("connector", CONNECTORS)
@torch.no_grad()
def test_float32_inputs_into_a_half_precision_model(connector, dtype):
    model = opened(vision_connector=connector, audio_connector=connector)
    batch = inputs(ROWS)
    assert batch["pixel_values"].dtype == batch["input_features"].dtype == torch.float32
    expected = model(**batch).logits
    out = model.to(dtype)(**batch)
    assert out.logits.dtype == dtype
    check_close(out.logits, expected, dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("norm", ["group", "layer"])
@torch.no_grad()
def test_float32_waves_into_a_half_precision_model(norm, dtype):
    model = opened(audio=wav2vec2(norm))
    batch = inputs([[5, AUDIO, 6], [7, 8, AUDIO]], audio=[[wave(0, 240)], [wave(1, 400)]])
    expected = model(**batch).logits
    check_close(model.to(dtype)(**batch).logits, expected, dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_step_of_training_in_half_precision(dtype):
    model = opened().to(dtype).train()
    batch = inputs(ROWS)
    loss = model(**batch, labels=labels(batch)).loss
    loss.backward()
    full = opened()(**batch, labels=labels(batch)).loss
    assert abs(loss.item() - full.item()) <= 0.05 * full.item()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == dtype, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 2}, {"cache_implementation": "static"}], ids=["greedy", "beams", "static"]
)
def test_generate_in_other_precisions(dtype, how):
    model = opened().to(dtype)
    batch = inputs(ROWS, side="left")
    tokens = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False, **how)
    assert tokens.shape == (3, 10)
    without = model.generate(**batch, max_new_tokens=1, min_new_tokens=1, do_sample=False, use_cache=False)
    if not how:
        assert torch.equal(tokens[:, :7], without)


@torch.no_grad()
def test_float64_equals_float32_to_1e_5():
    model = opened()
    batch = inputs(ROWS)
    expected = model(**batch).logits
    assert difference(model.double()(**batch).logits.float(), expected) <= 1e-5


@pytest.mark.parametrize("dtype", HALF, ids=str)
@torch.no_grad()
def test_no_leak_stays_exactly_0_in_half_precision(dtype):
    model = opened().to(dtype)
    one, other = (model(**inputs(ROWS, seed=seed)).logits for seed in (0, 50))
    assert difference(one[0, :2], other[0, :2]) == 0.0
    assert difference(one[1], other[1]) == 0.0
    assert difference(one[0, 2:], other[0, 2:]) > 1e-2


@pytest.mark.parametrize("dtype", HALF, ids=str)
@torch.no_grad()
def test_a_fresh_model_does_not_see_the_media_in_half_precision_either(dtype):
    model = joined().to(dtype)
    one, other = (model(**inputs(ROWS, seed=seed)).logits for seed in (0, 50))
    assert difference(one, other) == 0.0


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("connector", CONNECTORS)
def test_autocast_bf16_forward_and_backward(connector, checkpointed):
    model = opened(vision_connector=connector, audio_connector=connector).train()
    batch = inputs(ROWS)
    full = model(**batch, labels=labels(batch))
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    with torch.autocast("cpu", torch.bfloat16):
        out = model(**batch, labels=labels(batch))
    out.loss.backward()
    check_close(out.logits.detach(), full.logits.detach(), torch.bfloat16)
    assert abs(out.loss.item() - full.loss.item()) <= 0.05 * full.loss.item()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_autocast_bf16_with_waves(norm):
    model = opened(audio=wav2vec2(norm)).train()
    batch = inputs([[5, AUDIO, 6], [7, 8, AUDIO]], audio=[[wave(0, 240)], [wave(1, 400)]])
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch, labels=labels(batch)).loss
    loss.backward()
    assert torch.isfinite(loss)


def test_autocast_generates_the_same_with_and_without_a_cache():
    model = opened()
    batch = inputs(ROWS, side="left")
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert tokens.shape == (3, 10)


def test_the_loss_of_a_half_precision_model_is_computed_in_float32():
    model = opened().to(torch.bfloat16)
    batch = inputs(ROWS)
    target = labels(batch)
    with torch.no_grad():
        out = model(**batch, labels=target)
    shifted = torch.nn.functional.pad(target, (0, 1), value=-100)[:, 1:]
    expected = torch.nn.functional.cross_entropy(out.logits.float().flatten(0, 1), shifted.flatten())
    assert out.loss.dtype == torch.float32
    assert difference(out.loss, expected) <= 1e-6


@torch.no_grad()
def test_media_encoded_once_in_half_precision_are_reused_exactly():
    model = opened().to(torch.bfloat16)
    text = {"input_ids": torch.tensor([[5, IMAGE, 6]])}
    media = model.encode_media(**pad_images([[inputs([[IMAGE]])["pixel_values"][0, 0]]]))
    expected = model(
        **text, **{k: v for k, v in inputs([[IMAGE]]).items() if k in ("pixel_values", "image_mask")}
    ).logits
    assert difference(model(**text, media=media).logits, expected) == 0.0
    wide = media.map(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
    assert difference(model(**text, media=wide).logits, expected) == 0.0


@torch.no_grad()
def test_parts_of_different_precision_join():
    """A bf16 decoder with float32 encoders runs, whatever precision the joint model takes."""
    model = open_gates(joined(gpt2().bfloat16(), vit(), whisper()))
    assert torch.isfinite(model(**inputs(ROWS)).logits).all()
    model = open_gates(joined(gpt2(), vit().bfloat16(), whisper().half()))
    assert torch.isfinite(model(**inputs(ROWS)).logits).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_classifier_in_half_precision(dtype):
    model = opened(cls=MMForSequenceClassification, num_labels=3).to(dtype)
    out = model(**inputs(ROWS), labels=torch.tensor([0, 1, 2]))
    out.loss.backward()
    assert out.logits.dtype == dtype and torch.isfinite(out.loss)
