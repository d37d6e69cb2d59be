"""Invariant 9: a rank without media does not hang, and its result is right (1e-6 of the single-process mean).

Two real processes (gloo, CPU) run every case below, one after the other, in one launch: this module is their program.
Rank 0 has text only; rank 1 has an image and a sound. A hang ends in the time-out and fails.
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed

from tests.fakes.ranks import free_port, join, launch
from tests.fakes.tiny import AUDIO, CONNECTORS, IMAGE, inputs, joined, labels, open_gates, wav2vec2, wave

TIMEOUT = 150  # seconds for all the cases of one launch
FROZEN = {"freeze_vision": True, "freeze_audio": True}
FIELDS = {
    "plain": {},
    **{connector: {"vision_connector": connector, "audio_connector": connector} for connector in CONNECTORS},
    "ungated": {"cross_attention_gated": False},
    "learned": {"media_position_encoding": "learned", "max_media_positions": 32},
    "numbered": {"max_media_items": 2},
    "towers_frozen": FROZEN,
    **{
        f"{connector}_frozen": {**FROZEN, "vision_connector": connector, "audio_connector": connector}
        for connector in CONNECTORS
    },
    "vision_frozen": {"freeze_vision": True},
    "text_frozen": {"freeze_text": True},
    "all_frozen": {**FROZEN, "freeze_text": True},
    "waves": {"audio": "wav2vec2"},
    "group_norm_waves": {"audio": "group"},
    "checkpointed": {},
}
ROWS = {  # what each of the two ranks has
    "none_and_both": ([[5, 6, 7, 8]], [[5, IMAGE, 6, AUDIO, 7]]),
    "image_and_sound": ([[5, 6, IMAGE, 8]], [[5, 6, AUDIO, 7]]),
    "none_and_none": ([[5, 6, 7, 8]], [[9, 10, 11]]),
    "image_alone_and_sound_alone": ([[IMAGE]], [[AUDIO, AUDIO]]),  # and no text: see `batches_of`
    "both_alone_and_image_alone": ([[IMAGE, AUDIO]], [[IMAGE]]),
    "none_and_image": ([[5, 6, 7, 8], [1, 2, 3]], [[5, IMAGE, 6, 7], [8, 9, 10]]),
}
GENERATED = {  # one row a rank: several would have to be padded on the left
    "image_and_image": ([[5, 6, IMAGE, 8]], [[9, IMAGE, 7, 10]]),
    "text_and_image": ([[5, 6, 7, 8]], [[9, IMAGE, 7, 10]]),
}
NEW = 4
OUR_BLOCKS = {"DecoderBlock", "GatedCrossAttentionBlock", "ResamplerLayer"}
WAYS = {  # how each way of generating differs from greedy search
    "fsdp_generate": {},
    "fsdp_uncached": {"use_cache": False},
    "fsdp_beams": {"num_beams": 2},
}
DDP = [(name, "none_and_both") for name in FIELDS] + [("plain", rows) for rows in ROWS if rows != "none_and_both"]
FSDP = [
    (name, "none_and_both")
    for name in ("plain", "perceiver", "gru", "ungated", "numbered", "towers_frozen", "all_frozen")
]
FSDP += [("plain", rows) for rows in ROWS if rows != "none_and_both"]
CASES = [f"{how}-{name}-{rows}" for how, cases in (("ddp", DDP), ("fsdp", FSDP)) for name, rows in cases]
CASES += ["fsdp_eval-plain-none_and_both", "fsdp_eval-towers_frozen-none_and_both"]
CASES += ["fsdp_blocks_eval-perceiver-none_and_both", "ddp-towers_frozen-image_alone_and_sound_alone"]
CASES += ["fsdp_eval-plain-image_alone_and_sound_alone"]
CASES += [f"{way}-plain-{rows}" for way in WAYS for rows in GENERATED]
CASES += ["fsdp_generate-perceiver-text_and_image", "fsdp_synced-plain-text_and_image"]


# ---- The program of each process ------------------------------------------------------------------------------------


def build(name):
    fields = dict(FIELDS[name])
    if fields.get("audio") == "group":
        fields["audio"] = wav2vec2("group")
    model = open_gates(joined(**fields)).train()
    # What the config promises, done by hand, so that this file tests what several processes make of it.
    for part, module in (("vision", "vision_tower"), ("audio", "audio_tower")):
        if fields.get(f"freeze_{part}"):
            getattr(model.model, module).requires_grad_(False)
    if fields.get("freeze_text"):
        for parameter_name, parameter in model.model.language_model.named_parameters():
            parameter.requires_grad_(".cross_blocks." in parameter_name)
    if name == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def batches_of(name, rows):
    make_sound = wave if "waves" in name else None
    kwargs = {"make_sound": make_sound} if make_sound else {}
    batches = [inputs(r, seed=7 * rank, **kwargs) for rank, r in enumerate({**ROWS, **GENERATED}[rows])]
    if "alone" in rows:
        return [
            {key: value for key, value in b.items() if key not in ("input_ids", "attention_mask")} for b in batches
        ]
    return [batch | {"labels": labels(batch)} for batch in batches]


def loss_of(outputs):
    """The loss, or, of media without a text to be learned, what stands in for one."""
    return outputs.logits[:, -1].square().mean() if outputs.loss is None else outputs.loss


def reference(name, rows):
    """The mean over the ranks of each batch's gradients, in one process."""
    model = build(name)
    total = {key: torch.zeros_like(p) for key, p in model.named_parameters() if p.requires_grad}
    losses = []
    for batch in batches_of(name, rows):
        model.zero_grad(set_to_none=True)
        loss = loss_of(model(**batch))
        loss.backward()
        losses.append(loss.item())
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                total[key] += parameter.grad / 2
    return losses, total


