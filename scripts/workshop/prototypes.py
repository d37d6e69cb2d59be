# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Alignment of an image connector with names, in minutes: the decoder's head reads the words of a name in the tokens.

[`modeling_mm.training.align`] does this for any data. Here names are short and few, so that the head chooses among the
words of names alone, names compete as wholes too, and most steps see one token an image, the mean of its tokens, at a
sixteenth of the price. What is learned from means serves the tokens, as a connector works token by token; a second
stage adapts it to them.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, dropout
from transformers import get_cosine_schedule_with_warmup

from modeling_mm import MMForConditionalGeneration
from modeling_mm.batching import IGNORED
from modeling_mm.tags import Tagger
from modeling_mm.utils import show_progress

from .lessons import ImageNetHead, moved_means

# Shape legend: N images, B of them, M tokens an image, W the encoder's width, D the decoder's, C words, K names.

# Of queries and keys: the first block finds the image of a name, so that others do not fit; later ones read all of it,
# as the token behind which the answer stands names nothing.
SHARPNESS, SOFTNESS = 3.0, 0.5

Step = Callable[[random.Random], torch.Tensor]


@dataclass(frozen=True)
class PrototypeOptions:
    """
    Options of the alignment with names.

    Args:
        steps, token_steps: of the stage of means, and of the stage of tokens behind it.
        images, token_images, lessons: in a batch of the stage of means, of the stage of tokens, and lessons with each.
        learning_rate, token_learning_rate: peaks of a cosine.
        weight_decay: of the connector.
        feature_dropout: of the encoder's features, behind their norm.
        blend: most that a mean takes from another image of the same name.
        name_weight: of the loss of whole names, beside that of words.
        kind_weight: of the loss of kinds of things.
    """

    steps: int = 1500
    token_steps: int = 300
    images: int = 256
    token_images: int = 96
    lessons: int = 96
    learning_rate: float = 1e-3
    token_learning_rate: float = 3e-4
    weight_decay: float = 0.1
    feature_dropout: float = 0.5
    blend: float = 0.9
    name_weight: float = 4.0
    kind_weight: float = 1.0


