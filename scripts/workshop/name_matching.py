# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
The first cross-attention block learns to find what a name means, before the decoder learns to say it.

The tokens of a name in a question look for its image, and the attention that goes to the image, and not to the sink,
says how well it fits. That can be learned in a minute by names and images that compete in a batch, as the states
before the first block come from frozen weights. What was found is added to the token as two fixed vectors: one for
that there is such an image, one for the image's number. The frozen self-attention behind the block carries both to
the end of the question, where the answer stands.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy, cross_entropy, dropout

from modeling_mm import MMForConditionalGeneration
from modeling_mm.batching import IGNORED
from modeling_mm.cross_attention import GatedCrossAttentionBlock

from .prototypes import optimize, tags_dropped

# Shape legend: B images and names of a batch, T tokens of a name, M media tokens an image, W the encoder's width,
# D the decoder's, H heads, d their width.

NUMBERED = 4.0  # norm of the vectors of an item's number, above what media tokens have in their direction by chance
MOST = 6  # tokens of a name, from its end, next to the answer


@dataclass(frozen=True)
class MatchingOptions:
    """
    Options of the matching of names and images.

    Args:
        steps, batch: names and images of a step.
        learning_rate: peak of a cosine.
        feature_dropout: of the encoder's features; with so much of it an image of training is named as well as one by
            an unseen hand.
        strength: of the vectors that are added, beside the norm of a token.
    """

    steps: int = 500
    batch: int = 96
    learning_rate: float = 1e-3
    feature_dropout: float = 0.65
    strength: float = 0.3


def first_block(model: MMForConditionalGeneration) -> GatedCrossAttentionBlock:
    """Return the first cross-attention block of images."""
    return cast(GatedCrossAttentionBlock, next(iter(model.model.language_model.vision_cross_blocks.values())))