def check(name, rows, loss, found, rank):
    losses, expected = reference(name, rows)
    assert abs(loss - losses[rank]) <= 1e-6, f"loss {loss} instead of {losses[rank]}"
    assert set(found) == set(expected)
    missing = [key for key, gradient in found.items() if gradient is None]
    assert missing == [], f"{len(missing)} without a gradient: {missing[:3]}"
    for key, gradient in found.items():
        moved = (gradient - expected[key]).abs().max().item()
        assert moved <= 1e-6 * max(1.0, expected[key].abs().max().item()), f"{key}: off by {moved}"


def run_ddp(name, rows, rank):
    model = build(name)
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)
    batch = batches_of(name, rows)[rank]
    runs = []
    for tower in (model.model.vision_tower, model.model.audio_tower):
        tower.register_forward_hook(lambda *_: runs.append(1))
    for _ in range(2):  # a parameter left out of one step shows in the next
        model.zero_grad(set_to_none=True)
        loss = loss_of(wrapped(**batch))
        loss.backward()
    is_spared = rows == "none_and_both" and name not in ("vision_frozen", "text_frozen")
    if "frozen" in name and rank == 0 and is_spared:
        assert not runs, "frozen encoders ran over an empty item"
    found = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    check(name, rows, loss.item(), found, rank)


def shard(model, towers=True):
    """Block by block; without `towers` our own blocks alone, and the towers with the root."""
    from torch.distributed.fsdp import fully_shard

    wrap = {name for module in model.modules() for name in (getattr(module, "_no_split_modules", None) or ())}
    wrap = wrap if towers else OUR_BLOCKS
    for module in reversed(list(model.modules())):
        if type(module).__name__ in wrap:
            fully_shard(module)
    for module in (model.model.vision_tower, model.model.audio_tower) if towers else ():
        fully_shard(module)
    return fully_shard(model)


def run_fsdp(name, rows, rank):
    model = shard(build(name))
    batch = batches_of(name, rows)[rank]
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        loss = loss_of(model(**batch))
        loss.backward()
    found = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    found = {key: gradient if gradient is None else gradient.full_tensor() for key, gradient in found.items()}
    check(name, rows, loss.item(), found, rank)


def run_fsdp_eval(name, rows, rank, **how):
    model = shard(build(name), **how).eval()
    batch = batches_of(name, rows)[rank]
    with torch.no_grad():
        loss = loss_of(model(**batch)).item()
        expected = loss_of(build(name).eval()(**batch)).item()
    assert abs(loss - expected) <= 1e-6


def run_fsdp_blocks_eval(name, rows, rank):
    """Rank 0 would skip the resampler's layers, which are sharded each by itself, while the towers are the root's."""
    assert {type(module).__name__ for module in build(name).modules()} >= OUR_BLOCKS
    run_fsdp_eval(name, rows, rank, towers=False)


def run_fsdp_generate(name, rows, rank, synced_gpus=None, **kwargs):
    model, reference = shard(build(name)).eval(), build(name).eval()
    batch = batches_of(name, rows)[rank]
    del batch["labels"]
    kwargs = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW, **kwargs}
    expected = reference.generate(**batch, **kwargs)
    found = model.generate(**batch, **kwargs, synced_gpus=synced_gpus)
    assert found.tolist() == expected.tolist(), f"{found.tolist()} instead of {expected.tolist()}"
    if rank == 1:  # it did look at its image
        blind = reference.generate(**{**batch, "pixel_values": -3 * batch["pixel_values"]}, **kwargs)
        assert blind.tolist() != expected.tolist()


