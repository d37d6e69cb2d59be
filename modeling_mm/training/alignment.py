# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
A stage before training that teaches connectors the decoder's words, without running the decoder.

The decoder's head reads media tokens. The mean of an image's tokens must give the words of the answers about it, in
any order. The tokens of audio must give the words that are spoken, in order and with blanks between them
([CTC](https://www.cs.toronto.edu/~graves/icml_2006.pdf)). Such a step costs a fraction of a training step, and
cross-attention later finds the words to write in the media tokens.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from ..data.chat_row import ChatRow, media_parts, media_source
from ..encoders import is_sharded
from ..modalities import MODALITIES, media_inputs
from ..ranks import num_processes, rank
from ..utils.progress import show_progress
from .divergence import diverged, example_name, in_any_process
from .freezing import average_gradients

# Shape legend: B media, S media tokens, D the decoder's width, C words to choose from, V the vocabulary.

Words = tuple[int, ...]


@dataclass(frozen=True)
class AlignmentOptions:
    """
    Options of the alignment.

    Args:
        steps: steps, each with a batch of images and a batch of audio in every process.
        image_batch_size, audio_batch_size: media in a batch.
        learning_rate: peak of the learning rate, which rises for a twentieth of the steps and falls as a cosine.
        weight_decay: weight decay of all trained parameters.
        max_grad_norm: norm that gradients are clipped to.
        max_choices: words that the head chooses from for audio; a random selection if the vocabulary has more.
    """

    steps: int
    image_batch_size: int = 128
    audio_batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_choices: int = 8192

    def __post_init__(self) -> None:
        sizes = (f"{kind}_batch_size" for kind in MODALITIES if hasattr(self, f"{kind}_batch_size"))
        for name in ("steps", "learning_rate", "max_grad_norm", *sizes):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        if self.max_choices < 2:
            raise ValueError(f"max_choices must be at least 2, got {self.max_choices}.")


@dataclass
class NamedMedium:
    """An image or audio, as an example that asks about it, with the tokens of one answer for each task."""

    row: ChatRow
    answers: dict[str, Words] = field(default_factory=dict)


def named_media(rows: Iterable[ChatRow], kind: str, tokenizer: Any) -> list[NamedMedium]:
    """
    Return the media of one modality, `"image"` or `"audio"`, with the answers about them; each file once.

    Raises:
        ValueError: if an example has other media than one of its kind, or an empty answer.
    """
    found: dict[Any, NamedMedium] = {}
    for number, row in enumerate(rows):
        parts = media_parts(row.messages)
        words = tuple(tokenizer(row.answer, add_special_tokens=False)["input_ids"])
        if [part["type"] for part in parts] != [kind] or not words:
            kinds = " and ".join(part["type"] for part in parts) or "no media"
            raise ValueError(
                f"Example {row.id or number} cannot be used for alignment: expected one {kind} and an answer, got "
                f"{kinds} and the answer {row.answer!r:.80}. Name other sources under `alignment`."
            )
        is_file = isinstance(media_source(parts[0]), str)
        key = repr(sorted(parts[0].items())) if is_file else number
        found.setdefault(key, NamedMedium(row)).answers[row.task or ""] = words
    return list(found.values())


class Aligner(nn.Module):
    """
    The losses of media tokens `states` (B, S, D), of which `mask` (B, S) are real.

    A bias of the head learns the frequency of words and is discarded afterwards.
    """

    def __init__(self, model: Any, max_choices: int = 8192):
        super().__init__()
        self.model, self.max_choices = model, max_choices
        self.bias = nn.Parameter(torch.zeros(model.config.text_config.vocab_size, device=model.device))

    def read(self, states: torch.Tensor) -> torch.Tensor:
        """Return media tokens (..., D) as the decoder's last states, in float32."""
        return self.model.base_model.language_model.ln_f(states).float()

    def image_loss(self, states: torch.Tensor, mask: torch.Tensor, batch: Sequence[NamedMedium]) -> torch.Tensor:
        """Return the cross-entropy of the words, in nats. Answers of an image, and words of an answer, weigh alike."""
        means = self.read((states * mask[..., None]).sum(1) / mask.sum(1).clamp(min=1)[:, None])  # (B, D)
        logits = nn.functional.linear(means, self.model.get_output_embeddings().weight).float() + self.bias  # (B, V)
        words = torch.zeros_like(logits)
        for shares, image in zip(words, batch, strict=True):
            for answer in image.answers.values():
                distinct = sorted({*answer})
                shares[distinct] += 1 / len(distinct) / len(image.answers)
        return nn.functional.cross_entropy(logits, words)

    def audio_loss(self, states: torch.Tensor, mask: torch.Tensor, batch: Sequence[NamedMedium]) -> torch.Tensor:
        """
        Return the CTC loss of one answer about each audio, in nats a word.

        The audio placeholder, which is never written, is the blank. Audio with fewer media tokens than its answer has
        words adds nothing.
        """
        answers = [next(iter(audio.answers.values())) for audio in batch]
        spoken = sorted({word for text in answers for word in text})
        others = torch.randperm(len(self.bias))[: max(0, self.max_choices - len(spoken))].tolist()
        blank = self.model.config.audio_token_id
        words = [blank, *spoken, *sorted({*others} - {blank, *spoken})]
        places = {word: place for place, word in enumerate(words)}
        chosen = torch.tensor(words, device=self.bias.device)
        head = self.model.get_output_embeddings().weight
        logits = nn.functional.linear(self.read(states), head[chosen]).float() + self.bias[chosen]  # (B, S, C)
        real = [row[kept] for row, kept in zip(logits, mask, strict=True)]  # without padding between windows
        return nn.functional.ctc_loss(
            nn.utils.rnn.pad_sequence(real).log_softmax(-1),  # (S, B, C)
            torch.tensor([places[word] for text in answers for word in text], device=logits.device),
            mask.sum(1),
            torch.tensor([len(text) for text in answers], device=logits.device),
            blank=0,
            zero_infinity=True,
        )

    def forward(self, kind: str, inputs: dict[str, torch.Tensor], batch: Sequence[NamedMedium]) -> torch.Tensor:
        media = self.model.base_model.encode_media(**inputs)
        return getattr(self, f"{kind}_loss")(media.states, media.mask, batch)


def draw(media: Sequence[NamedMedium], batch_size: int, collator: Any, seed: int) -> Iterator[list[NamedMedium]]:
    """Yield batches without end, of similar length if the collator has `media_size`, so that padding is small."""
    generator = torch.Generator().manual_seed(seed)
    size_of = getattr(collator, "media_size", None)
    epoch = 0
    while True:
        order = torch.randperm(len(media), generator=generator).tolist()
        if size_of is not None:
            order.sort(key=lambda number: size_of(media[number].row)[:-1])
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        for chosen in torch.randperm(len(batches), generator=generator).tolist():
            batch = [media[number] for number in batches[chosen]]
            yield [NamedMedium(replace(medium.row, epoch=epoch), medium.answers) for medium in batch]
        epoch += 1


def align(
    model: Any,
    collator: Any,
    media: Mapping[str, Sequence[NamedMedium]],
    options: AlignmentOptions,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> dict[str, float]:
    """
    Train the connectors and the head that reads them, each process on different batches.

    Args:
        model: an `MMForConditionalGeneration` that is not wrapped yet; frozen parameters do not change.
        collator: chat rows -> the model's inputs.
        media: see [`named_media`], by modality: `image`, `audio` or both.
        seed: seed of the order.
        dtype: precision of autocast.

    Returns:
        `image_loss` and `audio_loss`: means over the last tenth of the steps of this process.

    Raises:
        FloatingPointError: if a loss is not finite, with the step and the examples.
        ValueError: if there are no media, or weights are sharded over processes.
    """
    media = {kind: media[kind] for kind in MODALITIES if media.get(kind)}  # in the same order in every process
    if not media or is_sharded(model):
        why = "its weights are sharded over processes" if media else "there are no media"
        raise ValueError(f"The model cannot be aligned: {why}. Remove `alignment`.")
    aligner = Aligner(model, options.max_choices).train()
    parameters = [parameter for parameter in aligner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=options.weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, options.steps // 20, options.steps)
    sources = {
        kind: draw(some, getattr(options, f"{kind}_batch_size"), collator, seed * num_processes() + rank())
        for kind, some in media.items()
    }
    losses: dict[str, list[float]] = {kind: [] for kind in media}
    with show_progress(range(options.steps), desc="aligning", disable=not progress or rank() > 0) as bar:
        for step in bar:
            for kind, source in sources.items():
                batch = next(source)
                inputs = collator([medium.row for medium in batch])
                inputs = {name: inputs[name].to(model.device) for name in media_inputs() if name in inputs}
                with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
                    loss = aligner(kind, inputs, batch)
                loss.backward()
                losses[kind].append(loss.item())
                if in_any_process(not math.isfinite(losses[kind][-1]), model.device):
                    names = [example_name(medium.row) for medium in batch]
                    raise diverged(step + 1, losses[kind][-1:], math.nan, names, None)
            used = [parameter for parameter in parameters if parameter.grad is not None]
            if num_processes() > 1:
                average_gradients(used)
            nn.utils.clip_grad_norm_(used, options.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.set_postfix({kind: f"{values[-1]:.2f}" for kind, values in losses.items()})
    last = max(1, options.steps // 10)
    return {f"{kind}_loss": sum(values[-last:]) / last for kind, values in losses.items()}
