# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The checkpoint from which a run resumes that may have been killed while it wrote one."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from torch import distributed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .callbacks import ProcessCountCallback

logger = logging.get_logger(__name__)


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """
    Return the newest checkpoint of a folder that is complete, or `None`.

    `Trainer(...).train(resume_from_checkpoint=True)` takes the newest, and fails if it is incomplete.

    Example:
        >>> trainer.train(resume_from_checkpoint=last_whole_checkpoint(trainer.args.output_dir))
    """
    name = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = [(int(match[1]), path) for path in Path(folder).glob("*") if (match := name.fullmatch(path.name))]
    for _, path in sorted(found, reverse=True):
        if is_whole(path):
            return str(path)
        logger.warning(f"{path} is incomplete. The checkpoint before it is used instead.")
    return None


def is_whole(checkpoint: Path) -> bool:
    """
    Return if all processes have written their last file, in a folder that they share.

    The last file of a process is its random state; the first process then writes the state of the trainer. Checkpoints
    without random states (`save_only_model`) have only the latter.
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
    """Return the number of processes that wrote a checkpoint, from its state or else from the names of its files."""
    noted = state.get("stateful_callbacks", {}).get(ProcessCountCallback.__name__)
    if noted is not None:
        return noted["attributes"]["processes"]
    if (checkpoint / "rng_state.pth").exists():
        return 1
    now = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    return max(2, now, len(list(checkpoint.glob("rng_state_*.pth"))))
