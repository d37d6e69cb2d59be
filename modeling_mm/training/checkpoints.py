# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Which checkpoint of a `Trainer` a run goes on from, when it may have been killed while it wrote one."""

import json
import re
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
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


def is_whole(checkpoint: Path) -> bool:
    """Whether the trainer's state is there, which is written last, and to its end."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True
