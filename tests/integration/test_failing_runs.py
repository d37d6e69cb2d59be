"""Runs that the system or a slip ends: one line on stderr and an exit code, no traceback."""

import json
import resource
import subprocess
from pathlib import Path

import pytest
import yaml

from modeling_mm.cli import main, parse
from tests.fakes.quick_python import QUICK_PYTHON
from tests.fakes.ranks import ROOT, quiet_environment
from tests.fakes.recipe_runs import plain_recipe

TIMEOUT = 300


def recipe_file(folder: Path, **training) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(plain_recipe(folder / "out", **training)), encoding="utf-8")
    return path


def train(path: Path, before: str = "") -> subprocess.CompletedProcess:
    """Train in a new process, after a line of Python."""
    program = f"{before}\nimport sys\nfrom modeling_mm.cli import main\nsys.exit(main(['train', {str(path)!r}]))"
    environment = quiet_environment() | {"PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [QUICK_PYTHON, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT
    )


def last_line(done: subprocess.CompletedProcess) -> str:
    assert "Traceback" not in done.stderr and "%|" not in done.stderr, done.stderr[-3000:]
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.timeout(TIMEOUT + 30)
def test_a_disk_that_is_full_ends_in_one_line(tmp_path):
    """No file may be larger than 100 kB, as on a disk without room for the weights."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    assert resource.RLIMIT_FSIZE is not None
    done = train(recipe_file(tmp_path), limit)
    assert done.returncode == 1 and last_line(done).startswith("modeling-mm train: "), done.stderr[-2000:]
    assert "File too large" in last_line(done) or "could not be written" in last_line(done)
    assert "step 2: loss" in done.stderr, "an evaluation is one line"
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.timeout(TIMEOUT + 30)
def test_a_dead_data_worker_ends_in_one_line(tmp_path):
    # It dies a moment later, when its parent has imported all it needs: torch prints an import that fails meanwhile.
    kill = "import os, signal, time\nfrom modeling_mm.training import ChatCollator\n"
    kill += "parent = os.getpid()\nencode = ChatCollator.encode\n"
    kill += "def die(self, row): return encode(self, row) if os.getpid() == parent else last(2)\n"
    kill += "def last(seconds): time.sleep(seconds), os.kill(os.getpid(), 9)\n"
    kill += "ChatCollator.encode = die"
    done = train(recipe_file(tmp_path, dataloader_num_workers=1), kill)
    assert done.returncode == 1 and "DataLoader worker" in last_line(done), done.stderr[-2000:]


@pytest.mark.timeout(TIMEOUT + 30)
def test_an_error_in_a_worker_is_its_own_line(tmp_path):
    fail = "from modeling_mm.training import ChatCollator\n"
    fail += "def encode(self, row): raise ValueError('the row is wrong')\nChatCollator.encode = encode"
    done = train(recipe_file(tmp_path, dataloader_num_workers=1), fail)
    assert done.returncode == 2 and last_line(done).endswith("the row is wrong"), done.stderr[-2000:]


def test_a_misspelled_best_metric_is_refused_before_the_first_step(tmp_path, capsys):
    assert main(["train", str(recipe_file(tmp_path, metric_for_best_model="los"))]) == 2
    assert "metric_for_best_model: evaluation gives no 'los'. Did you mean 'loss'?" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_overrides_may_follow_the_number_of_trials():
    for arguments in (["r.yaml", "--search", "3", "a=1"], ["r.yaml", "a=1", "--search", "3"]):
        options = parse(["train", *arguments])
        assert (options.recipe, options.search, options.overrides) == ("r.yaml", 3, ["a=1"])


def test_test_figures_have_their_place_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = plain_recipe(tmp_path / "out", max_steps=1, report_to="tensorboard", eval_strategy="no")
    del values["training"]["eval_steps"]
    values["data"]["test"] = {"held": values["data"].pop("evaluation")}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert main(["train", str(path)]) == 0
    (events,) = {each.parent for each in (tmp_path / "out" / "runs").rglob("events*")}
    found = EventAccumulator(str(events)).Reload()
    assert "test/held_loss" in found.Tags()["scalars"]
    assert "loss" in json.loads((tmp_path / "out" / "run.json").read_text())["figures"]["held"]
