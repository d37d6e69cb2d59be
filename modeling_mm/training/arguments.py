# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The stock `TrainingArguments` with the fields of `MMTrainer`."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..evaluation.metrics import METRICS, check_metrics
from .freezing import ENCODERS

# The field of each part's learning rate.
ENCODER_RATE = "encoder_learning_rate"
RATE_OF = {
    "text": "text_learning_rate",
    "cross_attention": "cross_attention_learning_rate",
    "connectors": "connector_learning_rate",
    **dict.fromkeys(ENCODERS, ENCODER_RATE),
}


@dataclass
class MMTrainingArguments(TrainingArguments):
    """
    All of `transformers.TrainingArguments`, and the fields below.

    The learning rate of a part is by default `learning_rate`; all follow the same schedule. `metrics` are names of
    `modeling_mm.evaluation.score`.

    Raises:
        ValueError: if a metric is unknown, with the nearest known one, or a number is out of range.

    Example:
        >>> MMTrainingArguments("outputs", encoder_learning_rate=1e-5, predict_with_generate=True, metrics=["wer"])
    """

    text_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of decoder and head."})
    cross_attention_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the cross-attention blocks."}
    )
    connector_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the connectors."})
    encoder_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the encoders."})
    predict_with_generate: bool = field(
        default=False, metadata={"help": "Answer the prompts in evaluation and score the answers."}
    )
    generation_max_new_tokens: int = field(default=64, metadata={"help": "Longest answer in evaluation, in tokens."})
    generation_num_beams: int = field(default=1, metadata={"help": "Beams in evaluation; 1 is greedy."})
    metrics: list[str] = field(
        default_factory=lambda: ["exact_match"], metadata={"help": "Metrics of the answers in evaluation."}
    )
    group_by_media: bool = field(
        default=False, metadata={"help": "Put examples with similar media into a batch, so that padding is small."}
    )
    skip_logits: bool = field(
        default=True,
        metadata={"help": "Compute the loss of a model that writes without all its logits, if nobody reads them."},
    )

    def __post_init__(self) -> None:
        for name in dict.fromkeys(RATE_OF.values()):
            rate = getattr(self, name)
            if rate is not None and not rate >= 0:
                raise ValueError(f"{name} must be 0 or more, or None for learning_rate, got {rate}.")
        for name in ("generation_max_new_tokens", "generation_num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        check_metrics(self.metrics)
        if self.accelerator_config is None:  # type: ignore[has-type]
            # Dispatched batches of a stream would have to be of one shape.
            self.accelerator_config = {"dispatch_batches": False}
        if self.greater_is_better is None:  # type: ignore[has-type]  # transformers' own field
            errors = tuple(name for name, metric in METRICS.items() if metric.is_error)
            if (self.metric_for_best_model or "").endswith(errors):
                self.greater_is_better = False  # the stock rule knows only names that end with "loss"
        super().__post_init__()

    def rate_of(self, part: str) -> float:
        """Return the learning rate of a part, one of `part_names`."""
        rate = getattr(self, RATE_OF.get(part, ENCODER_RATE))
        return self.learning_rate if rate is None else rate
