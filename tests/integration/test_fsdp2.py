"""Weights spread over processes and devices: torch's FSDP2 by accelerate's rules, saved in shards, loaded by one.

Two real processes (gloo, CPU) run the cases, in one launch: this module is their program. accelerate does not switch
FSDP on for CPU processes, so that its own launch, and DeepSpeed's, wait for a GPU.
"""

import json
import logging
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from packaging.version import Version
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers.models.auto import modeling_auto

from modeling_mm import MMForConditionalGeneration, MMForSequenceClassification, MMModel
from tests.fakes.quick_python import QUICK_PYTHON
from tests.fakes.ranks import RANKS, ROOT, join, launch_well, quiet_environment
from tests.fakes.recipe_runs import plain_recipe
from tests.fakes.tiny import AUDIO, IMAGE, difference, inputs, labels, opened

accelerate = pytest.importorskip("accelerate")
CONFIGURATIONS = ROOT / "configuration" / "accelerate"
TIMEOUT = 300  # seconds for the launch; 120 were measured beside other work
ROWS = ([[5, IMAGE, 6, 7, 8], [9, 10, 11]], [[AUDIO, 12, 13], [14, IMAGE, IMAGE, 15]])  # one batch a rank
FIRST, THEN = 3, 2  # steps before and after the save
ALL_TO_DISK = Version(accelerate.__version__) >= Version("1.15.0.dev0")
OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True)


# ---- accelerate's configurations, read by its own classes -----------------------------------------------------------


def launch_arguments(name: str, *options: str):
    """As `accelerate launch` has them once it has read the file."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = str(CONFIGURATIONS / f"{name}.yaml")
    arguments = launch_command_parser().parse_args(["--config_file", path, "--num_processes", "2", *options, "x.py"])
    return _validate_launch_command(arguments)[0]


@contextmanager
def environment_of(name: str):
    """The variables by which `accelerate launch` tells its processes."""
    from accelerate.utils import patch_environment
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    arguments = launch_arguments(name, "--main_process_port", "0")
    arguments.deepspeed_fields_from_accelerate_config = ""  # the launcher's own note, for another reader
    env = prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
    with patch_environment(**{key: value for key, value in env.items() if os.environ.get(key) != value}):
        yield


def fsdp_plugin():
    with environment_of("fsdp2"):
        return accelerate.FullyShardedDataParallelPlugin()


def test_ddp_is_read():
    arguments = launch_arguments("ddp")
    assert arguments.multi_gpu and not arguments.use_fsdp and not arguments.use_deepspeed
    assert arguments.mixed_precision == "no", "precision is the recipe's"


def test_fsdp2_is_read():
    plugin = fsdp_plugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.transformer_cls_names_to_wrap == ["DecoderBlock", "GatedCrossAttentionBlock"]
    assert not plugin.activation_checkpointing and not plugin.cpu_ram_efficient_loading


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_is_read(stage):
    with environment_of(f"deepspeed_zero{stage}"):
        plugin = accelerate.DeepSpeedPlugin()
    zero = plugin.deepspeed_config["zero_optimization"]
    assert plugin.zero_stage == zero["stage"] == stage and plugin.zero3_init_flag is False
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "none"
    assert zero["stage3_gather_16bit_weights_on_model_save"] is (stage == 3), "else the folder holds no whole model"
    for option in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        assert plugin.deepspeed_config[option] == "auto", "the recipe's"


# ---- transformers' own sharding, as it loads ------------------------------------------------------------------------

PLANNED = hasattr(MMForConditionalGeneration, "_resolve_parallel_plans")  # `distributed_config`, newer than 5.17


@pytest.mark.skipif(not PLANNED, reason="this transformers does not shard with FSDP2 when it loads")
@pytest.mark.parametrize("cls", [MMForConditionalGeneration, MMForSequenceClassification, MMModel])
def test_the_plan_of_transformers_names_every_block_and_nothing_else(cls, caplog, monkeypatch):
    from transformers.distributed import DistributedConfig

    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = opened(cls=cls, vision_connector="perceiver")
    prefix = "" if cls is MMModel else "model."
    _, _, plan = model._resolve_parallel_plans(DistributedConfig(fsdp_size=2))
    assert "match nothing" not in caplog.text
    model.fsdp_plan = model.fsdp_plan  # validated by its setter
    blocks = {name for name, module in model.named_modules() if type(module).__name__ in model._no_split_modules}
    assert blocks >= {f"{prefix}language_model.h.{i}" for i in range(4)}
    assert blocks >= {f"{prefix}vision_tower.layers.0", f"{prefix}audio_tower.layers.0"}
    assert plan == dict.fromkeys(plan, "free_full_weight") and set(plan) == blocks


# ---- The program of each process ------------------------------------------------------------------------------------


def shard(model):
    """As accelerate does it: by the rule of the configuration, the innermost first, then the rest as one."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    plugin = fsdp_plugin()
    plugin.set_auto_wrap_policy(model)
    is_wrapped = fsdp2_prepare_auto_wrap_policy(plugin, model)
    for module in reversed(list(model.modules())):
        if module is not model and is_wrapped(module):
            fully_shard(module, reshard_after_forward=plugin.reshard_after_forward)
    return fully_shard(model, reshard_after_forward=plugin.reshard_after_forward)


