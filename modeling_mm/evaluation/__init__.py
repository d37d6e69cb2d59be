# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Evaluation: answers in batches, metrics of answers and of retrieval, and figures of test sets."""

from .answering import free_positions, generate_answers, prompt_inputs
from .classifying import classify, confusion, confusion_markdown, is_classifier, labels_of, predict_labels
from .figures import Figure, evaluate, figures_markdown, majority_answers
from .metrics import METRICS, Metric, check_metrics, score
from .ranking import first_ranks, mean_average_precision, median_rank, recall_at_k

__all__ = [
    "METRICS",
    "Figure",
    "Metric",
    "check_metrics",
    "classify",
    "confusion",
    "confusion_markdown",
    "evaluate",
    "figures_markdown",
    "first_ranks",
    "free_positions",
    "generate_answers",
    "is_classifier",
    "labels_of",
    "majority_answers",
    "mean_average_precision",
    "median_rank",
    "predict_labels",
    "prompt_inputs",
    "recall_at_k",
    "score",
]