def run_fsdp_synced(name, rows, rank):
    """Rank 0 has said its last word before rank 1: it goes on calling the model, as sharded weights need."""
    batch = batches_of(name, rows)[0]
    del batch["labels"]
    second = build(name).eval().generate(**batch, do_sample=False, max_new_tokens=2, min_new_tokens=2)[0, -1].item()
    ends = {"eos_token_id": second, "min_new_tokens": 0} if rank == 0 else {}
    run_fsdp_generate(name, rows, rank, synced_gpus=True, **ends)


def program(folder, chosen):
    rank = join(20)
    run = {"ddp": run_ddp, "fsdp": run_fsdp, "fsdp_eval": run_fsdp_eval, "fsdp_blocks_eval": run_fsdp_blocks_eval}
    run |= {way: partial(run_fsdp_generate, **kwargs) for way, kwargs in WAYS.items()} | {
        "fsdp_synced": run_fsdp_synced
    }
    for case in chosen:
        how, name, rows = case.split("-")
        start = time.perf_counter()
        try:
            run[how](name, rows, rank)
            outcome = "passed"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"[:600]
        result = {"outcome": outcome, "seconds": time.perf_counter() - start}
        (folder / f"{case}.{rank}.json").write_text(json.dumps(result))
        # A collective that one rank left alone cannot be trusted afterwards: the rest goes into another launch.
        healthy = torch.tensor([float(outcome == "passed")])
        distributed.all_reduce(healthy)
        if healthy.item() < 2:
            os._exit(3)
    distributed.destroy_process_group()


# ---- The tests ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    found, left = {}, list(CASES)
    for _ in range(5):  # a new launch after each failure, as long as there are not many
        log = "\n".join(ended.log[-1500:] for ended in launch(__file__, folder, *left, timeout=TIMEOUT))
        for case in list(left):
            files = [folder / f"{case}.{rank}.json" for rank in range(2)]
            if any(file.exists() for file in files):
                results = [json.loads(f.read_text())["outcome"] if f.exists() else "hung or died" for f in files]
                found[case] = results if results == ["passed", "passed"] else [*results, log]
                left.remove(case)
        if not left:
            break
        if not found:
            pytest.fail(f"neither process got to its first case:\n{log}")
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_a_rank_without_media_does_not_hang_and_is_right(outcomes, case):
    assert case in outcomes, "not reached: earlier cases failed"
    assert outcomes[case] == ["passed", "passed"], "\n".join(outcomes[case])


def called_modules(model, batch, train=True):
    """Modules with parameters of their own, in the order of their calls: what ZeRO-3 gathers, rank by rank."""
    called = []
    handles = []
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            hook = lambda module, args, name=name: called.append(name)  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook))
    model.train(train)
    model(**batch)
    for handle in handles:
        handle.remove()
    return called


@pytest.fixture
def group_of_one():
    """A model cannot know of other ranks where there is no process group."""
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["plain", "perceiver", "conv", "gru", "numbered", "towers_frozen"])
def test_zero_3_every_rank_calls_the_same_modules_in_the_same_order(group_of_one, monkeypatch, name):
    """ZeRO-3 gathers a module's parameters when it is called, on all ranks at once: the calls must be the same."""
    monkeypatch.setattr(distributed, "get_world_size", lambda group=None: 2)
    model = build(name)
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id = number  # as ZeRO-3 marks them; without it a frozen encoder is rightly left out
    texts = [[[5, 6, 7, 8]], [[5, IMAGE, 6, 7]], [[5, AUDIO, 6, 7]], [[5, IMAGE, 6, AUDIO]], [[IMAGE, IMAGE, 5], [6]]]
    sequences = [called_modules(model, inputs(rows)) for rows in texts]
    for rows, sequence in zip(texts, sequences, strict=True):
        assert sequence == sequences[3], f"{rows}: {set(sequences[3]) ^ set(sequence)}"
    for rows in ([[IMAGE]], [[AUDIO]]):
        batch = inputs(rows)
        del batch["input_ids"], batch["attention_mask"]
        assert called_modules(model, batch) == sequences[3], f"{rows} alone"


def test_sharded_weights_start_no_generation_from_media_alone(group_of_one):
    """They are there within `forward` only, which wants the tokens that the media stand for."""
    model = build("plain").eval()
    batch = inputs([[IMAGE]])
    text = {name: batch.pop(name) for name in ("input_ids", "attention_mask")}
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id = number
    with pytest.raises(ValueError, match=r"media alone cannot be encoded.*Pass input_ids with a placeholder"):
        model.generate(**batch, max_new_tokens=2)
    assert model.generate(**text, **batch, max_new_tokens=2, do_sample=False).shape == (1, 3)


if __name__ == "__main__":
    program(Path(sys.argv[1]), sys.argv[2:])
