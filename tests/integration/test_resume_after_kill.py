"""A run that is killed with -9, between its saves or in the middle of one, ends with the weights of one that was not.

This module is also the program that is killed: it forks the processes of each run, so that torch is imported once. The
model is made from its config, so that its checkpoints have a ViT under the names of published ones.
"""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch import distributed
from transformers import (
    AutoModelForImageTextToText,
    Dinov2Config,
    Dinov2Model,
    Trainer,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from modeling_mm import MMForConditionalGeneration
from modeling_mm.data import ChatDataset
from modeling_mm.recipes import run
from modeling_mm.training import ChatCollator, ProcessCountCallback, last_whole_checkpoint
from tests.fakes.quick_python import QUICK_PYTHON
from tests.fakes.ranks import free_port, quiet_environment, told
from tests.fakes.recipe_runs import recipe
from tests.fakes.tiny import difference, joined, open_gates, seeded, wav2vec2
from tests.fakes.tiny_chats import CHATS, DEFAULTS, chat_model, mm_trainer, processor

TIMEOUT = 900  # seconds for all the runs; 225 were measured beside other work for those of one process
STEPS = 6
SAVES = "checkpoint-4"  # the save in whose middle it is killed
FIELDS = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 3,  # saves do not divide an epoch
    "save_strategy": "steps",
    "save_steps": 2,
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
}


# ---- The program ----------------------------------------------------------------------------------------------------


def fresh_model() -> MMForConditionalGeneration:
    config = chat_model().config
    config.text_config.resid_pdrop = 0.1  # what is drawn at random must go on too
    return seeded(lambda: open_gates(MMForConditionalGeneration(config)))


def train_stock(folder: Path) -> None:
    known = {name: value for name, value in DEFAULTS.items() if not name.startswith("generation_")}
    arguments = TrainingArguments(str(folder), **{**known, **FIELDS})
    set_seed(0)
    trainer = Trainer(fresh_model(), arguments, ChatCollator(processor()), ChatDataset(CHATS))
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder))
    trainer.save_model(str(folder))


def train_mm(folder: Path) -> None:
    trainer = mm_trainer(fresh_model(), folder, **FIELDS)
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder) is not None)
    trainer.save_model(str(folder))


def train_recipe(folder: Path) -> None:
    run(recipe(folder, max_steps=STEPS))  # it evaluates and saves every two steps, and takes up the best at the end


TRANSFORMERS = Version(transformers.__version__)

