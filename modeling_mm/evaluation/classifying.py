# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Labels that a classifier gives to prompts, and how often it confuses them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..data.chat_row import ChatRow, Message
from ..modeling_mm import MMForSequenceClassification
from ..utils.progress import show_progress
from ..utils.tables import markdown_table
from .answering import Inputs, prompt_inputs, prompt_size

# Shape legend: N prompts, C labels.


def is_classifier(model: Any) -> bool:
    """Return if a model gives labels instead of writing answers."""
    return isinstance(model, MMForSequenceClassification)


def labels_of(model: Any) -> list[str]:
    """Return the C labels of a classifier in the order of its logits."""
    return [model.config.id2label[number] for number in range(model.config.num_labels)]


@torch.no_grad()
def classify(
    model: Any,
    processor: Any,
    prompts: Sequence[ChatRow | list[Message]],
    batch_size: int = 64,
    prompt_batch: Callable[[Sequence[Any]], Inputs] | None = None,
    progress: str | None = None,
) -> np.ndarray:
    """
    Return scores of the labels, (N, C): probabilities, each label its own for several labels, values of a regression.

    Args:
        model: a classifier. It is put into evaluation mode.
        prompts: examples, of which the prompt is read, or conversations that end with the user's turn
        prompt_batch: function from prompts to a batch; by default the processor makes it
        progress: text beside a progress bar; none without it

    Example:
        >>> scores = classify(model, processor, [[{"role": "user", "content": "What is a cat?"}]])
        >>> labels_of(model)[scores[0].argmax()]
        'animal'
    """
    model.eval()
    order = sorted(range(len(prompts)), key=lambda number: prompt_size(prompts[number]))
    scores = np.zeros((len(prompts), model.config.num_labels))
    problem = model.config.problem_type or ("regression" if model.config.num_labels == 1 else "")
    with show_progress(total=len(prompts), desc=progress, disable=progress is None) as bar:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            chosen = [prompts[number] for number in numbers]
            inputs = prompt_inputs(processor, chosen) if prompt_batch is None else prompt_batch(chosen)
            logits = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}).logits.float()
            if problem != "regression":
                logits = logits.sigmoid() if problem == "multi_label_classification" else logits.softmax(-1)
            scores[numbers] = logits.cpu().numpy()
            bar.update(len(numbers))
    return scores


def predict_labels(model: Any, processor: Any, prompts: Sequence[Any], *args: Any, **options: Any) -> list[str]:
    """
    Return the likeliest label of each prompt; arguments are those of [`classify`].

    Raises:
        ValueError: if the model gives several labels or values, so that none is the answer.
    """
    check_single_label(model)
    labels, scores = labels_of(model), classify(model, processor, prompts, *args, **options)
    return [labels[number] for number in scores.argmax(-1)]


def check_single_label(model: Any) -> None:
    """Raise a ValueError if a classifier gives several labels or values, so that none is the answer."""
    problem, count = model.config.problem_type, model.config.num_labels
    if problem in ("multi_label_classification", "regression") or count == 1:
        raise ValueError(
            f"The model's problem_type is {problem or 'regression'!r}, with {count} labels. Accuracy, F1, AUROC and "
            "confusion are figures of classifiers that give one of several labels."
        )


def check_truths(model: Any, rows: Sequence[ChatRow], dataset: str) -> None:
    """Raise a ValueError if a row's answer is none of the classifier's labels."""
    labels = labels_of(model)
    for number, row in enumerate(rows):
        if row.answer not in labels:
            raise ValueError(
                f"{dataset}: the answer of {f'example {row.id!r}' if row.id else f'row {number}'} is {row.answer!r}, "
                f"but the model's labels are {', '.join(labels)}."
            )


def confusion(labels: Sequence[str], answers: Sequence[str], truths: Sequence[str]) -> np.ndarray:
    """Return how often each label (row) was answered by each label (column), (C, C)."""
    place = {label: number for number, label in enumerate(labels)}
    pairs = [place[truth] * len(labels) + place[answer] for answer, truth in zip(answers, truths, strict=True)]
    return np.bincount(pairs, minlength=len(labels) ** 2).reshape(len(labels), len(labels))


def confusion_markdown(labels: Sequence[str], counts: np.ndarray) -> str:
    """Return a confusion matrix as a table: a row for each true label, a column for each answer."""
    rows = [(label, *map(str, row)) for label, row in zip(labels, counts.tolist(), strict=True)]
    return markdown_table(("truth \\ answer", *labels), rows)
