# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Losses, as pure functions."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .device_reads import read_once

CHUNK_TOKENS = 2048


def causal_lm_loss(
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    vocab_size: int,
    num_items_in_batch: torch.Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: torch.Tensor | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    **kwargs: object,
) -> torch.Tensor:
    """
    Next-token cross-entropy in float32, in chunks.

    Cross-entropy needs float32 copies of the logits, which with a large vocabulary are the largest tensors of a
    training step. Here they exist for `chunk_tokens` tokens at a time: each chunk is checkpointed, so its float32
    values are computed again in the backward pass instead of kept.

    Args:
        logits: (B, L, V)
        labels: (B, L), `ignore_index` where nothing is to be learned; shifted here
        vocab_size: V
        num_items_in_batch: number of targets in the whole batch under gradient accumulation; the mean is over this
            batch's targets when it is not given
        shift_labels: (B, L) targets already aligned with the logits; they replace `labels`
        chunk_tokens: tokens a chunk

    Returns:
        a scalar, float32. Without any target it is zero.
    """
    if shift_labels is None:
        if labels is None:
            raise ValueError("causal_lm_loss needs labels or shift_labels, got neither.")
        shift_labels = shifted(labels, ignore_index)
    logits = logits.reshape(-1, vocab_size)  # (B * L, V)
    targets = shift_labels.reshape(-1).to(logits.device)  # (B * L,)
    if logits.shape[0] <= chunk_tokens:
        total = summed_cross_entropy(logits, targets, ignore_index)
    else:
        chunks = zip(logits.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
        total = sum(
            checkpoint(summed_cross_entropy, chunk, target, ignore_index, use_reentrant=False)
            for chunk, target in chunks
        )
    if num_items_in_batch is None:
        num_items_in_batch = (targets != ignore_index).sum()
    return total / at_least_one(num_items_in_batch, total.device)


def shifted(labels: torch.Tensor, ignore_index: int = -100) -> torch.Tensor:
    """Return the target of each token, (B, L), from the labels of the tokens themselves."""
    return nn.functional.pad(labels, (0, 1), value=ignore_index)[:, 1:]


def at_least_one(count: torch.Tensor | int, device: torch.device) -> torch.Tensor | int:
    """Return a divisor for a sum that is zero if nothing was counted."""
    return count.to(device).clamp(min=1) if torch.is_tensor(count) else max(count, 1)


def summed_cross_entropy(logits: torch.Tensor, targets: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Sum over tokens; logits (N, V), targets (N,)."""
    return nn.functional.cross_entropy(logits.float(), targets, ignore_index=ignore_index, reduction="sum")


def check_labels(name: str, labels: torch.Tensor, vocab_size: int, ignore_index: int = -100) -> None:
    """
    Check labels of tokens against the vocabulary.

    Raises:
        ValueError: for the first row with a label out of range.
    """
    if found := row_out_of_range(name, labels, vocab_size, ignore_index):
        row, value = found
        raise ValueError(
            f"Row {row}: {name} holds {value}, but labels are ids of tokens from 0 to {vocab_size - 1}, or "
            f"{ignore_index} for tokens that are not learned. Check that model and tokenizer belong together."
        )


def check_classes(labels: torch.Tensor, num_labels: int, ignore_index: int = -100) -> None:
    """
    Check labels of rows, (B,) or (B, 1), against the number of classes.

    Raises:
        ValueError: for the first row with a label out of range.
    """
    if found := row_out_of_range("labels", labels, num_labels, ignore_index):
        row, value = found
        raise ValueError(
            f"Row {row}: the label is {value}, but the model has {num_labels} classes, from 0 to {num_labels - 1}; "
            f"{ignore_index} is for rows that are not learned. Correct the label, or load the model with more "
            "num_labels."
        )


def row_out_of_range(name: str, labels: torch.Tensor, number: int, ignore_index: int) -> tuple[int, int] | None:
    """Return the first row of labels (B, ...) that holds one which is not from 0 to `number` - 1, and the label."""
    known = labels.masked_fill(labels == ignore_index, 0)
    known = known if known.ndim > 1 else known[:, None]
    ranges = read_once((name, ignore_index), torch.stack([known.amin(-1), known.amax(-1)], dim=-1), labels)
    for row, (lowest, highest) in enumerate(ranges):
        if lowest < 0 or highest >= number:
            return row, lowest if lowest < 0 else highest
    return None


def problem_type(configured: str | None, num_labels: int, labels: torch.Tensor) -> str:
    """Return the problem type of a classification head, inferred from the labels if it is not configured."""
    if configured is not None:
        return configured
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, problem: str, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """
    Return the loss of a classification or regression head.

    Args:
        logits: (B, num_labels)
        labels: see [`MMForSequenceClassification.forward`]
        problem: `"regression"`, `"single_label_classification"` or `"multi_label_classification"`
        num_items_in_batch: number of labels in the whole batch under gradient accumulation; the mean is over this
            batch's labels when it is not given

    Returns:
        a scalar, float32; zero without any label
    """
    logits, labels = logits.float(), labels.to(logits.device)
    count: torch.Tensor | int = labels.numel()
    if problem == "regression":
        total = nn.functional.mse_loss(logits.view(labels.shape), labels.float(), reduction="sum")
    elif problem == "multi_label_classification":
        total = nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
    else:
        total = nn.functional.cross_entropy(logits, labels.view(-1), reduction="sum")
        count = (labels != -100).sum()
    return total / at_least_one(count if num_items_in_batch is None else num_items_in_batch, total.device)


def scaled_similarities(
    rows: torch.Tensor, others: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Return the logits of matches in float32, under autocast too.

    Args:
        rows: embeddings (B, P)
        others: embeddings (N, P)
        scale: the inverse temperature, a scalar
        bias: a scalar to add; none for InfoNCE, which it would not change

    Returns:
        (B, N)
    """
    with torch.autocast(rows.device.type, enabled=False):
        logits = scale.float() * (rows.float() @ others.float().T)
    return logits if bias is None else logits + bias.float()


def summed_info_nce(logits: torch.Tensor, targets: torch.Tensor, is_candidate: torch.Tensor) -> torch.Tensor:
    """
    Sum over rows of the cross-entropy of each row's match among all candidates (InfoNCE, arXiv:1807.03748).

    Args:
        logits: (B, N)
        targets: (B,) index of each row's match, -100 for rows without one
        is_candidate: (B, N) or (N,) bool

    Returns:
        a scalar; zero without any target
    """
    return nn.functional.cross_entropy(
        logits.masked_fill(~is_candidate, torch.finfo(logits.dtype).min), targets, reduction="sum"
    )


def summed_sigmoid(logits: torch.Tensor, is_match: torch.Tensor, is_counted: torch.Tensor) -> torch.Tensor:
    """
    Sum over rows and candidates of the binary cross-entropy of "these match" (SigLIP, arXiv:2303.15343).

    Args:
        logits: (B, N)
        is_match: (B, N) bool
        is_counted: (B, N) bool, the pairs that are judged

    Returns:
        a scalar; zero without any pair
    """
    signs = 2.0 * is_match - 1.0  # (B, N)
    return -(nn.functional.logsigmoid(signs * logits) * is_counted).sum()
