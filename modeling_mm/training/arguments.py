# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The stock `TrainingArguments`, and what `MMTrainer` adds to them."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..evaluation.metrics import ERROR_RATES, check_metrics

# Which field holds the learning rate of which part (see `freezing.parts_of`).
RATE_OF = {
    "text": "text_learning_rate",
    "cross_attention": "cross_attention_learning_rate",
    "connectors": "connector_learning_rate",
    "vision": "encoder_learning_rate",
    "audio": "encoder_learning_rate",
}


@dataclass
class MMTrainingArguments(TrainingArguments):
    """
    All of `transformers.TrainingArguments`, and:

    Args:
        text_learning_rate, cross_attention_learning_rate, connector_learning_rate, encoder_learning_rate:
            the learning rate of each part; `learning_rate` where it is None. They follow the same schedule.
        predict_with_generate:
            whether evaluation also answers the prompts of the evaluation set, greedily, and scores the answers.
        generation_max_new_tokens: of an answer
        generation_num_beams: beams of the search for an answer; 1 is greedy
        metrics: names of `metrics.score`, computed of the answers
        group_by_media: whether a batch's samples are chosen alike in their media, so that less of it is padding

    Raises:
        ValueError: for an unknown metric, with the nearest known one, and for numbers out of range.
    """

    text_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of decoder and head."})
    cross_attention_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the cross-attention blocks."}
    )
    connector_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the connectors."})
    encoder_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the encoders."})
    predict_with_generate: bool = field(
        default=False, metadata={"help": "Whether evaluation answers the prompts and scores the answers."}
    )
    generation_max_new_tokens: int = field(default=64, metadata={"help": "Longest answer in evaluation, in tokens."})
    generation_num_beams: int = field(default=1, metadata={"help": "Beams in evaluation; 1 is greedy."})
    metrics: list[str] = field(
        default_factory=lambda: ["exact_match"], metadata={"help": "Metrics of the answers in evaluation."}
    )
    group_by_media: bool = field(
        default=False, metadata={"help": "Whether the samples of a batch are chosen alike in their media."}
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
            # Else one process would cut a stream's batches for all and send them on, whatever their sizes.
            self.accelerator_config = {"dispatch_batches": False}
        best = self.metric_for_best_model
        chosen = self.greater_is_better  # type: ignore[has-type]  # transformers' own field
        if chosen is None and best is not None and best.endswith(ERROR_RATES):
            self.greater_is_better = False  # the stock rule knows only names that end with "loss"
        super().__post_init__()

    def rate_of(self, part: str) -> float:
        """The learning rate of a part, one of `freezing.PARTS`."""
        rate = getattr(self, RATE_OF[part])
        return self.learning_rate if rate is None else rate
