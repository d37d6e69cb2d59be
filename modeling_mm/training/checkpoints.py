# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Which checkpoint of a `Trainer` a run goes on from, when it may have been killed while it wrote one."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from torch import distributed
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """
    The newest checkpoint in a folder that was written to its end; `None` where there is none.

    `Trainer(...).train(resume_from_checkpoint=True)` takes the newest, whole or not, and fails on one that is not.

    ```python
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(trainer.args.output_dir))
    ```
    """
    name = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = [(int(match[1]), path) for path in Path(folder).glob("*") if (match := name.fullmatch(path.name))]
    for _, path in sorted(found, reverse=True):
        if is_whole(path):
            return str(path)
        logger.warning(f"{path} was not written to its end; the checkpoint before it is taken instead.")
    return None


class NoteProcesses(TrainerCallback, ExportableState):
    """
    Writes into each checkpoint's state how many processes there were. `MMTrainer` has it; give it to a stock `Trainer`
    whose runs go on with other numbers of processes.
    """

    processes = 1

    def on_train_begin(self, args, state, control, **kwargs):
        self.processes = args.world_size
        # A checkpoint from before this callback has no place for it, which `Trainer` needs when it saves.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"processes": self.processes}}


def is_whole(checkpoint: Path) -> bool:
    """
    Whether all processes have written their last, each what it draws at random and the first then the trainer's state.

    The folder is shared by all of them. Checkpoints without random states (`save_only_model`) have but the first's.
    """
    try:
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    if not any(checkpoint.glob("rng_state*.pth")):
        return True
    processes = processes_of(checkpoint, state)
    names = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    return all(zipfile.is_zipfile(checkpoint / name) for name in names)  # its table of contents comes last


def processes_of(checkpoint: Path, state: dict[str, Any]) -> int:
    """How many processes wrote a checkpoint: as noted, or else as the files' names tell, and no fewer than run now."""
    noted = state.get("stateful_callbacks", {}).get(NoteProcesses.__name__)
    if noted is not None:
        return noted["attributes"]["processes"]
    if (checkpoint / "rng_state.pth").exists():
        return 1
    now = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    return max(2, now, len(list(checkpoint.glob("rng_state_*.pth"))))