class NameMatcher(nn.Module):
    """
    The fit of names and images, by the attention of their tokens in one cross-attention block.

    Args:
        model: whose first block of images learns.
        options: see there.
    """

    def __init__(self, model: MMForConditionalGeneration, options: MatchingOptions):
        super().__init__()
        self.connector = model.model.vision_connector
        self.block = first_block(model)
        self.words = (model.get_input_embeddings(),)  # a tuple, as they are no part of it
        self.dropout = options.feature_dropout
        self.sharpness = nn.Parameter(torch.tensor(10.0))

    def learned(self) -> list[nn.Parameter]:
        attention = self.block.cross_attn
        parts = (attention.q_attn, attention.c_attn, attention.get_submodule("sink"))
        return [*(parameter for part in parts for parameter in part.parameters()), self.sharpness]

    def media(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return media tokens of pooled encoder tokens (B, M, W), (B, M, D), and those of tags behind them."""
        states = self.connector.norm(tokens)
        if self.training:  # drops a feature in all tokens of an image
            states = states * dropout(torch.ones_like(states[:, :1]), self.dropout)
        media, _ = self.connector.projector(states, None)
        media = media + self.connector.positions(torch.arange(media.shape[1])) + self.connector.modality.weight
        if self.connector.tagger is None:
            return media
        real = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        return self.connector.tagger(tokens, real, (media, real), self.words[0])[0]

    def forward(self, names: torch.Tensor, real: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """
        Return the share of attention that the tokens of each name give to each image, (B names, B images).

        Args:
            names: states of their tokens before the block, (B, T, D)
            real: which of them are tokens of the name, (B, T)
            tokens: pooled encoder tokens of images, (B, M, W)
        """
        attention = self.block.cross_attn
        (queries,) = attention.split_heads(attention.q_attn(self.block.norm_attn(names)), 1)  # (B, H, T, d)
        keys, _ = attention.keys_and_values(self.media(tokens))  # (B, H, M, d)
        scores = torch.einsum("ahtd,bhmd->abhtm", queries, keys) * attention.scaling
        sink = attention.get_parameter("sink.weight").view(keys.shape[1], -1)  # (H, d)
        nothing = torch.einsum("ahtd,hd->aht", queries, sink) * attention.scaling
        seen = (scores.logsumexp(-1) - nothing[:, None]).sigmoid()  # (B, B, H, T)
        weights = real / real.sum(-1, keepdim=True)  # (B, T)
        return torch.einsum("abht,at->ab", seen, weights) / seen.shape[2]


def match_names(
    model: MMForConditionalGeneration,
    tokens: torch.Tensor,
    names: Sequence[str],
    states: Mapping[str, Sequence[torch.Tensor]],
    options: MatchingOptions | None = None,
    seed: int = 0,
) -> NameMatcher:
    """
    Teach the first block to find the images of names, and let it add what it found.

    Args:
        tokens: encoder tokens of images, (N, M, W), pooled as the connector pools them.
        names: of the images.
        states: of the tokens of each name before the block, (T, D), in one question or several.

    Returns:
        the matcher, in evaluation mode.

    Raises:
        ValueError: for another number of names than of images.
    """
    if len(tokens) != len(names):
        raise ValueError(
            f"{len(tokens)} images have {len(names)} names. Give each image, and each view of it, its name."
        )
    options = options or MatchingOptions()
    matcher = NameMatcher(model, options).train()
    known = [place for place, name in enumerate(names) if name in states]
    rng = random.Random(seed)

    def loss() -> torch.Tensor:
        chosen = rng.sample(known, min(options.batch, len(known)))
        said = [names[place] for place in chosen]
        padded = nn.utils.rnn.pad_sequence([rng.choice(states[name])[-MOST:] for name in said], batch_first=True)
        seen = matcher(padded, padded.any(-1), tokens[chosen].float())
        fits = torch.tensor([[one == other for other in said] for one in said])
        return matching_loss(seen, fits, matcher.sharpness)

    with tags_dropped(model, options.feature_dropout):
        optimize([{"params": matcher.learned()}], loss, options.steps, options.learning_rate, "matching names")
    norm = torch.cat([state for each in states.values() for state in each]).norm(dim=-1).mean().item()
    say_what_was_found(model, options.strength * norm, seed)
    return matcher.eval()


def matching_loss(seen: torch.Tensor, fits: torch.Tensor, sharpness: torch.Tensor) -> torch.Tensor:
    """
    Return the loss of shares of attention (B, B): those that fit are to be one and largest, others zero.

    Args:
        fits: (B, B) bool.
        sharpness: of the shares as scores.
    """
    losses = binary_cross_entropy(seen, fits.float(), reduction="none")
    balanced = (losses[fits].mean() + losses[~fits].mean()) / 2
    targets = fits / fits.sum(-1, keepdim=True)
    scores = sharpness * seen
    return balanced + (cross_entropy(scores, targets) + cross_entropy(scores.T, targets)) / 4


def say_what_was_found(model: MMForConditionalGeneration, strength: float, seed: int = 0) -> None:
    """
    Let the first block add a vector where a token found its image, and another one for the image's number.

    The first of a head's values is one for every media token, the second is the item's sign; both are written as
    vectors of this norm if all attention finds them. The other values stay as they are and are not written yet.
    """
    attention, items = first_block(model).cross_attn, model.model.vision_connector.items
    width, per_head = attention.c_proj.weight.shape[0], attention.head_dim
    heads = width // per_head
    generator = torch.Generator().manual_seed(seed)
    found, number, sign = (nn.functional.normalize(torch.randn(width, generator=generator), dim=0) for _ in range(3))
    with torch.no_grad():
        items.weight.zero_()
        items.weight[0], items.weight[1] = NUMBERED * sign, -NUMBERED * sign
        values = slice(width, 2 * width)
        for head in range(heads):
            first = head * per_head
            attention.c_attn.weight[:, values][:, first : first + 2] = 0.0
            attention.c_attn.weight[:, values][:, first + 1] = sign / NUMBERED
            attention.c_attn.bias[values][first : first + 2] = torch.tensor([1.0, 0.0])
            attention.c_proj.weight[first] = strength / heads * found
            attention.c_proj.weight[first + 1] = strength / heads * number


def name_states(
    model: MMForConditionalGeneration, batch: Mapping[str, torch.Tensor], lengths: Sequence[int]
) -> list[torch.Tensor]:
    """
    Return the states of the last tokens of questions before the first block of images, (T, D) each.

    Args:
        batch: questions that end in a name and a question mark, as a collator makes it.
        lengths: tokens of each name.
    """
    ends = (first_answer_tokens(batch) - 1).tolist()  # the question mark, at which the answer is predicted
    spans = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    return states_of_spans(model, batch, spans)


def spoken_states(
    model: MMForConditionalGeneration, batch: Mapping[str, torch.Tensor], lengths: Sequence[int]
) -> list[torch.Tensor]:
    """
    Return the states of the first tokens of answers before the first block of images, (T, D) each.

    Args:
        batch: questions whose answers begin with a name that was heard.
        lengths: tokens of each name.
    """
    starts = first_answer_tokens(batch).tolist()
    spans = [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return states_of_spans(model, batch, spans)


def first_answer_tokens(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the place of the first token of each answer, (B,)."""
    return (batch["labels"] != IGNORED).int().argmax(-1)


def states_of_spans(
    model: MMForConditionalGeneration, batch: Mapping[str, torch.Tensor], spans: Sequence[slice]
) -> list[torch.Tensor]:
    """Return the states before the first block of images of one span of tokens a row."""
    found: list[torch.Tensor] = []
    handle = first_block(model).register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    with torch.no_grad():
        model.eval()(**{name: value for name, value in batch.items() if name != "labels"})
    handle.remove()
    return [row[span] for row, span in zip(found[0], spans, strict=True)]


def close_over_transcripts(
    model: MMForConditionalGeneration,
    transcripts: Sequence[Mapping[str, torch.Tensor]],
    others: Sequence[Mapping[str, torch.Tensor]],
    heard: Sequence[tuple[Mapping[str, torch.Tensor], torch.Tensor]] = (),
    steps: int = 400,
) -> None:
    """
    Close the blocks of images over tokens that write down speech, to which an image says nothing.

    The gate of each block over tokens is a logistic function, learned from the tokens of these batches. It is done
    block by block, as what a block adds changes the states before the next. What blocks add changes while they learn,
    so that it is done again now and then. The mode of the model stays.

    Args:
        transcripts: batches of transcripts beside an image, as a collator makes them.
        others: batches of questions about images, whose tokens keep the gates open.
        heard: batches of answers that begin with what was heard, each with the tokens (B, L) from which that is
            predicted. The first block is open over them and looks for the image that they name; the others are closed,
            so that it is heard as it is without an image.
    """
    was_training = model.training
    model.eval()
    first = first_block(model)
    for block in model.model.language_model.vision_cross_blocks.values():
        gate = block.gate_token
        assert isinstance(gate, nn.Linear), "the model has cross_attention_token_gate"
        closed = [gated_tokens(model, gate, batch, written_tokens(batch)) for batch in transcripts]
        opened = [gated_tokens(model, gate, batch, batch["attention_mask"].bool()) for batch in others]
        for batch, words in heard:
            real = batch["attention_mask"].bool()
            opened.append(gated_tokens(model, gate, batch, real if block is first else real & ~words))
            if block is not first:
                closed.append(gated_tokens(model, gate, batch, words))
        learn_gate(gate, torch.cat(closed), torch.cat(opened), steps)
    model.train(was_training)


def learn_gate(gate: nn.Linear, closed: torch.Tensor, opened: torch.Tensor, steps: int) -> None:
    """Learn a logistic function (D -> 1) that is 0 for some states (T, D) and 1 for others, which count as much."""
    states = torch.cat([closed, opened])  # (T, D)
    is_open = torch.cat([torch.zeros(len(closed)), torch.ones(len(opened))])
    balance = torch.where(is_open.bool(), len(states) / len(opened), len(states) / len(closed)) / 2
    weight, bias = nn.Parameter(torch.zeros(states.shape[1])), nn.Parameter(torch.zeros(()))

    def loss() -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(states @ weight + bias, is_open, balance)

    optimize([{"params": [weight, bias], "weight_decay": 0.0}], loss, steps, 3e-2, "closing over transcripts")
    with torch.no_grad():
        gate.weight.copy_(weight[None])
        gate.bias.fill_(bias.item())


def words_before(batch: Mapping[str, torch.Tensor], end: int) -> torch.Tensor:
    """Return the tokens (B, L) from which the tokens of answers before the last `end` are predicted."""
    is_end = batch["labels"].eq(end).int()
    ends_behind = is_end.flip(-1).cumsum(-1).flip(-1) - is_end  # of each token, (B, L)
    words = (batch["labels"] != IGNORED) & (ends_behind > 0)
    return nn.functional.pad(words[:, 1:], (0, 1))


def written_tokens(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the tokens (B, L) of answers, and those from which their first tokens are predicted."""
    answer = batch["labels"] != IGNORED
    return answer | nn.functional.pad(answer[:, 1:], (0, 1))


def gated_tokens(
    model: MMForConditionalGeneration, gate: nn.Linear, batch: Mapping[str, torch.Tensor], chosen: torch.Tensor
) -> torch.Tensor:
    """Return the states (T, D) from which a gate is computed, of the chosen tokens (B, L)."""
    found: list[torch.Tensor] = []
    handle = gate.register_forward_hook(lambda module, inputs, output: found.append(inputs[0][chosen]))
    with torch.no_grad():
        model(**{name: value for name, value in batch.items() if name != "labels"})
    handle.remove()
    return found[0]
