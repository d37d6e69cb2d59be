# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The checkpoint from which a run resumes that may have been killed while it wrote one, or whose files are damaged."""

import json
import re
from pathlib import Path
from typing import Any

from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..ranks import num_processes
from .callbacks import ProcessCountCallback
from .checksums import damage

logger = logging.get_logger(__name__)

# Files of weights: whole models, shards, adapters, also in folders of their names; folders of FSDP and of DeepSpeed.
WEIGHTS = ("*.safetensors", "*/adapter_model.safetensors", "pytorch_model*", "adapter_model.bin", "global_step*")


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """
    Return the newest checkpoint of a folder that is complete and undamaged, or `None`.

    `Trainer(...).train(resume_from_checkpoint=True)` takes the newest, and fails, or learns something else, if it is
    incomplete or damaged. A line says which checkpoints are passed over and why.

    Example:
        >>> trainer.train(resume_from_checkpoint=last_whole_checkpoint(trainer.args.output_dir))
    """
    name = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    found = [(int(match[1]), path) for path in Path(folder).glob("*") if (match := name.fullmatch(path.name))]
    for _, path in sorted(found, reverse=True):
        problem = problem_of(path)
        if problem is None:
            return str(path)
        logger.warning(f"{path} is not used: {problem}. The checkpoint before it is used instead.")
    if found:
        logger.warning(f"No checkpoint in {folder} is whole. Training starts from the beginning.")
    return None


def problem_of(checkpoint: Path) -> str | None:
    """
    Return what is missing or damaged in a checkpoint, or None.

    Every process must have written its last file, in a folder that they share: its random state; the first process
    then writes the state of the trainer. Checkpoints without random states and optimizer (`save_only_model`) have only
    the latter.
    """
    try:
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        processes = processes_of(checkpoint, state)
    except FileNotFoundError:
        return f"incomplete, as {TRAINER_STATE_NAME} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{TRAINER_STATE_NAME}: damaged"
    if not any(holds(checkpoint, pattern) for pattern in WEIGHTS):
        return "incomplete, as its weights are missing"
    is_deepspeed = any(checkpoint.glob("global_step*"))  # which keeps optimizer and scheduler there
    missing = [pattern for pattern in ("optimizer*", SCHEDULER_NAME) if not holds(checkpoint, pattern)]
    has_random_states = any(checkpoint.glob("rng_state*.pth"))
    if not is_deepspeed and missing and (has_random_states or len(missing) == 1):
        return f"incomplete, as {missing[0].replace('*', '.pt')} is missing"
    if has_random_states or not missing:
        names = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
        if lost := [name for name in names if not (checkpoint / name).is_file()]:
            return f"incomplete, as {lost[0]} is missing"
    return damage(checkpoint)


def holds(checkpoint: Path, pattern: str) -> bool:
    """Return if there is such a file, or such a folder of sharded states, whose name has no suffix."""
    return any(path.is_file() or not path.suffix for path in checkpoint.glob(pattern))


def processes_of(checkpoint: Path, state: dict[str, Any]) -> int:
    """Return the number of processes that wrote a checkpoint, from its state or else from the names of its files."""
    noted = state.get("stateful_callbacks", {}).get(ProcessCountCallback.__name__)
    if noted is not None:
        return noted["attributes"]["processes"]
    if (checkpoint / "rng_state.pth").exists():
        return 1
    return max(2, num_processes(), len(list(checkpoint.glob("rng_state_*.pth"))))
