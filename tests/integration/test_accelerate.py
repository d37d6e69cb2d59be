"""accelerate: parts of the model on the CPU and on the disk, and offloading, give the same logits and text."""

import pytest
import torch

from modeling_mm import MMForConditionalGeneration
from tests.fakes.tiny import AUDIO, IMAGE, difference, inputs, opened

accelerate = pytest.importorskip("accelerate")
ROWS = [[5, IMAGE, 6, AUDIO, 7], [8, 9], [IMAGE, 10, IMAGE, 11, 12]]
GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model = opened()
    model.save_pretrained(folder)
    batch = inputs(ROWS, side="left")
    with torch.no_grad():
        return folder, model, batch, model(**batch).logits, model.generate(**batch, **GREEDY)


def check(model, saved):
    _, _, batch, logits, tokens = saved
    with torch.no_grad():
        assert difference(model(**batch).logits, logits) <= 1e-6
    assert torch.equal(model.generate(**batch, **GREEDY), tokens)


MAPS = {
    "everything_on_the_cpu": {"": "cpu"},
    "towers_on_the_disk": {
        "model.vision_tower": "disk",
        "model.audio_tower": "disk",
        "model.vision_connector": "cpu",
        "model.audio_connector": "cpu",
        "model.language_model": "cpu",
        "lm_head": "cpu",
    },
    "connectors_on_the_disk": {
        "model.vision_tower": "cpu",
        "model.audio_tower": "cpu",
        "model.vision_connector": "disk",
        "model.audio_connector": "disk",
        "model.language_model": "cpu",
        "lm_head": "cpu",
    },
}


@pytest.mark.parametrize("name", MAPS)
def test_an_explicit_device_map_gives_the_same(saved, tmp_path, name):
    model = MMForConditionalGeneration.from_pretrained(saved[0], device_map=MAPS[name], offload_folder=tmp_path)
    check(model, saved)


def test_decoder_blocks_split_between_cpu_and_disk(saved, tmp_path):
    inner = saved[1].model.language_model
    device_map = {f"model.language_model.{name}": "cpu" for name, _ in inner.named_children()}
    del device_map["model.language_model.h"], device_map["model.language_model.cross_blocks"]
    for i in range(4):
        device_map[f"model.language_model.h.{i}"] = "disk" if i % 2 else "cpu"
    for i in (1, 3):
        device_map[f"model.language_model.cross_blocks.{i}"] = "disk" if i == 1 else "cpu"
    for name in (
        "model.vision_tower",
        "model.audio_tower",
        "model.vision_connector",
        "model.audio_connector",
        "lm_head",
    ):
        device_map[name] = "cpu"
    model = MMForConditionalGeneration.from_pretrained(saved[0], device_map=device_map, offload_folder=tmp_path)
    assert any(parameter.device.type == "meta" for parameter in model.parameters())
    check(model, saved)


def test_cpu_offload_gives_the_same(saved):
    model = MMForConditionalGeneration.from_pretrained(saved[0])
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    check(model, saved)


def test_disk_offload_gives_the_same(saved, tmp_path):
    model = MMForConditionalGeneration.from_pretrained(saved[0])
    accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    check(model, saved)


def test_an_inferred_device_map_never_splits_a_block(saved):
    model = saved[1]
    sizes = accelerate.utils.compute_module_sizes(model)
    device_map = accelerate.infer_auto_device_map(
        model,
        max_memory={0: sizes[""] // 3, 1: sizes[""] // 3, "cpu": 2 * sizes[""]},
        no_split_module_classes=model._no_split_modules,
    )
    whole = [name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules]
    assert len(whole) >= 6  # four decoder blocks, two cross-attention blocks
    for block in whole:
        inside = [key for key in device_map if key.startswith(f"{block}.")]
        assert inside == [], f"{block} is split: {inside}"


def test_prepare_and_one_step_with_accelerator(saved):
    from tests.fakes.tiny import labels

    # The state is shared by all of a process and keeps the precision that an earlier test asked for.
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model = MMForConditionalGeneration.from_pretrained(saved[0]).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    batch = inputs(ROWS)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss = model(**batch, labels=labels(batch)).loss
    accelerator.backward(loss)
    optimizer.step()
    with torch.no_grad():
        exact = saved[1](**batch, labels=labels(batch)).loss.item()
    assert 0.0 < abs(loss.item() - exact) <= 0.02 * exact, "that of float32, but for 8 bits of mantissa"
    assert loss.dtype == torch.float32
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert still == {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert len(still) < len(before) / 10