@torch.no_grad()
def blank():
    """A model that knows nothing, to be loaded into."""
    model = opened()
    for parameter in model.parameters():
        parameter.zero_()
    return model


def batch_of(rank: int) -> dict:
    batch = inputs(ROWS[rank], seed=20 * rank)
    return batch | {"labels": labels(batch)}


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def step_of(model, optimizer, batches) -> list[float]:
    """One step by the mean of the batches' losses."""
    losses = [model(**batch).loss for batch in batches]
    (sum(losses) / len(losses)).backward()
    optimizer.step()
    optimizer.zero_grad()
    return [loss.item() for loss in losses]


def rank_program(rank: int, folder: Path) -> dict:
    found: dict = {"losses": []}
    model = shard(opened().train())
    found["wrapped"] = sorted(name for name, module in model.named_modules() if isinstance(module, FSDPModule))
    found["whole"] = [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]
    found["share"] = sum(p.to_local().numel() for p in model.parameters()) / sum(p.numel() for p in model.parameters())
    tie = lambda: model.lm_head.weight is model.get_input_embeddings().weight  # noqa: E731
    found["tied"] = [tie()]
    optimizer = optimizer_of(model)
    for _ in range(FIRST):
        found["losses"] += step_of(model, optimizer, [batch_of(rank)])
    weights, moments = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": moments}, checkpoint_id=folder / "shards")
    whole = get_model_state_dict(model, options=OPTIONS)  # by every rank; the first gets it
    if rank == 0:
        opened().save_pretrained(folder / "whole", state_dict=whole)
    found["tied"].append(tie())

    for _ in range(THEN):
        found["losses"] += step_of(model, optimizer, [batch_of(rank)])
    end = get_model_state_dict(model, options=OPTIONS)
    if rank == 0:
        torch.save(end, folder / "end.pt")

    again = shard(blank().train())
    optimizer = optimizer_of(again)
    weights, moments = get_state_dict(again, optimizer)
    state = {"model": weights, "optimizer": moments}
    checkpoint.load(state, checkpoint_id=folder / "shards")
    set_state_dict(again, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    found["resumed"] = [loss for _ in range(THEN) for loss in step_of(again, optimizer, [batch_of(rank)])]
    resumed = get_model_state_dict(again, options=OPTIONS)
    if rank == 0:
        torch.save(resumed, folder / "resumed.pt")
    return found | (loaded_in_shards(rank, folder) if PLANNED else {})


def loaded_in_shards(rank: int, folder: Path) -> dict:
    """A folder that transformers shards as it loads, and what its first step gives."""
    from transformers.distributed import DistributedConfig

    distributed.barrier()
    how = {"distributed_config": DistributedConfig(fsdp_size=RANKS)}
    model = MMForConditionalGeneration.from_pretrained(folder / "whole", **how).train()
    spread = [isinstance(parameter, DTensor) for parameter in model.parameters()]
    loss = model(**batch_of(rank)).loss.item()
    known = model._get_name() in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()  # FSDP2 renames the class
    return {"loaded": loss, "all spread": all(spread), "name": model._get_name(), "name is known": known}


def program(folder: Path) -> None:
    rank = join(30)
    (folder / f"rank-{rank}.json").write_text(json.dumps(rank_program(rank, folder)))
    distributed.barrier()
    distributed.destroy_process_group()


# ---- Sharded by torch, on two processes -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp2")
    launch_well(__file__, folder, timeout=TIMEOUT)
    return folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def one_process():
    """The same steps in one process: losses of each rank's batch, and weights at the save and at the end."""
    model = opened().train()
    optimizer = optimizer_of(model)
    losses, weights = [], {}
    for step in range(1, FIRST + THEN + 1):
        losses.append(step_of(model, optimizer, [batch_of(rank) for rank in range(RANKS)]))
        if step in (FIRST, FIRST + THEN):
            weights[step] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return losses, weights


def same(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert difference(found[name], tensor) <= tolerance, name


def loss_of(model) -> list[float]:
    with torch.no_grad():
        return [model(**batch_of(rank)).loss.item() for rank in range(RANKS)]


def test_the_blocks_are_wrapped_and_every_weight_is_spread(two_processes):
    blocks = [f"model.language_model.h.{i}" for i in range(4)]
    blocks += [f"model.language_model.cross_blocks.{i}" for i in (1, 3)]
    for found in two_processes[1]:
        assert found["wrapped"] == sorted(["", *blocks])
        assert found["whole"] == []
        assert 0.4 < found["share"] < 0.6, "odd sizes do not divide by two"


def test_head_and_embedding_stay_one_weight(two_processes):
    folder, ranks = two_processes
    assert [found["tied"] for found in ranks] == [[True, True]] * 2
    loaded = MMForConditionalGeneration.from_pretrained(folder / "whole")
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_losses_and_weights_are_those_of_one_process(two_processes, one_process):
    folder, ranks = two_processes
    losses, weights = one_process
    for rank, found in enumerate(ranks):
        assert found["losses"] == pytest.approx([step[rank] for step in losses], abs=1e-5)
    assert losses[-1][0] < losses[0][0], "it learns"
    same(torch.load(folder / "end.pt", weights_only=True), weights[FIRST + THEN], 1e-5)


def test_each_process_saves_its_share_and_one_process_loads_all(two_processes, one_process):
    folder, _ = two_processes
    assert {path.name.split("_")[2] for path in (folder / "shards").glob("__*.distcp")} == {"0", "1"}
    model = blank()
    state = {"model": model.state_dict()}
    checkpoint.load(state, checkpoint_id=folder / "shards", no_dist=True)
    model.load_state_dict(state["model"])
    expected = one_process[1][FIRST]
    same(model.state_dict(), expected, 1e-5)
    reference = opened()
    reference.load_state_dict(expected)
    assert loss_of(model) == pytest.approx(loss_of(reference), abs=1e-5)


def test_the_whole_state_is_a_folder_like_any_other(two_processes, one_process):
    loaded = MMForConditionalGeneration.from_pretrained(two_processes[0] / "whole")
    same(loaded.state_dict(), one_process[1][FIRST], 1e-5)


@pytest.mark.skipif(not PLANNED, reason="this transformers does not shard with FSDP2 when it loads")
def test_what_transformers_shards_as_it_loads_is_the_same_model(two_processes):
    folder, ranks = two_processes
    expected = loss_of(MMForConditionalGeneration.from_pretrained(folder / "whole").train())
    for rank, found in enumerate(ranks):
        assert found["all spread"]
        assert found["name"] == "FSDPMMForConditionalGeneration" and found["name is known"]
        assert found["loaded"] == pytest.approx(expected[rank], abs=1e-5)


def test_sharded_training_goes_on_from_its_shards(two_processes):
    folder, ranks = two_processes
    for found in ranks:
        assert found["resumed"] == found["losses"][FIRST:]
    resumed, end = (torch.load(folder / f"{name}.pt", weights_only=True) for name in ("resumed", "end"))
    same(resumed, end, 0.0)


# ---- Device maps that accelerate infers; tests/integration/test_accelerate.py has those that are given --------------


@pytest.mark.parametrize(
    "room, places",
    [
        (4, {"cpu"}),
        (0.5, {"cpu", "meta"}),
        pytest.param(0.01, {"meta"}, marks=pytest.mark.skipif(not ALL_TO_DISK, reason="accelerate 1.14 refuses this")),
    ],
    ids=["all_fits", "half_fits", "none_fits"],
)
def test_device_map_auto_without_a_gpu_fills_the_memory_and_then_the_disk(room, places, tmp_path):
    """What lies on the disk is `meta` until it is used."""
    model, batch = opened(), inputs(ROWS[0])
    model.save_pretrained(tmp_path / "model")
    size = accelerate.utils.compute_module_sizes(model)[""]
    how = {"device_map": "auto", "max_memory": {"cpu": int(room * size)}, "offload_folder": tmp_path / "disk"}
    loaded = MMForConditionalGeneration.from_pretrained(tmp_path / "model", **how)
    assert {parameter.device.type for parameter in loaded.parameters()} == places
    offloaded = sum(p.numel() * p.element_size() for p in loaded.parameters() if p.is_meta)
    assert offloaded >= (1 - room) * size, "no more than there is room for"
    with torch.no_grad():
        assert difference(loaded(**batch).logits, model(**batch).logits) <= 1e-6


# ---- By accelerate and DeepSpeed, on GPUs ---------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_a_recipe_on_gpus_ends_as_on_one_device(name, tmp_path):
    """With as many processes as there are GPUs; one is enough for the code to be run."""
    if name.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    processes = min(torch.cuda.device_count(), 2)
    figures = {}
    for way, launcher, size in (
        ("one", [], 6),
        (
            name,
            [
                *("-m", "accelerate.commands.launch", "--config_file", str(CONFIGURATIONS / f"{name}.yaml")),
                *("--num_processes", str(processes), "--main_process_port", "0"),
            ],
            6 // processes,
        ),
    ):
        path = tmp_path / f"{way}.yaml"
        options = {"use_cpu": False, "per_device_train_batch_size": size, "eval_steps": 4}
        path.write_text(yaml.safe_dump(plain_recipe(tmp_path / way, **options)))
        command = [QUICK_PYTHON, *launcher, "scripts/train.py", "--traceback", str(path)]
        env = quiet_environment() | ({"CUDA_VISIBLE_DEVICES": "0"} if way == "one" else {})
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        figures[way] = json.loads((tmp_path / way / "run.json").read_text())["figures"]["evaluation"]["loss"]
        MMForConditionalGeneration.from_pretrained(tmp_path / way)
    assert figures[name] == pytest.approx(figures["one"], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("room", [None, 0.5], ids=["all_fits", "half_fits"])
def test_device_map_auto_fills_the_gpu_first(room, tmp_path):
    model = opened()
    model.save_pretrained(tmp_path)
    size = accelerate.utils.compute_module_sizes(model)[""]
    memory = {} if room is None else {"max_memory": {0: int(room * size), "cpu": 4 * size}}
    loaded = MMForConditionalGeneration.from_pretrained(tmp_path, device_map="auto", **memory)
    kinds = {parameter.device.type for parameter in loaded.parameters()}
    assert kinds == ({"cuda"} if room is None else {"cuda", "meta"}), "what lies on the CPU is fetched when it is used"
    batch = {name: tensor.to("cuda") for name, tensor in inputs(ROWS[0]).items()}
    with torch.no_grad():
        assert difference(loaded(**batch).logits.cpu(), model(**inputs(ROWS[0])).logits) <= 1e-4


if __name__ == "__main__":
    program(Path(sys.argv[1]))
