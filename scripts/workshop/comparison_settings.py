# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Settings of the comparison, in a module that costs nothing to import."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """
    Settings that all systems share.

    Args:
        steps: the number of optimizer steps.
        batch_size: captions in a step.
        text_learning_rate: the peak learning rate of the pretrained decoder.
        new_learning_rate: the peak learning rate of all new weights.
        warmup: the fraction of the steps in which the rates rise. After it they fall as a cosine to zero.
        weight_decay: the decay of matrices; vectors have none.
        evaluations: how often the held-out loss is measured, at equal distances, the last time at the end.
        max_new_tokens: the length of a generated caption.
    """

    steps: int = 400
    batch_size: int = 64
    text_learning_rate: float = 2e-3
    new_learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    evaluations: int = 4
    max_new_tokens: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.evaluations <= self.steps:
            raise ValueError(f"evaluations must be from 1 to steps ({self.steps}), got {self.evaluations}.")
