"""`accelerate launch` with the shipped DDP configuration: two processes, of which one has no picture and no sound.

This module is also the program of the processes (gloo, CPU).
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import SequentialSampler

from modeling_mm.training import MMTrainer
from tests.fakes.quick_python import QUICK_PYTHON
from tests.fakes.ranks import RANKS, ROOT, quiet_environment
from tests.fakes.tiny import difference
from tests.fakes.tiny_chats import CHATS, chat_model, losses, mm_trainer, weights

pytest.importorskip("accelerate")
MEDIA = ("pixel_values", "input_features")
TIMEOUT = 300  # seconds for the launch
STEPS = 2
TALK = [CHATS[2], CHATS[5], CHATS[7]]  # neither picture nor sound
SHOWN = [CHATS[0], CHATS[3], CHATS[4]]  # a picture, a sound, both
ROWS = (TALK + SHOWN) * STEPS  # in batches of three: the first process gets `TALK`, the second `SHOWN`


class InOrder(MMTrainer):
    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)


def trained(folder: Path, size: int, rows=ROWS) -> tuple[MMTrainer, list[list[bool]]]:
    """A trainer after its steps, and for each of its batches whether it had pictures and sounds."""
    seen: list[list[bool]] = []
    model = chat_model()
    model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append([name in kwargs for name in MEDIA]), with_kwargs=True
    )
    options = {"per_device_train_batch_size": size, "max_steps": STEPS}
    run = mm_trainer(model, folder, train=rows, trainer_class=InOrder, **options)
    run.train()
    return run, seen


def program(folder: Path) -> None:
    run, seen = trained(folder / "run", len(TALK))
    rank = run.args.process_index
    torch.save(run.accelerator.unwrap_model(run.model).state_dict(), folder / f"weights-{rank}.pt")
    found = {"processes": run.args.world_size, "seen": seen, "losses": losses(run)}
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))


@pytest.mark.timeout(TIMEOUT + 60)
def test_a_process_without_media_neither_hangs_nor_changes_what_is_learned(tmp_path):
    command = [QUICK_PYTHON, "-W", "ignore", "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", "configuration/accelerate/ddp.yaml", "--num_processes", str(RANKS)]
    command += [str(Path(__file__).relative_to(ROOT)), str(tmp_path)]
    env = quiet_environment() | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(RANKS)]
    assert [found["processes"] for found in ranks] == [RANKS] * RANKS
    assert [found["seen"] for found in ranks] == [[[False, False]] * STEPS, [[True, True]] * STEPS]

    alone, _ = trained(tmp_path / "alone", len(TALK + SHOWN))
    assert ranks[0]["losses"] == pytest.approx(losses(alone), abs=1e-4)
    one, other = (torch.load(tmp_path / f"weights-{rank}.pt", weights_only=True) for rank in range(RANKS))
    for name, tensor in weights(alone.model).items():
        assert difference(one[name], other[name]) == 0.0, name
        assert difference(one[name], tensor) <= 1e-4, name
    text_only, _ = trained(tmp_path / "text", len(TALK), TALK * STEPS)
    assert abs(losses(text_only)[0] - ranks[0]["losses"][0]) > 1e-2, "the pictures' share of the loss can be told"


if __name__ == "__main__":
    program(Path(sys.argv[1]))