class NameReader(nn.Module):
    """
    The losses of media tokens for names.

    Args:
        model: whose connector of images is aligned.
        names: that there are; an image is given by the number of its name.
        tokenizer: of the decoder.
        kinds: number of kinds of things. A linear layer that is used here alone tells them from media tokens, so that
            they hold what things have in common beside what sets their names apart.
    """

    shares: torch.Tensor
    head: torch.Tensor

    def __init__(
        self,
        model: MMForConditionalGeneration,
        names: Sequence[str],
        tokenizer: Any,
        options: PrototypeOptions,
        kinds: int = 0,
    ):
        super().__init__()
        self.connector = model.model.vision_connector
        self.norm = model.model.language_model.ln_f
        self.dropout, self.name_weight = options.feature_dropout, options.name_weight
        self.kind_weight = options.kind_weight
        ids = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in names]
        words = sorted({word for each in ids for word in each})
        places = {word: place for place, word in enumerate(words)}
        shares = torch.zeros(len(names), len(words))  # (K, C), of a name's words, which weigh alike
        for row, each in zip(shares, ids, strict=True):
            distinct = [places[word] for word in {*each}]
            row[distinct] = 1 / len(distinct)
        self.register_buffer("shares", shares)
        self.register_buffer("head", model.get_output_embeddings().weight[words].detach().clone())  # (C, D)
        self.bias = nn.Parameter(torch.zeros(len(words)))
        self.sharpness = nn.Parameter(torch.ones(()))
        self.kind = nn.Linear(self.head.shape[1], kinds) if kinds else None

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the mean media token, (B, D), of encoder tokens (B, M, W) that are pooled already."""
        states = self.connector.norm(tokens)
        if self.training:  # drops a feature in all tokens of an image
            states = states * dropout(torch.ones_like(states[:, :1]), self.dropout)
        media, _ = self.connector.projector(states, None)  # (B, M, D)
        return media.mean(1) + self.connector.modality.weight

    def logits(self, media: torch.Tensor) -> torch.Tensor:
        """Return the logits of words, (B, C), of mean media tokens (B, D)."""
        return self.norm(media) @ self.head.T + self.bias

    def kind_loss(self, media: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """Return the loss of kinds, given by their numbers (B,), of mean media tokens (B, D); `IGNORED` has none."""
        if self.kind is None or (kinds == IGNORED).all():
            return media.new_zeros(())
        return cross_entropy(self.kind(self.norm(media)), kinds, ignore_index=IGNORED)

    def tag_loss(self, tokens: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        """Return the loss of the tags, which are the names, if the connector has any."""
        tagger = self.connector.tagger
        if tagger is None:
            return tokens.new_zeros(())
        return cross_entropy(tagger.logits(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool)), names)

    def scores(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return how well each name fits, (B, K): the mean of its words' logarithmic probabilities."""
        return self.logits(self.read(tokens)).log_softmax(-1) @ self.shares.T

    def forward(self, tokens: torch.Tensor, names: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """Return the loss of names and kinds, given by their numbers (B,): of words, names among all, tags, kinds."""
        media = self.read(tokens)
        logits = self.logits(media)
        of_words = cross_entropy(logits, self.shares[names])
        of_names = cross_entropy(self.sharpness * (logits @ self.shares.T), names)
        others = self.tag_loss(tokens, names) + self.kind_weight * self.kind_loss(media, kinds)
        return of_words + self.name_weight * of_names + others


def align_with_names(
    model: MMForConditionalGeneration,
    tokenizer: Any,
    tokens: torch.Tensor,
    names: Sequence[str],
    head: ImageNetHead,
    class_names: Sequence[str],
    options: PrototypeOptions | None = None,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
) -> NameReader:
    """
    Align the connector of images; other parts of the model do not change.

    Args:
        tokens: encoder tokens of images, (N, M, W), pooled as the connector pools them.
        names: of the images.
        head: the encoder's own head, whose classes are named by `class_names`; lessons are made of it.
        kinds: of the images, if these are learned too; "" if it is not known.

    Returns:
        what has learned to read names, in evaluation mode.

    Raises:
        ValueError: if the model has tags, but not one for each name.
    """
    options = options or PrototypeOptions()
    known = sorted({*names, *class_names})
    tagger = model.model.vision_connector.tagger
    if tagger is not None and len(tagger.ids) != len(known):
        raise ValueError(
            f"The model has {len(tagger.ids)} tags, but there are {len(known)} names of images and classes. Build the "
            "base again from the corpora that it is trained on."
        )
    numbers = {name: number for number, name in enumerate(known)}
    kinds = [""] * len(names) if kinds is None else kinds
    kind_numbers = {kind: number for number, kind in enumerate(sorted({*kinds} - {""}))}
    targets = torch.tensor(
        [[numbers[name], kind_numbers.get(kind, IGNORED)] for name, kind in zip(names, kinds, strict=True)]
    )
    reader = NameReader(model, known, tokenizer, options, len(kind_numbers)).train()
    alike: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        alike.setdefault(name, []).append(place)
    means = tokens.float().mean(1)  # (N, W)
    lessons, classes = moved_means(means, head, rounds=6, seed=seed)
    lesson_targets = torch.tensor([[numbers[class_names[number]], IGNORED] for number in classes])
    generator = torch.Generator().manual_seed(seed)

    def of_means(rng: random.Random) -> torch.Tensor:
        chosen = torch.randint(len(means), (options.images,), generator=generator)
        others = [rng.choice(alike[names[place]]) for place in chosen.tolist()]
        share = options.blend * torch.rand(options.images, 1, generator=generator)
        taught = torch.randint(len(lessons), (options.lessons,), generator=generator)
        batch = torch.cat([means[chosen] * (1 - share) + means[others] * share, lessons[taught]])
        return reader(batch[:, None], *torch.cat([targets[chosen], lesson_targets[taught]]).unbind(1))

    def of_tokens(rng: random.Random) -> torch.Tensor:
        chosen = torch.randint(len(tokens), (options.token_images,), generator=generator)
        return reader(tokens[chosen].float(), *targets[chosen].unbind(1))

    with tags_dropped(model, options.feature_dropout):
        learn(reader, of_means, options.steps, options.learning_rate, options.weight_decay, "naming means")
        learn(
            reader, of_tokens, options.token_steps, options.token_learning_rate, options.weight_decay, "naming tokens"
        )
    return reader.eval()


@contextmanager
def tags_dropped(model: MMForConditionalGeneration, share: float) -> Iterator[None]:
    """Let the tags of images drop this share of the encoder's features in training."""
    tagger = model.model.vision_connector.tagger
    if tagger is None:
        yield
        return
    before, tagger.dropout = tagger.dropout, share
    try:
        yield
    finally:
        tagger.dropout = before


def learn(reader: NameReader, step: Step, steps: int, learning_rate: float, weight_decay: float, title: str) -> None:
    """Train the connector and the reader's bias by a loss."""
    connector = [*reader.connector.norm.parameters(), *reader.connector.projector.parameters()]
    connector += reader.connector.modality.parameters()
    if (tagger := reader.connector.tagger) is not None:
        connector += [*tagger.reduce.parameters(), *tagger.score.parameters()]
    others = [reader.bias, reader.sharpness, *(reader.kind.parameters() if reader.kind is not None else ())]
    groups = [{"params": connector, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    rng = random.Random(title)
    optimize(groups, lambda: step(rng), steps, learning_rate, title)


def optimize(
    groups: list[dict[str, Any]], loss: Callable[[], torch.Tensor], steps: int, learning_rate: float, title: str
) -> None:
    """Train groups of parameters, as AdamW takes them, by a loss computed in each step, with a cosine's rate."""
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    parameters = [parameter for group in groups for parameter in group["params"]]
    with show_progress(total=steps, desc=title) as bar:
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            bar.update()


def stand_in_for_speech(model: MMForConditionalGeneration, batch: Mapping[str, torch.Tensor]) -> None:
    """
    Let the stand-ins start as what cross-attention to speech adds to a token on average.

    Args:
        batch: transcripts of speech, without images, as a collator makes it.
    """
    decoder = model.model.language_model
    learned = batch["labels"] != IGNORED  # (B, L)
    with torch.no_grad(), ExitStack() as stack:
        for block in decoder.h:

            def keep(module: nn.Module, inputs: Any, output: Any, block: nn.Module = block) -> None:
                block.get_parameter("vision_stand_in.weight").copy_(output[0][learned].mean(0))  # (D,)

            stack.callback(block.crossattention.register_forward_hook(keep).remove)
        model.eval()(**{name: value for name, value in batch.items() if name != "labels"})


def open_blocks(
    model: MMForConditionalGeneration,
    questions: Mapping[str, torch.Tensor],
    ends: Sequence[int] = (),
    strength: float = 2.0,
    seed: int = 0,
) -> None:
    """
    Let images' cross-attention start as what the alignment has made of media tokens, instead of from zero.

    Media tokens lie where the decoder's words lie. So a query starts as the word of its token, which least squares
    find in the token's state, less the mean of all words; and keys as what the head would see: a token attends to the
    image that shows its word, sharply in the first block. What the last block reads is added as it is, in a rotation
    and back, so that the head reads the words of names from the first step. An optimizer that moves each weight by
    about the learning rate would take hundreds of steps to get there.

    If there are tags, the last block looks for the word of its token in the half of a tag that holds the word before,
    and reads the word to write. The first word of a tag stands behind the tokens that questions end in.

    Args:
        questions: about images, as a collator makes a batch of them; many words, from which states are learned.
        ends: tokens that questions end in.
        strength: of what the last block adds.
    """
    decoder = model.model.language_model
    blocks = list(decoder.vision_cross_blocks.values())
    generator = torch.Generator().manual_seed(seed)
    states = states_before(model, questions)
    vocabulary = layer_norm(decoder.wte.weight)
    tagger = model.model.vision_connector.tagger
    if tagger is not None:
        begin_tags(tagger, vocabulary[list(ends)].sum(0))
    words = vocabulary[questions["input_ids"][questions["attention_mask"].bool()]]  # (T, D)
    width = words.shape[1]
    with torch.no_grad():
        scale = decoder.ln_f.weight / decoder.ln_f.weight.abs().mean()  # (D,), as the head weighs a media token
        for block, given in zip(blocks, states, strict=True):
            turned, carried = (torch.linalg.qr(torch.randn(width, width, generator=generator))[0] for _ in range(2))
            attention = block.cross_attn
            sharpness = SHARPNESS if block is blocks[0] else SOFTNESS
            attention.q_attn.weight.copy_(sharpness * ridge(layer_norm(given), words) @ turned)
            attention.q_attn.bias.copy_(-sharpness * vocabulary.mean(0) @ turned)
            keys = sharpness * scale[:, None] * turned
            if block is blocks[-1]:
                attention.c_proj.weight.copy_(strength * carried.T)
                if tagger is not None:
                    keys = SOFTNESS * turned.roll(width // 2, 0)  # of the word before
            attention.c_attn.weight.copy_(torch.cat([keys, carried], dim=1))
            block.gate_query.bias.fill_(2.0)  # open by 0.88


def begin_tags(tagger: Tagger, before: torch.Tensor) -> None:
    """Let the first token of each tag that is shown stand behind a vector (D,), in place of a word before it."""
    firsts = slice(None, None, tagger.ids.shape[1])
    with torch.no_grad():
        tagger.places.weight[firsts] += before.roll(len(before) // 2)


def states_before(model: MMForConditionalGeneration, batch: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the states of all real tokens of a batch before each of images' cross-attention blocks, (T, D) each."""
    blocks = list(model.model.language_model.vision_cross_blocks.values())
    real, found = batch["attention_mask"].bool(), {}

    def keep(module: nn.Module, inputs: Any) -> None:
        found[module] = inputs[0][real]

    with torch.no_grad(), ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(keep).remove)
        model.eval()(**{name: value for name, value in batch.items() if name != "labels"})
    return [found[block] for block in blocks]


def layer_norm(states: torch.Tensor) -> torch.Tensor:
    return nn.functional.layer_norm(states.detach(), states.shape[-1:])


def ridge(given: torch.Tensor, wanted: torch.Tensor, penalty: float = 30.0) -> torch.Tensor:
    """Return the linear map (D, D) that takes states (T, D) to others by least squares, with small weights."""
    width = given.shape[1]
    return torch.linalg.solve(given.T @ given + penalty * torch.eye(width), given.T @ wanted)
