# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Explanations by changed inputs: integrated gradients, and occlusion, the check on all others.

Both work with any connector and any attention implementation, as they look at inputs and scores alone.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .places import Places, blank_media
from .target import CHUNK, Target

# The shares of the work that is done, then the relevance of places (W, K) and of text tokens (W, L). A step enters no
# context that outlasts it, so that the thread may do other work between two.
Steps = Generator[float, None, tuple[torch.Tensor, torch.Tensor]]

# Shape legend: W words, K places, L text tokens, D width, n a chunk of steps.

STEPS = 32  # of the path that gradients are integrated on
STEP_CHUNK = 8  # steps of one forward
MOST_PATCHES = 8  # rows and columns of an image that are occluded one by one; a finer grid is occluded in blocks
MOST_MOMENTS = 32  # likewise of all audio


def finish(steps: Generator[float, None, Any]) -> Any:
    """Return the result of steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def integrated_gradients(target: Target, places: Places, steps: int = STEPS) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the relevance of places (W, K) and of text tokens (W, L); see [`integrate`]."""
    return finish(integrate(target, places, steps))


def integrate(target: Target, places: Places, steps: int = STEPS) -> Steps:
    """
    Return the relevance of places (W, K) and of text tokens (W, L) by [integrated gradients](https://arxiv.org/abs/1703.01365).

    Gradients of the scores are averaged on the straight path from blank media, and zero embeddings of the prompt's
    words, to the real ones, at the middle of each step. The sum of all relevances is the difference of the scores.

    Args:
        steps: number of steps of the path
    """
    media, blank = target.media, blank_media(target.media)
    ids = target.text["input_ids"]
    with torch.no_grad():
        embeddings = target.model.get_input_embeddings()(ids)  # (1, L, D)
    is_word = torch.zeros_like(ids, dtype=torch.bool)
    for start, stop in target.prompt_spans:
        is_word[:, start:stop] = True
    blank_text = embeddings.masked_fill(is_word[..., None], 0.0)
    ends = {name: media[name].float() for name in blank}
    sums = {
        name: torch.zeros(len(target.words), *tensor.shape[1:], device=tensor.device) for name, tensor in ends.items()
    }
    text_sum = embeddings.new_zeros(len(target.words), *embeddings.shape[1:], dtype=torch.float32)
    middles = (torch.arange(steps, device=ids.device) + 0.5) / steps
    for number, share in enumerate(middles.split(STEP_CHUNK), 1):
        with differentiable_encoders(target.model), torch.enable_grad():
            points = {name: between(blank[name].float(), end, share).requires_grad_() for name, end in ends.items()}
            text = between(blank_text, embeddings, share.to(embeddings.dtype)).requires_grad_()
            rest = {name: tensor.expand(len(share), *tensor.shape[1:]) for name, tensor in media.items()}
            scores = target.scores({**rest, **points}, inputs_embeds=text)  # (n, W)
            for word in range(len(target.words)):
                inputs = [*points.values(), text]
                *grads, text_grad = torch.autograd.grad(scores[:, word].sum(), inputs, retain_graph=True)
                for name, grad in zip(points, grads, strict=True):
                    sums[name][word] += grad.sum(0)
                text_sum[word] += text_grad.float().sum(0)
        yield min(1.0, number * STEP_CHUNK / steps)
    means = {name: total / steps * (ends[name] - blank[name].float()) for name, total in sums.items()}
    of_text = (text_sum / steps * (embeddings - blank_text).float()).sum(-1)  # (W, L)
    return places.pool(means) if means else of_text[:, :0], of_text


def between(start: torch.Tensor, end: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return points between two tensors (1, ...) at shares (n,) of the way, (n, ...)."""
    return start + share.view(-1, *[1] * (end.ndim - 1)) * (end - start)


@contextmanager
def differentiable_encoders(model: Any) -> Iterator[None]:
    """Let gradients reach the inputs of frozen encoders, which record none otherwise."""
    frozen = []
    for modality in model.config.modalities:
        parameters = list(getattr(model.model, modality.tower_attribute).parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            frozen.append(next(parameter for parameter in parameters if parameter.is_floating_point()))
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def occlusion(target: Target, places: Places) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the relevance of places (W, K) and of text tokens (W, L); see [`occlude`]."""
    return finish(occlude(target, places))


def occlude(target: Target, places: Places) -> Steps:
    """
    Return how much each score falls if a place is blank (W, K), or if a word of the prompt is masked (W, L).

    A grid finer than 8 by 8, and audio of more than 32 moments, are occluded in blocks, whose places share the fall.
    """
    blocks = torch.stack([*occluded_blocks(places), torch.zeros(places.count, dtype=torch.bool)])[:-1]  # (blocks, K)
    media, blank = target.media, blank_media(target.media)
    words = torch.eye(len(target.prompt_words), dtype=torch.bool)
    whole = target.scores_in_chunks(media)  # (1, W)
    found, runs = whole[:0], len(blocks) + len(words)
    for some in blocks.split(CHUNK) if len(blocks) else ():
        found = torch.cat([found, target.scores_in_chunks(places.hide(some, media, blank))])
        yield len(found) / runs
    shares = blocks.to(found) / blocks.sum(1, keepdim=True).to(found)
    relevance = (whole - found).T @ shares  # (W, K)
    of_text = found.new_zeros(len(target.words), target.length)
    for first in range(0, len(words), CHUNK):
        some = words[first : first + CHUNK]
        rows = {name: tensor.expand(len(some), *tensor.shape[1:]) for name, tensor in media.items()}
        falls = whole - target.scores_in_chunks(rows, target.without_words(some))  # (prompt words, W)
        for (start, stop), fall in zip(target.prompt_spans[first:], falls, strict=False):
            of_text[:, start:stop] = (fall / (stop - start))[:, None]
        yield (len(blocks) + first + len(some)) / runs
    return relevance, of_text


def occlusion_runs(target: Target, places: Places) -> int:
    """Return the number of changed rows that an occlusion scores."""
    return sum(1 for _ in occluded_blocks(places)) + len(target.prompt_words)


def occluded_blocks(places: Places) -> Iterator[torch.Tensor]:
    """Yield the places (K,) that are hidden together: squares of patches of an image, and runs of moments."""
    images, rows, columns = places.grid
    side = -(-max(rows, columns) // MOST_PATCHES)
    for image in range(images):
        for row in range(0, rows, side or 1):
            for column in range(0, columns, side or 1):
                patches = torch.zeros(places.grid, dtype=torch.bool)
                patches[image, row : row + side, column : column + side] = True
                yield torch.cat([patches.flatten(), torch.zeros(len(places.moments), dtype=torch.bool)])
    run = -(-len(places.moments) // MOST_MOMENTS)
    for start in range(0, len(places.moments), run or 1):
        hidden = torch.zeros(places.count, dtype=torch.bool)
        hidden[places.patches :][start : start + run] = True
        yield hidden
