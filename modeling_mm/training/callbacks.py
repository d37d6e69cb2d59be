# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Callbacks for the stock `Trainer` and for `MMTrainer`."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..utils.spelling import suggestion
from .checksums import write_checksums
from .freezing import part_names, parts_of

# Figures of an evaluation that say how long it took.
SPEED = ("runtime", "samples_per_second", "steps_per_second", "preparation_time")


class LossProgressCallback(ProgressCallback):
    """Progress bar that shows the loss, in place of a dictionary printed at every logging step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Write one line for the evaluation above the bar."""
        super().on_evaluate(args, state, control, **kwargs)
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(f"step {state.global_step}: {describe(metrics or {})}")

    @classmethod
    def take_over(cls, trainer: Trainer) -> None:
        """Replace the progress bar or printer of a trainer; where no terminal shows a bar, by lines."""
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(cls if sys.stderr.isatty() and not trainer.args.disable_tqdm else LossLinesCallback)


class LossLinesCallback(TrainerCallback):
    """One line at every logging step and evaluation, for files and pipes, which a progress bar would fill."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and "loss" in (logs or {}):
            self.write(f"step {state.global_step} of {state.max_steps}: loss {float(logs['loss']):.3f}")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.write(f"step {state.global_step}: {describe(metrics or {})}")

    def write(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def describe(metrics: Mapping[str, float]) -> str:
    """Return the figures of an evaluation as text, without those of its speed."""
    shown = {name: value for name, value in metrics.items() if not name.endswith((*SPEED, "epoch"))}
    return ", ".join(f"{name.removeprefix('eval_')} {value:.3f}" for name, value in shown.items())


class SetEpochCallback(TrainerCallback):
    """
    Calls `set_epoch` of the training dataset when an epoch begins.

    With several processes the stock `Trainer` passes the epoch to the sampler only, so that augmentation of a dataset
    at random access would be the same in every epoch.
    """

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        dataset = getattr(kwargs.get("train_dataloader"), "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))


class TimerCallback(TrainerCallback, ExportableState):
    """Seconds of training. Checkpoints keep them, so that a resumed run counts on."""

    def __init__(self, seconds: float = 0.0):
        self.before = seconds
        self.start: float | None = None

    @property
    def seconds(self) -> float:
        return self.before + (time.perf_counter() - self.start if self.start is not None else 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before, self.start = self.seconds, None

    def state(self) -> dict[str, Any]:
        return {"args": {"seconds": self.seconds}, "attributes": {}}


class ProcessCountCallback(TrainerCallback, ExportableState):
    """
    Number of processes, written into the state of each checkpoint.

    [`last_whole_checkpoint`] reads it. `MMTrainer` adds it by itself; add it to a stock `Trainer` if its runs may
    resume with another number of processes.
    """

    processes = 1

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.processes = args.world_size
        # The state of a checkpoint without this callback lacks its entry, which `Trainer` needs when it saves.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"processes": self.processes}}


class ChecksumCallback(TrainerCallback):
    """
    Writes sizes and checksums of a checkpoint's files beside them.

    [`last_whole_checkpoint`] compares them. `MMTrainer` adds it by itself; a stock `Trainer` may have it too.
    """

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()  # other processes write into the same folder
        if args.should_save:
            write_checksums(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")


class ThawCallback(TrainerCallback):
    """
    Keeps parts of the model frozen until a step.

    It needs `MMTrainer`, whose optimizer holds the frozen parameters from the start, with the learning rate of their
    part, and which averages their gradients over processes. The step alone decides which parts are frozen, so that a
    resumed run equals an unbroken one.

    Args:
        steps: number of optimizer steps after which each part learns. With `{"vision": 500}` the 501st step is the
            first that changes the vision encoder. 0 means from the start.

    Raises:
        ValueError: if a part is unknown, with the nearest name, or a step is negative.

    Example:
        >>> MMTrainer(model, arguments, callbacks=[ThawCallback({"vision": 500})]).train()
    """

    def __init__(self, steps: Mapping[str, int]):
        for part, step in steps.items():
            if part not in (known := part_names()):
                hint = suggestion(str(part), known)
                raise ValueError(f"Cannot thaw {part!r}: no such part.{hint} Parts: {', '.join(known)}.")
            if isinstance(step, bool) or not isinstance(step, int) or step < 0:
                raise ValueError(f"{part} must thaw at a whole number of steps, 0 or more, got {step!r}.")
        self.steps = dict(steps)

    def apply(self, model: nn.Module, step: int) -> None:
        """Freeze and thaw the parts as they are after `step` optimizer steps."""
        parts = parts_of(model)
        for part, first_step in self.steps.items():
            if not parts[part]:
                raise ValueError(f"{part} cannot thaw: {type(model).__name__} has no such part.")
            if hasattr(model, "peft_config"):
                raise ValueError(
                    f"{part} cannot thaw: PEFT saves the adapter alone, so that the trained part would be lost. Train "
                    "the part through the options of the adapter, or without an adapter."
                )
            for _, parameter in parts[part]:
                parameter.requires_grad_(step >= first_step)

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return all parameters of the parts in `steps`, frozen or not."""
        parts = parts_of(model)
        return [parameter for part in self.steps for _, parameter in parts[part]]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the optimizer holds the parameters to thaw, and apply the schedule."""
        if args.deepspeed is not None:
            raise ValueError(
                "ThawCallback does not work with DeepSpeed, which allocates the optimizer's memory for the parameters "
                "that are trainable when training starts. Train in two runs, the second with the part thawed, or use "
                "FSDP."
            )
        held = {id(parameter) for group in kwargs["optimizer"].param_groups for parameter in group["params"]}
        if any(id(parameter) not in held for parameter in self.parameters(kwargs["model"])):
            raise ValueError(
                f"The optimizer does not hold the parameters to thaw ({', '.join(self.steps)}), so that they would "
                "never learn. Use MMTrainer, which adds them, or add them to the optimizer that you pass."
            )
        self.apply(kwargs["model"], state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps.values():
            self.apply(kwargs["model"], state.global_step)
