# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Batches of pre-training, pairs of texts and media that do not belong together, and means over processes.

Shape legend: B rows, L text tokens, T tokens of a text to embed, M modalities, P the size of an embedding, K pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .contrastive import TEXT, gather
from .losses import at_least_one
from .modalities import MODALITIES
from .outputs import MMMediaOutput
from .ranks import num_processes
from .retrieval import rows_with_text

IGNORED = -100

Sum = tuple[torch.Tensor, torch.Tensor]  # of losses, and how many were added


@dataclass(frozen=True)
class PreTrainingBatch:
    """
    Inputs of a step, with their media encoded.

    Args:
        labels: (B, L), shifted: the target of each token
        media: `None` without any
        counts: of media items, by modality and row
        fingerprints: (B,) of the rows of each side, equal for equal rows
        others: as [`MMForPreTraining.forward`] takes them
    """

    input_ids: torch.Tensor | None
    attention_mask: torch.Tensor | None
    labels: torch.Tensor | None
    masked_targets: torch.Tensor | None
    hidden_modalities: torch.Tensor | None
    text_input_ids: torch.Tensor | None
    text_attention_mask: torch.Tensor | None
    media: MMMediaOutput | None
    counts: dict[str, list[int]]
    fingerprints: Mapping[str, torch.Tensor]

    def present(self, pad_token_id: int | None) -> dict[str, list[bool]]:
        """Return which rows have a text and media of each modality; modalities that no row has are left out."""
        sides = {name: [count > 0 for count in rows] for name, rows in self.counts.items() if any(rows)}
        if self.text_input_ids is not None:
            return {TEXT: rows_with_text(self.text_input_ids, self.text_attention_mask, pad_token_id), **sides}
        return sides if self.input_ids is None else {TEXT: [True] * len(self.input_ids), **sides}

    def hidden(self) -> torch.Tensor:
        """Return which modalities of each row the bidirectional mode does not see, (B, M) bool."""
        assert self.input_ids is not None
        if self.hidden_modalities is not None:
            return self.hidden_modalities.bool()
        return torch.zeros(len(self.input_ids), len(MODALITIES), dtype=torch.bool, device=self.input_ids.device)


@torch.no_grad()
def draw_pairs(
    batch: PreTrainingBatch, embeds: Mapping[str, torch.Tensor], is_hardest: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Draw for each text the media of another row, by their similarity.

    They have as many items of each modality as the text's own, so that no number gives them away. A row with the same
    text or with the same media is not a candidate. Rows without one, or without media that are seen, are left out.

    Args:
        embeds: (B, P) of each side; without any all candidates are equally likely
        is_hardest: take the most similar media instead

    Returns:
        numbers of the rows whose text and whose media make a pair, (K,) each
    """
    assert batch.input_ids is not None
    device, rows = batch.input_ids.device, len(batch.input_ids)
    if batch.media is None:
        return batch.input_ids.new_zeros(0), batch.input_ids.new_zeros(0)
    items = torch.tensor(list(batch.counts.values()), device=device).T  # (B, M)
    is_seen = (items.bool() & ~batch.hidden()).any(-1)  # (B,)
    allowed = (items[:, None] == items).all(-1) & is_seen[:, None]  # (B, B)
    for name, row in batch.fingerprints.items():
        is_there = torch.ones_like(is_seen) if name == TEXT else torch.tensor(batch.counts[name], device=device) > 0
        allowed &= (row[:, None] != row) | ~is_there[:, None]
    similarity = torch.zeros(rows, rows, device=device)
    for name in embeds.keys() - {TEXT}:
        similarity += (embeds[TEXT].float() @ embeds[name].float().T).to(device)
    return draw_partners(similarity, allowed, is_hardest)


def draw_partners(
    similarity: torch.Tensor, allowed: torch.Tensor, is_hardest: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Draw a partner for each row that may have one, from the softmax of its similarities.

    Args:
        similarity: (B, B)
        allowed: (B, B) bool
        is_hardest: take the most similar ones

    Returns:
        numbers of rows and of their partners, (K,) each
    """
    rows = allowed.any(-1).nonzero()[:, 0]
    scores = similarity.masked_fill(~allowed, -torch.inf)[rows]  # (K, B)
    if is_hardest or not len(rows):
        return rows, scores.argmax(-1)
    return rows, torch.multinomial(scores.softmax(-1), 1)[:, 0]


def media_of(media: MMMediaOutput | None, name: str) -> MMMediaOutput:
    """Return the media tokens of one modality."""
    assert media is not None and media.sizes is not None
    number = list(MODALITIES).index(name)
    start = sum(media.sizes[:number])
    tensors = [tensor[:, start : start + media.sizes[number]] for tensor in media.tensors]
    return MMMediaOutput(*tensors, sizes=tuple(s if i == number else 0 for i, s in enumerate(media.sizes)))


def mean_losses(sums: Mapping[str, Sum]) -> dict[str, torch.Tensor]:
    """
    Return the mean of each loss.

    Of several processes it is weighted so that the mean over them is that of the whole batch, as data parallelism
    takes the mean of gradients.
    """
    if not sums:
        return {}
    counts = gather(torch.stack([count for _, count in sums.values()])).sum(0)
    return {
        name: total * num_processes() / at_least_one(count, total.device)
        for (name, (total, _)), count in zip(sums.items(), counts, strict=True)
    }
