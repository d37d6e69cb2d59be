# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The parts of a joint model, what of them is frozen, and from which step on they learn."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from transformers import TrainerCallback

from ..utils.typed import nearest

NamedParameters = list[tuple[str, nn.Parameter]]

# What the names of a part's parameters contain, whatever wraps the model (PEFT, DDP); looked for in this order. All
# that is left, the head included, is text.
MARKS = {
    "vision": ("vision_tower.",),
    "audio": ("audio_tower.",),
    "connectors": ("vision_connector.", "audio_connector."),
    "cross_attention": (".cross_blocks.",),
}
PARTS = ("text", "cross_attention", "connectors", "vision", "audio")


def part_of(name: str) -> str:
    """The part that a parameter belongs to, by its name in the model."""
    return next((part for part, marks in MARKS.items() if any(mark in name for mark in marks)), "text")


def parts_of(model: nn.Module) -> dict[str, NamedParameters]:
    """
    The parameters of a model by part: `text` (the decoder and the head), `cross_attention`, `connectors`, `vision` and
    `audio` (the encoders).

    Returns:
        all five, in this order; a part that the model lacks is an empty list. A tied parameter comes once.
    """
    parts: dict[str, NamedParameters] = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        parts[part_of(name)].append((name, parameter))
    return parts


class ThawSchedule(TrainerCallback):
    """
    Keeps parts of the model frozen until a step, and lets them learn from there on.

    It belongs to `MMTrainer`, whose optimizer holds the frozen parameters from the start, with the learning rate of
    their part, and which averages their gradients over processes. What is frozen follows from the step alone, so that
    training goes on from a checkpoint as it would have gone on without the interruption.

    Args:
        steps: for each part the number of optimizer steps after which it learns: with `{"vision": 500}` the first
            step that changes the vision encoder is the 501st. 0 means from the start.

    Raises:
        ValueError: for a part that there is none of, with the nearest, and for a step below 0.
    """

    def __init__(self, steps: Mapping[str, int]):
        for part, step in steps.items():
            if part not in PARTS:
                near = nearest(str(part), PARTS)
                hint = f" Did you mean {near!r}?" if near else ""
                raise ValueError(f"There is no part {part!r} to thaw.{hint} Parts: {', '.join(PARTS)}.")
            if isinstance(step, bool) or not isinstance(step, int) or step < 0:
                raise ValueError(f"{part} must thaw at a whole number of steps, 0 or more, got {step!r}.")
        self.steps = dict(steps)

    def apply(self, model: nn.Module, step: int) -> None:
        """
        Freezes what the schedule has frozen after `step` optimizer steps, and thaws what it has thawed.

        Raises:
            ValueError: where a part would thaw that the model lacks, or that PEFT would not save.
        """
        parts = parts_of(model)
        for part, thaws_at in self.steps.items():
            check_part(model, part, parts[part])
            for _, parameter in parts[part]:
                parameter.requires_grad_(step >= thaws_at)

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """All parameters of the parts that it names, frozen or not."""
        parts = parts_of(model)
        return [parameter for part in self.steps for _, parameter in parts[part]]

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        """
        Raises:
            ValueError: where the optimizer does not hold what is to thaw, and under DeepSpeed.
        """
        if args.deepspeed is not None:
            raise ValueError(
                "ThawSchedule does not work under DeepSpeed, which lays out the optimizer's memory for what is "
                "trainable when training starts. Train in two runs, the second with the part thawed, or use FSDP."
            )
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if any(id(parameter) not in held for parameter in self.parameters(model)):
            raise ValueError(
                f"The optimizer does not hold the parameters that are to thaw ({', '.join(self.steps)}), so they "
                "would never learn. Use MMTrainer, which puts them there, or put them into the optimizer you pass."
            )
        self.apply(model, state.global_step)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step in self.steps.values():
            self.apply(model, state.global_step)


def check_part(model: nn.Module, part: str, parameters: NamedParameters) -> None:
    """
    Raises:
        ValueError: for a part that the model lacks, or that PEFT would not save.
    """
    if not parameters:
        raise ValueError(f"{part} cannot thaw: {type(model).__name__} has no such part.")
    if hasattr(model, "peft_config"):
        raise ValueError(
            f"{part} cannot thaw: this is a PEFT model, which saves the adapter alone, so that what else is learned "
            "would be lost. Train the part through the adapter's options, or without an adapter."
        )


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """
    Replaces each gradient by its mean over all processes; for parameters that DDP does not average itself, because
    they were frozen when it wrapped the model. Every process must call it with the same parameters.
    """
    size = torch.distributed.get_world_size()
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= size


def frozen_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if not parameter.requires_grad]
