# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Teaches the connectors the decoder's words, as a stage in front of training in which the decoder does not run.

What is seen or heard is read off the media tokens by the decoder's own head. A picture's tokens, averaged, must give
the words of the answers about it, whatever their order; a sound's must give the words that are spoken, in order and
with blanks between them
([CTC](https://www.cs.toronto.edu/~graves/icml_2006.pdf)). Such a step costs a fraction of one of training, and
afterwards cross-attention finds the words that it has to write already there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from ..data.chat_row import ChatRow, media_parts, media_source
from ..encoders import is_sharded
from ..generation import MEDIA_INPUTS
from ..outputs import MMMediaOutput
from .freezing import average_gradients

# Shape legend: B media, S media tokens, D the decoder's width, C words to choose from, V all.

Words = tuple[int, ...]


@dataclass(frozen=True)
class AlignmentOptions:
    """
    Args:
        steps: each with a batch of pictures and one of sounds in every process
        picture_batch_size, sound_batch_size: media in a batch
        learning_rate: at its peak; it rises for a twentieth of the steps and falls as a cosine
        weight_decay: of all that is trained
        max_grad_norm: gradients are clipped to it
        max_choices: words that those spoken in a batch of sounds are told from; of more, a random choice in each step
    """

    steps: int
    picture_batch_size: int = 128
    sound_batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_choices: int = 8192

    def __post_init__(self):
        for name in ("steps", "picture_batch_size", "sound_batch_size", "learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected above 0, got {getattr(self, name)}.")
        if self.max_choices < 2:
            raise ValueError(f"max_choices: expected at least 2, got {self.max_choices}.")


@dataclass
class NamedMedium:
    """One picture or sound, as a row that asks about it, with one answer about it for each task, as tokens."""

    row: ChatRow
    answers: dict[str, Words] = field(default_factory=dict)


def named_media(rows: Iterable[ChatRow], kind: str, tokenizer: Any) -> list[NamedMedium]:
    """
    Pictures (`kind` is `"image"`) or sounds (`"audio"`) with the answers about them; each file once.

    Raises:
        ValueError: for a row that has other media than one of its kind, or an empty answer.
    """
    found: dict[Any, NamedMedium] = {}
    for number, row in enumerate(rows):
        parts = media_parts(row.messages)
        words = tuple(tokenizer(row.answer, add_special_tokens=False)["input_ids"])
        if [part["type"] for part in parts] != [kind] or not words:
            kinds = " and ".join(part["type"] for part in parts) or "no media"
            raise ValueError(
                f"Sample {row.id or number} cannot be aligned by: expected one {kind} and an answer, got {kinds} and "
                f"the answer {row.answer!r:.80}. Name such sources as `pictures` or `sounds` as have them."
            )
        source = media_source(parts[0])
        key = str(source) if isinstance(source, str) else number
        found.setdefault(key, NamedMedium(row)).answers[row.task or ""] = words
    return list(found.values())


class Aligner(nn.Module):
    """
    The two losses, with a bias of the head that takes up how frequent words are and is thrown away afterwards.

    Args:
        model: an `MMForConditionalGeneration`
        max_choices: see AlignmentOptions
    """

    def __init__(self, model: Any, max_choices: int = 8192):
        super().__init__()
        self.model, self.max_choices = model, max_choices
        self.bias = nn.Parameter(torch.zeros(model.config.text_config.vocab_size, device=model.device))

    def read(self, states: torch.Tensor) -> torch.Tensor:
        """Media tokens (..., D) as the decoder's last states are read, in float32"""
        return self.model.base_model.language_model.ln_f(states).float()

    def picture_loss(self, media: MMMediaOutput, batch: Sequence[NamedMedium]) -> torch.Tensor:
        """Cross-entropy of the words, in nats; answers of a picture weigh the same, and so do words of an answer."""
        counts = media.mask.sum(1).clamp(min=1)[:, None]  # (B, 1)
        states = self.read((media.states * media.mask[..., None]).sum(1) / counts)  # (B, D)
        logits = nn.functional.linear(states, self.model.get_output_embeddings().weight).float() + self.bias  # (B, V)
        words = torch.zeros_like(logits)
        for shares, picture in zip(words, batch, strict=True):
            for answer in picture.answers.values():
                distinct = sorted({*answer})
                shares[distinct] += 1 / len(distinct) / len(picture.answers)
        return nn.functional.cross_entropy(logits, words)

    def sound_loss(self, media: MMMediaOutput, batch: Sequence[NamedMedium]) -> torch.Tensor:
        """
        CTC of an answer about each sound, in nats a word; the placeholder of sounds, which is never written, is the
        blank. A sound that has fewer media tokens than its answer has words is passed over.
        """
        answers = [next(iter(sound.answers.values())) for sound in batch]
        spoken = sorted({word for text in answers for word in text})
        others = torch.randperm(len(self.bias))[: max(0, self.max_choices - len(spoken))].tolist()
        blank = self.model.config.audio_token_id
        words = [blank, *spoken, *sorted({*others} - {blank, *spoken})]
        places = {word: place for place, word in enumerate(words)}
        chosen = torch.tensor(words, device=self.bias.device)
        head = self.model.get_output_embeddings().weight
        logits = nn.functional.linear(self.read(media.states), head[chosen]).float() + self.bias[chosen]  # (B, S, C)
        real = [row[mask] for row, mask in zip(logits, media.mask, strict=True)]  # windows lie behind each other
        return nn.functional.ctc_loss(
            nn.utils.rnn.pad_sequence(real).log_softmax(-1),  # (S, B, C)
            torch.tensor([places[word] for text in answers for word in text], device=logits.device),
            media.mask.sum(1),
            torch.tensor([len(text) for text in answers], device=logits.device),
            blank=0,
            zero_infinity=True,
        )

    def forward(self, kind: str, inputs: dict[str, torch.Tensor], batch: Sequence[NamedMedium]) -> torch.Tensor:
        media = self.model.base_model.encode_media(**inputs)
        return self.picture_loss(media, batch) if kind == "image" else self.sound_loss(media, batch)


def draw(media: Sequence[NamedMedium], batch_size: int, collator: Any, seed: int) -> Iterator[list[NamedMedium]]:
    """Batches without end; of like length where the collator tells it, so that little of a batch is padding."""
    generator = torch.Generator().manual_seed(seed)
    size_of = getattr(collator, "media_size", None)
    epoch = 0
    while True:
        order = torch.randperm(len(media), generator=generator).tolist()
        if size_of is not None:
            order.sort(key=lambda number: size_of(media[number].row)[:2])
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        for chosen in torch.randperm(len(batches), generator=generator).tolist():
            batch = [media[number] for number in batches[chosen]]
            yield [NamedMedium(replace(medium.row, epoch=epoch), medium.answers) for medium in batch]
        epoch += 1


def align(
    model: Any,
    collator: Any,
    pictures: Sequence[NamedMedium],
    sounds: Sequence[NamedMedium],
    options: AlignmentOptions,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> dict[str, float]:
    """
    Trains what makes media tokens, and the head that reads them, in every process on batches of its own.

    Args:
        model: an `MMForConditionalGeneration` that is not wrapped yet; what is frozen stays as it is
        collator: chat rows -> the model's inputs
        pictures, sounds: see `named_media`; one of them may be empty
        seed: of the order
        dtype: what is computed in, by autocast

    Returns:
        `picture_loss` and `sound_loss`, the means over the last tenth of the steps of this process.

    Raises:
        ValueError: where there is nothing to align by, or weights are spread over processes.
    """
    given = {"image": (pictures, options.picture_batch_size), "audio": (sounds, options.sound_batch_size)}
    given = {kind: (media, size) for kind, (media, size) in given.items() if media}
    if not given or is_sharded(model):
        why = "its weights are spread over processes" if given else "there are neither pictures nor sounds"
        raise ValueError(f"The model cannot be aligned: {why}. Leave `alignment` out.")
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    rank = torch.distributed.get_rank() if ranks > 1 else 0
    aligner = Aligner(model, options.max_choices).train()
    parameters = [parameter for parameter in aligner.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=options.weight_decay
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, options.steps // 20, options.steps)
    sources = {kind: draw(media, size, collator, seed * ranks + rank) for kind, (media, size) in given.items()}
    losses: dict[str, list[float]] = {kind: [] for kind in given}
    with tqdm(range(options.steps), desc="aligning", disable=not progress or rank > 0) as bar:
        for _ in bar:
            for kind, source in sources.items():
                batch = next(source)
                inputs = collator([medium.row for medium in batch])
                inputs = {name: inputs[name].to(model.device) for name in MEDIA_INPUTS if name in inputs}
                with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
                    loss = aligner(kind, inputs, batch)
                loss.backward()
                losses[kind].append(loss.item())
            used = [parameter for parameter in parameters if parameter.grad is not None]
            if ranks > 1:
                average_gradients(used)
            nn.utils.clip_grad_norm_(used, options.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.set_postfix({kind: f"{values[-1]:.2f}" for kind, values in losses.items()})
    last = max(1, options.steps // 10)
    names = {"image": "picture_loss", "audio": "sound_loss"}
    return {names[kind]: sum(values[-last:]) / last for kind, values in losses.items()}
