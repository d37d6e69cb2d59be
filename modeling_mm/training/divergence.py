# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Training that diverged: which examples were in the batch, and what the error says."""

import math
import numbers
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.chat_row import ChatRow, media_parts, media_source, turn_text
from ..ranks import num_processes

NAMES = "example_names"  # key of a batch: the names of its rows, (B, NAME_BYTES) uint8, as devices hold no text
NAME_BYTES = 96
MOST_EXAMPLES = 16
# GradScaler halves its scale at each step whose fp16 gradients overflow, which is normal while it is large.
MIN_LOSS_SCALE = 1e-4


class NamingCollator:
    """A collator whose batches also name their examples, for messages."""

    def __init__(self, collator: Any):
        self.collator = collator

    def __call__(self, samples: Sequence[Any]) -> Any:
        batch = self.collator(samples)
        if isinstance(batch, MutableMapping):
            batch[NAMES] = to_bytes([example_name(sample) for sample in samples])
        return batch


def example_name(sample: Any) -> str:
    """Return the id of an example, or else its first question and the names of its files."""
    name = sample.get("id") if isinstance(sample, Mapping) else getattr(sample, "id", None)
    if name is not None:
        return str(name)
    if not isinstance(sample, ChatRow):
        return f"{type(sample).__name__} without id"
    sources = [media_source(part) for part in media_parts(sample.messages)]
    files = [Path(source).name for source in sources if isinstance(source, str)]
    question = next((turn_text(turn) for turn in sample.messages if turn["role"] == "user"), "")
    return " ".join([repr(question), *files])


def to_bytes(names: Sequence[str]) -> torch.Tensor:
    """Return names as bytes, cut or padded with zeros, (B, NAME_BYTES) uint8."""
    rows = [name.encode()[:NAME_BYTES].ljust(NAME_BYTES, b"\0") for name in names]
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(names), NAME_BYTES)


def from_bytes(names: torch.Tensor) -> list[str]:
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in names.tolist()]


def in_any_process(is_true: bool, device: torch.device) -> bool:
    """Return if it is true in any of the processes that train together, all of which must ask."""
    if num_processes() == 1:
        return is_true
    flag = torch.tensor(float(is_true), device=device)
    torch.distributed.all_reduce(flag)
    return bool(flag > 0)


def diverged(
    step: int, losses: Sequence[float], norm: float, examples: Sequence[str], checkpoint: str | None
) -> FloatingPointError:
    """Return the error of a step whose loss or gradients are not finite."""
    broken = [loss for loss in losses if not math.isfinite(loss)]
    what = f"the loss is {broken[0]}" if broken else f"the norm of the gradients is {norm}"
    names = ", ".join(examples[:MOST_EXAMPLES]) + (
        f" and {len(examples) - MOST_EXAMPLES} more" if len(examples) > MOST_EXAMPLES else ""
    )
    kept = f"The last good checkpoint is {checkpoint}." if checkpoint else "No checkpoint was saved before."
    return FloatingPointError(
        f"Training diverged at step {step}: {what}. The weights were not changed by it. Examples of the batch: "
        f"{names or 'unknown'}. {kept} Lower the learning rate, or look at these examples."
    )


def check_figures(figures: Mapping[str, Any], step: int) -> None:
    """Raise a FloatingPointError if a figure of an evaluation is NaN or infinite, with its name."""
    broken = {k: v for k, v in figures.items() if isinstance(v, numbers.Real) and not math.isfinite(v)}
    if broken:
        listed = ", ".join(f"{name} is {value}" for name, value in broken.items())
        raise FloatingPointError(
            f"Evaluation after step {step} gives no figure: {listed}. The model has diverged, or the evaluation data "
            "has nothing to measure."
        )