# What trains, and by how many processes.
RUNS = {
    "stock": (train_stock, 1),
    "mm": (train_mm, 1),
    "recipe": (train_recipe, 1),
    "stock_of_two": (train_stock, 2),
    "mm_of_two": (train_mm, 2),
}
# 5.17 cannot read an optimizer again where several processes train on the CPU.
GO_ON_TOGETHER = Version("5.18.0.dev0") <= TRANSFORMERS
CHOSEN = [name for name, (_, ranks) in RUNS.items() if ranks == 1 or GO_ON_TOGETHER]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(path: Path) -> None:
    """In the middle of writing a file."""
    os.truncate(path, path.stat().st_size // 2)
    die()


def die_between_saves() -> None:
    stock = Trainer.training_step

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 3:
            die()
        return stock(self, *args, **kwargs)

    Trainer.training_step = training_step


def die_in_the_weights() -> None:
    stock = Trainer.save_model

    def save_model(self, output_dir=None, *args, **kwargs):
        stock(self, output_dir, *args, **kwargs)
        if str(output_dir).endswith(SAVES):
            die_after(Path(output_dir) / "model.safetensors")

    Trainer.save_model = save_model


def die_before_the_optimizer() -> None:
    stock = Trainer._save_optimizer_and_scheduler

    def save(self, output_dir):
        if str(output_dir).endswith(SAVES):
            die()
        stock(self, output_dir)

    Trainer._save_optimizer_and_scheduler = save


def die_in_the_state() -> None:
    stock = TrainerState.save_to_json

    def save_to_json(self, json_path):
        stock(self, json_path)
        if SAVES in str(json_path):
            die_after(Path(json_path))

    TrainerState.save_to_json = save_to_json


def die_before_the_second_is_done() -> None:
    """The second process before it writes what it draws at random, the first after the last that it writes."""
    random_state, state = Trainer._save_rng_state, TrainerState.save_to_json

    def save_rng_state(self, output_dir):
        if self.args.process_index == 1 and output_dir.endswith(SAVES):
            die()
        random_state(self, output_dir)

    def save_to_json(self, json_path):
        state(self, json_path)
        if SAVES in str(json_path):
            die()

    Trainer._save_rng_state, TrainerState.save_to_json = save_rng_state, save_to_json


KILLS = {
    "between_saves": die_between_saves,
    "in_the_weights": die_in_the_weights,
    "before_the_optimizer": die_before_the_optimizer,
    "in_the_state": die_in_the_state,
    "before_the_second_is_done": die_before_the_second_is_done,
}
CASES = [("stock", "in_the_weights"), ("recipe", "between_saves"), ("mm_of_two", "before_the_second_is_done")]
CASES += [("mm", kill) for kill in ("between_saves", "before_the_optimizer", "in_the_state")]
SLOW = [("stock", kill) for kill in ("between_saves", "before_the_optimizer", "in_the_state")]
SLOW += [("mm", "in_the_weights"), ("recipe", "before_the_optimizer"), ("mm_of_two", "between_saves")]
SLOW += [("stock_of_two", "before_the_second_is_done")]


def in_forks(ranks: int, *work) -> set[int]:
    """Return how processes that share the work ended: 0, 1 for an error, or minus a signal."""
    port, children = free_port(), []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            try:
                os.environ.update(told(rank, port) if ranks > 1 else {})
                for part in work:
                    part()
            except BaseException as error:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                os._exit(1)
            os._exit(0)
        children.append(child)
    return {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}


def program(folder: Path, *chosen: str) -> None:
    """Run the chosen cases, each `RUN/KILL`; `RUN/whole` asks for no more than the run that is not killed."""
    torch.set_num_threads(1)
    kills: dict[str, list[str]] = {}
    for case in chosen:
        name, kill = case.split("/")
        kills.setdefault(name, []).append(kill)
    for name in kills:
        train, ranks = RUNS[name]
        assert in_forks(ranks, partial(train, folder / name / "whole")) == {0}
        for kill in kills[name]:
            if kill == "whole":
                continue
            again = partial(train, folder / name / kill)
            assert -signal.SIGKILL in in_forks(ranks, KILLS[kill], again)  # another may see that it is gone first
            assert in_forks(ranks, again) == {0}


# ---- The tests ------------------------------------------------------------------------------------------------------


def needs(trainer: str) -> None:
    if trainer not in CHOSEN:
        pytest.skip("several processes on the CPU resume from a checkpoint since transformers 5.18")


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """The folder of the runs that the chosen tests need."""
    items = [item for item in request.session.items if item.path == request.path and "runs" in item.fixturenames]
    cases = {(item.callspec.params["trainer"], item.callspec.params.get("kill", "whole")) for item in items}
    chosen = sorted(f"{name}/{kill}" for name, kill in cases if name in CHOSEN)
    folder = tmp_path_factory.mktemp("killed")
    environment = quiet_environment()
    command = [QUICK_PYTHON, "-W", "ignore", __file__, str(folder), *chosen]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(folder).state_dict()


@pytest.mark.timeout(TIMEOUT + 60)
@pytest.mark.parametrize(
    ("trainer", "kill"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(runs, trainer, kill):
    needs(trainer)
    whole, resumed = state_of(runs / trainer / "whole"), state_of(runs / trainer / kill)
    assert whole.keys() == resumed.keys() and any("vision_tower" in name for name in whole)
    different = {name: difference(resumed[name], weight) for name, weight in whole.items()}
    assert max(different.values()) == 0.0, {name: value for name, value in different.items() if value}


@pytest.mark.timeout(TIMEOUT + 60)
@pytest.mark.parametrize("trainer", ["stock", "mm", "mm_of_two"])
def test_training_has_moved_the_encoder_whose_names_differ(runs, trainer):
    needs(trainer)
    start = fresh_model().state_dict()
    assert any(
        difference(weight, start[name]) > 1e-3
        for name, weight in state_of(runs / trainer / "whole").items()
        if "vision_tower.layers" in name
    )


# ---- Which checkpoint -----------------------------------------------------------------------------------------------


def checkpoint(folder: Path, step: int, state: str | None) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    save_file({"weight": torch.zeros(2)}, path / "model.safetensors")
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_the_last_checkpoint_that_was_written_to_its_end(tmp_path):
    assert last_whole_checkpoint(tmp_path) is None and last_whole_checkpoint(tmp_path / "nowhere") is None
    checkpoint(tmp_path, 9, "{}")
    ten = checkpoint(tmp_path, 10, '{"global_step": 10}')
    assert last_whole_checkpoint(tmp_path) == str(ten), "by number, not by letter"
    checkpoint(tmp_path, 11, '{"global_st')
    checkpoint(tmp_path, 12, None)
    checkpoint(tmp_path / "checkpoint-12", 99, "{}")
    (tmp_path / "checkpoint-best").mkdir()
    assert last_whole_checkpoint(str(tmp_path)) == str(ten)


def random_states(path: Path, *ranks: int | None) -> None:
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({}, path / name)
    for rank in ranks:
        torch.save({"cpu": torch.zeros(2)}, path / ("rng_state.pth" if rank is None else f"rng_state_{rank}.pth"))


def noted(processes: int) -> str:
    note = ProcessCountCallback()
    note.processes = processes
    return json.dumps({"stateful_callbacks": {"ProcessCountCallback": note.state()}})


@pytest.mark.parametrize(
    "state, written, whole",
    [
        ("{}", [None], True),
        ("{}", [0], False),
        ("{}", [0, 1], True),
        ("{}", [0, 2], False),
        (noted(1), [None], True),
        (noted(1), [0], False),
        (noted(2), [0], False),
        (noted(2), [None, 0], False),
        (noted(2), [0, 1], True),
        (noted(4), [0, 1, 2], False),
    ],
)
def test_every_process_has_written_what_it_draws_at_random(tmp_path, state, written, whole):
    """As many as there were when it was written, which need not be as many as there are."""
    path = checkpoint(tmp_path, 2, state)
    random_states(path, *written)
    assert (last_whole_checkpoint(tmp_path) == str(path)) is whole


def test_processes_that_nobody_noted_are_no_fewer_than_now(tmp_path, monkeypatch):
    path = checkpoint(tmp_path, 2, "{}")
    random_states(path, 0, 1)
    assert last_whole_checkpoint(tmp_path) == str(path)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
    assert last_whole_checkpoint(tmp_path) is None
    random_states(path, 2)
    assert last_whole_checkpoint(tmp_path) == str(path)


def test_a_random_state_that_was_not_written_to_its_end(tmp_path):
    path = checkpoint(tmp_path, 2, noted(2))
    random_states(path, 0, 1)
    torn = path / "rng_state_1.pth"
    os.truncate(torn, torn.stat().st_size // 2)
    assert last_whole_checkpoint(tmp_path) is None


def test_a_run_notes_its_processes_also_after_a_checkpoint_that_did_not(tmp_path):
    def state() -> dict:
        return json.loads((max(tmp_path.glob("checkpoint-*")) / "trainer_state.json").read_text())

    trainer = mm_trainer(chat_model(), tmp_path, save_strategy="steps", save_steps=1)
    trainer.train()
    known = state()
    assert known["stateful_callbacks"].pop("ProcessCountCallback")["attributes"] == {"processes": 1}
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text(json.dumps(known))
    (tmp_path / "checkpoint-1" / "checksums.json").unlink()
    mm_trainer(chat_model(), tmp_path, save_strategy="steps", save_steps=1, max_steps=2).train(True)
    assert state()["global_step"] == 2 and "ProcessCountCallback" in state()["stateful_callbacks"]


def test_without_a_whole_checkpoint_nothing_is_resumed(tmp_path):
    checkpoint(tmp_path, 2, None)
    with pytest.raises(ValueError, match=r"holds no complete checkpoint\. Train without"):
        mm_trainer(chat_model(), tmp_path).train(resume_from_checkpoint=True)


def swiglu() -> Dinov2Model:
    """Its published weights hold two matrices in one."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    return Dinov2Model(Dinov2Config(**sizes, image_size=16, patch_size=8, use_swiglu_ffn=True))


ENCODERS = {"vit": {}, "dinov2": {"vision": swiglu}, "wav2vec2": {"audio": wav2vec2}}
# Those whose published names are other than the module's; DINOv2's were the same before.
RENAMED = ["vit", "dinov2"] if Version("5.23.0.dev0") <= TRANSFORMERS else ["vit"]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_weights_under_published_names_are_loaded(encoder, tmp_path):
    """What `Trainer` does with a checkpoint: `load_state_dict` with what the file holds."""
    config = joined(**{part: build() for part, build in ENCODERS[encoder].items()}).config
    model, other = (seeded(lambda: MMForConditionalGeneration(config), seed) for seed in (0, 1))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    if encoder in RENAMED:
        assert set(saved) - set(model.state_dict()), "published names are other than the module's"
    result = other.load_state_dict(saved, strict=False)
    assert result.unexpected_keys == [] and result.missing_keys == ["lm_head.weight"], "tied"
    for name, weight in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name


def test_weights_that_no_part_has_are_still_refused():
    model = joined()
    with pytest.raises(RuntimeError, match=r"Unexpected key.*vision_tower.nonsense"):
        model.load_state_dict(model.state_dict() | {"model.vision_tower.nonsense": torch.zeros(1)})
    without = {name: weight for name, weight in model.state_dict().items() if "vision_tower.layers.0" not in name}
    with pytest.raises(RuntimeError, match=r"Missing key.*vision_tower.layers.0"):
        model.load_state_dict(without)


if __name__ == "__main__":
    program(Path(sys.argv[1]), *sys.argv[2:])
