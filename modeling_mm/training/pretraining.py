# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Batches for pre-training, and the figures of its objectives.

Shape legend: B rows, L text tokens, T tokens of an answer, M modalities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from ..batching import IGNORED, first_row
from ..configuration_mm import OBJECTIVE_WEIGHTS, MMConfig
from ..data.chat_row import ChatRow
from ..modalities import MODALITIES
from .answers import in_groups
from .augmentation import generator_of
from .collators import ChatCollator, Row

MEASURED = ("masked_lm", "matching")  # objectives that have an accuracy beside their loss


@dataclass
class Masking:
    """
    Random masks of pre-training. Like augmentation they depend on the seed, the epoch and the example alone.

    Args:
        tokens: share of the words' tokens of an example that are masked; at least one token is.
        modalities: probability that a modality of an example is hidden, so that its words are predicted without it.
        seed: seed of all draws.

    Example:
        >>> PretrainingCollator(processor, Masking(tokens=0.4, modalities=0.2))
    """

    tokens: float = 0.3
    modalities: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "modalities"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` of Masking must lie in [0, 1], got {getattr(self, name)}.")
        if self.tokens == 0:
            raise ValueError("`tokens` of Masking must be above 0. Set masked_lm_weight to 0 to mask none.")


class PretrainingCollator(ChatCollator):
    """
    Chats to a batch for [`MMForPreTraining`].

    ```python
    collate = PretrainingCollator(processor, Masking(tokens=0.4), ChatCollator(processor, augmentation))
    MMTrainer(model, MMTrainingArguments("outputs"), collate, load_chats("captions.jsonl")).train()
    ```

    Args:
        processor: an `MMProcessor`.
        masking: which tokens are masked and which modalities hidden.
        chats: makes the rows, with its augmentation, dropout or encoder cache; by default `ChatCollator(processor)`.
    """

    def __init__(self, processor: Any, masking: Masking | None = None, chats: ChatCollator | None = None):
        self.chats = ChatCollator(processor) if chats is None else chats
        super().__init__(processor, most_tokens=self.chats.most_tokens)
        self.masking = Masking() if masking is None else masking
        tokens = processor.tokenizer.added_tokens_decoder
        self.special_ids = torch.tensor([token_id for token_id, token in tokens.items() if token.special])

    def for_evaluation(self) -> "PretrainingCollator":
        return PretrainingCollator(self.processor, self.masking, self.chats.for_evaluation())

    def media_size(self, row: ChatRow) -> tuple[int, ...]:
        """Return the size of a row's media and text, to group alike rows."""
        return self.chats.media_size(row)

    def encode(self, row: ChatRow) -> Row:
        encoded = dict(self.chats.encode(row))
        generator = generator_of(row, self.masking.seed, "masking")
        ids, is_real = encoded["input_ids"], encoded["attention_mask"].bool()
        may_be = is_real & ~torch.isin(ids, self.special_ids)
        may_be[is_real.int().argmax()] = False  # the first token has no state before it to be predicted from
        words = may_be.nonzero()[:, 0].numpy()
        number = max(1, round(self.masking.tokens * len(words))) if len(words) else 0
        places = torch.from_numpy(generator.choice(words, number, replace=False))
        encoded["masked_targets"] = torch.full_like(ids, IGNORED).index_copy(0, places, ids[places])
        drawn = generator.random(len(MODALITIES)) < self.masking.modalities
        there = [any(source in encoded for source in modality.sources) for modality in MODALITIES.values()]
        encoded["hidden_modalities"] = torch.from_numpy(drawn) & torch.tensor(there)
        encoded["text_input_ids"] = first_row(self.processor(text=row.answer, return_tensors="pt"))["input_ids"]
        return encoded

    def pad(self, rows: Sequence[Row], padding_side: str | None = None) -> dict[str, Any]:
        apart = ("text_input_ids", "hidden_modalities")
        padded = self.chats.pad([{n: v for n, v in row.items() if n not in apart} for row in rows], padding_side)
        answers = [row["text_input_ids"] for row in rows]
        texts = self.chats.pad(
            [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in answers], "right"
        )
        padded |= {f"text_{name}": value for name, value in texts.items()}
        return padded | {"hidden_modalities": torch.stack([row["hidden_modalities"] for row in rows])}

    def __call__(self, samples: Sequence[ChatRow | Mapping[str, Any]]) -> dict[str, Any]:
        """
        Encode and pad samples.

        Returns:
            what [`ChatCollator`] makes, `masked_targets` (B, L), `hidden_modalities` (B, M), and the answers as texts:
            `text_input_ids`, `text_attention_mask` (B, T).

        Raises:
            ValueError: for a sample that cannot be read or has nothing to learn; with its index in the batch.
        """
        return super().__call__(samples)

    def embedding_batch(self, rows: Sequence[ChatRow]) -> dict[str, torch.Tensor]:
        """Return the answers and the media of rows, without placeholders, for the model to embed."""
        others = ("input_ids", "attention_mask", "labels", "masked_targets", "hidden_modalities")
        return {name: value for name, value in self(rows).items() if name not in others}


@torch.no_grad()
def measure_objectives(
    model: Any, collator: PretrainingCollator, rows: Sequence[ChatRow], rows_at_once: int
) -> dict[str, float]:
    """Return the losses and the accuracies of the objectives that are on, means over batches. No batch has one row."""
    model.eval()
    batches = list(in_groups(rows, rows_at_once))
    if len(batches) > 1 and len(batches[-1]) == 1:
        alone = batches.pop()
        batches[-1] += alone
    figures = NamedFigures()
    for batch in batches:
        inputs = {name: value.to(model.device) for name, value in collator.for_evaluation()(batch).items()}
        figures.add(inputs, model(**inputs))
    return figures.take()


def figure_names(config: MMConfig) -> list[str]:
    """Return the names of the figures that evaluation adds: the losses of objectives that are on, and accuracies."""
    on = [name for name, field in OBJECTIVE_WEIGHTS.items() if getattr(config, field)]
    return [f"{name}_loss" for name in on] + [f"{name}_accuracy" for name in on if name in MEASURED]


class NamedFigures:
    """Means of the losses of objectives, and of the accuracies, over batches and processes."""

    def __init__(self) -> None:
        self.totals: dict[str, torch.Tensor] = {}  # (2,) each: the sum and the number

    @torch.no_grad()
    def add(self, inputs: Mapping[str, Any], outputs: Any) -> None:
        """Add those of a batch; nothing for a model whose losses have no names."""
        losses = getattr(outputs, "losses", None) or {}
        for name, loss in losses.items():
            self._add(f"{name}_loss", loss.detach().float().mean()[None])
        if "masked_lm" in losses:
            targets = inputs["masked_targets"]
            found = outputs.masked_logits.argmax(-1)
            self._add("masked_lm_accuracy", (found == targets[targets != IGNORED]).float())
        if "matching" in losses:
            is_match = outputs.matching_logits > 0
            first = torch.arange(len(is_match), device=is_match.device) < len(is_match) // 2
            self._add("matching_accuracy", (is_match == first).float())

    def _add(self, name: str, values: torch.Tensor) -> None:
        total = torch.stack([values.sum(), values.new_tensor(len(values))])
        self.totals[name] = self.totals[name] + total if name in self.totals else total

    def take(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Return the means over all processes of the accelerator, and start again."""
        names = list(self.totals)
        if not names:
            return {}
        totals = torch.stack([self.totals[name] for name in names])  # (names, 2)
        totals = totals if accelerator is None else accelerator.reduce(totals, "sum")
        self.totals = {}
        return {name: (total / count).item() for name, (total, count) in zip(names, totals, strict=True) if count > 0}
