"""`modeling-mm train` and scripts/train.py: on one device, by two processes, and with what they must refuse."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForImageTextToText

from modeling_mm.cli import main
from tests.fakes.quick_python import QUICK_PYTHON
from tests.fakes.ranks import ROOT, free_port, quiet_environment
from tests.fakes.recipe_runs import SAMPLE, plain_recipe

accelerate = pytest.importorskip("accelerate")


def write(folder: Path, **training) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(plain_recipe(folder / "out", max_steps=2, **training)))
    return path


def launch(*arguments: str) -> list[str]:
    """By the configuration that is shipped, without GPUs."""
    command = [QUICK_PYTHON, "-m", "accelerate.commands.launch"]
    return [*command, "--config_file", "configuration/accelerate/ddp.yaml", "--num_processes", "2", *arguments]


def two_processes(*arguments: str) -> subprocess.CompletedProcess:
    command = launch("--main_process_port", "0", "-m", "modeling_mm.cli", "train", "--traceback", *arguments)
    return subprocess.run(command, cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, timeout=300)


def test_a_recipe_is_followed_on_one_device(tmp_path, capsys):
    path = write(tmp_path)
    assert main(["train", str(path), "training.max_steps=1", "training.eval_steps=1"]) == 0
    printed = capsys.readouterr().out
    assert "evaluation │ loss" in printed and "1 steps in" in printed
    assert json.loads((tmp_path / "out" / "run.json").read_text())["steps"] == 1
    assert main(["train", str(path)]) == 2
    assert "holds a finished run" in capsys.readouterr().err


def test_wrong_keys_are_refused_in_one_line(tmp_path, capsys):
    assert main(["train", str(write(tmp_path)), "training.learing_rate=1"]) == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(r"modeling-mm train: training.learing_rate: .+ Did you mean 'learning_rate'\?\n", printed)
    assert main(["train", str(tmp_path / "other.yaml")]) == 2
    assert "There is no recipe" in capsys.readouterr().err
    with pytest.raises(ValueError, match="learing_rate"):
        main(["train", str(write(tmp_path)), "training.learing_rate=1", "--traceback"])


def test_two_processes_train_one_model_answer_together_and_search(tmp_path):
    """The same steps as one process with the whole batch."""
    cache = f"data.encoder_cache={tmp_path / 'cache'}"
    frozen = ("frozen={vision: always, audio: always}", cache)
    path = write(tmp_path, per_device_train_batch_size=3, predict_with_generate=True, generation_max_new_tokens=2)
    space = {"training.learning_rate": [1e-4, 1e-3]}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"search": {"space": space, "method": "grid"}}))
    result = two_processes(str(path), *frozen)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("evaluation │ loss") == 1
    found = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (found["processes"], found["steps"], found["figures"]["evaluation"]["samples"]) == (2, 2, 12)
    assert found["epochs"] == 1.0  # 12 samples, 2 processes, 3 each a step
    assert "exact_match" in found["figures"]["evaluation"]
    AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    result = two_processes(str(path), *frozen, "--search", "2")
    assert result.returncode == 0, result.stderr[-3000:]
    rows = json.loads((tmp_path / "out" / "search" / "trials.json").read_text())
    assert sorted(row["training.learning_rate"] for row in rows) == [1e-4, 1e-3]
    assert rows[0]["eval_loss"] < rows[1]["eval_loss"]


def test_two_machines_train_one_model(tmp_path):
    """Two launchers, each with one of the processes, which find each other by address and port."""
    path = write(tmp_path, per_device_train_batch_size=3)
    here = ("--num_machines", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port()))
    machines = [
        subprocess.Popen(
            launch(*here, "--machine_rank", str(rank), "scripts/train.py", "--traceback", str(path)),
            cwd=ROOT,
            env=quiet_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], printed[0][-3000:] + printed[1][-3000:]
    found = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (found["processes"], found["steps"], found["epochs"]) == (2, 2, 1.0)
    assert ["evaluation │ loss" in text for text in printed] == [True, False]  # the first machine speaks


CONFIGURATIONS = {
    "ddp": ("MULTI_GPU", {}),
    "fsdp2": ("FSDP", {"fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT"}),
    "deepspeed_zero2": ("DEEPSPEED", {"zero_stage": 2}),
    "deepspeed_zero3": ("DEEPSPEED", {"zero_stage": 3, "zero3_save_16bit_model": True}),
}


def test_the_configurations_are_all_there():
    assert {path.stem for path in (ROOT / "configuration" / "accelerate").glob("*.yaml")} == set(CONFIGURATIONS)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_accelerate_reads_the_configurations(name):
    """`load_config_from_file` refuses unknown keys; those of the sections are among the options of `launch`."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(ROOT / "configuration" / "accelerate" / f"{name}.yaml"))
    kind, options = CONFIGURATIONS[name]
    section = {**(config.fsdp_config or {}), **(config.deepspeed_config or {})}
    assert config.distributed_type.value == kind
    assert {key: section[key] for key in options} == options
    assert section.keys() <= vars(launch_command_parser().parse_args(["script.py"])).keys()


def test_fsdp2_wraps_the_blocks_that_every_model_has():
    import modeling_mm.modeling_mm as models

    config = yaml.safe_load((ROOT / "configuration/accelerate/fsdp2.yaml").read_text())["fsdp_config"]
    wrapped = config["fsdp_transformer_layer_cls_to_wrap"].split(",")
    assert set(wrapped) <= set(models.MMPreTrainedModel._no_split_modules)


@pytest.mark.slow
def test_the_tiny_recipe_learns_something_in_a_minute(tmp_path):
    recipe = ROOT / "configuration" / "recipes" / "tiny-sample.yaml"
    command = [QUICK_PYTHON, "scripts/train.py", str(recipe), f"training.output_dir={tmp_path / 'out'}"]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300)
    assert result.returncode == 0
    found = json.loads((tmp_path / "out" / "run.json").read_text())
    assert found["figures"]["learned"]["loss"] < 2.0
    assert found["figures"]["learned"]["exact_match"] > 0.0
    assert Path(SAMPLE).is_dir()
