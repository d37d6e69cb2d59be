# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""How a model answers: in batches, and how often exactly right."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch


@torch.no_grad()
def answer_prompts(
    model: Any,
    processor: Any,
    prompts: Sequence[list[dict[str, Any]]],
    batch_size: int = 64,
    max_new_tokens: int = 32,
    progress: bool = False,
) -> list[str]:
    """
    Answers conversations that end with the user's turn, greedily.

    Rows with pictures, with sounds, with both and with neither mix freely in a batch.

    Returns:
        one answer a prompt, in their order, without special tokens and surrounding white space.
    """
    from tqdm import tqdm  # only here, as the package does without it

    model.eval()
    answers: list[str] = []
    for start in tqdm(range(0, len(prompts), batch_size), desc="answering", disable=not progress):
        inputs = processor.apply_chat_template(
            list(prompts[start : start + batch_size]),
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        ).to(model.device)
        sequences = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new_tokens = sequences[:, inputs["input_ids"].shape[1] :]
        answers += processor.batch_decode(new_tokens, skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def exact_counts(kinds: Iterable[str], answers: Iterable[str], truths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """For each kind of question, in the order in which they come: how many were answered exactly, of how many."""
    counts: dict[str, tuple[int, int]] = {}
    for kind, answer, truth in zip(kinds, answers, truths, strict=True):
        right, total = counts.get(kind, (0, 0))
        counts[kind] = (right + (answer == truth), total + 1)
    return counts


def add_up(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Right answers and questions of all kinds together."""
    counts = list(counts)
    return sum(right for right, _ in counts), sum(total for _, total in counts)
