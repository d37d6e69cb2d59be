# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Evaluation: answers in batches, metrics of answers and of retrieval, and figures of test sets."""

from .answering import free_positions, generate_answers, prompt_inputs
from .classifying import classify, confusion, confusion_markdown, is_classifier, labels_of, predict_labels
from .detection import DetectionFigures, detection_figures, iou, referring_accuracy
from .examples_page import examples_page
from .figures import Figure, evaluate, figures_markdown, majority_answers
from .legend import evaluation_section
from .metrics import METRICS, Metric, check_metrics, score
from .ranking import first_ranks, mean_average_precision, median_rank, recall_at_k
from .retrieving import RetrievalFigure, measure_retrieval, retrieval_section, score_retrieval
from .scored import (
    CLASS_METRICS,
    ClassMetric,
    auroc,
    class_auroc,
    class_equal_error_rate,
    equal_error_rate,
    equal_error_threshold,
)
from .wording import plain_words, single_spaced, spoken_form

__all__ = [
    "CLASS_METRICS",
    "METRICS",
    "ClassMetric",
    "DetectionFigures",
    "Figure",
    "Metric",
    "RetrievalFigure",
    "auroc",
    "check_metrics",
    "class_auroc",
    "class_equal_error_rate",
    "classify",
    "confusion",
    "confusion_markdown",
    "detection_figures",
    "equal_error_rate",
    "equal_error_threshold",
    "evaluate",
    "evaluation_section",
    "examples_page",
    "figures_markdown",
    "first_ranks",
    "free_positions",
    "generate_answers",
    "iou",
    "is_classifier",
    "labels_of",
    "majority_answers",
    "mean_average_precision",
    "measure_retrieval",
    "median_rank",
    "plain_words",
    "predict_labels",
    "prompt_inputs",
    "recall_at_k",
    "referring_accuracy",
    "retrieval_section",
    "score",
    "score_retrieval",
    "single_spaced",
    "spoken_form",
]
