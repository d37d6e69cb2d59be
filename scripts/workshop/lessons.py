# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Lessons about the 1,000 classes of ImageNet from the encoder's own head, without an image of most of them.

The head says what a mean of encoder tokens must look like for a class. Tokens of any image are moved until the head
sees the class in them, and the model learns to name it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from modeling_mm.data import ChatRow, media_parts
from modeling_mm.training import CachedCollator

# Shape legend: N images, L encoder tokens of an image, W the encoder's width, C classes.

CLASS = "class_index"  # key of an image part whose tokens are moved
MOST = 6.0  # of an activation: the encoder ends in ReLU6
FEWEST_TOKENS = 0.15  # share of the tokens that show the class
KEPT = 0.6  # most that is kept of the image's own tokens
FEATURES = (0.15, 0.6)  # share of the class's features that appear
SURE = (0.5, 0.98)  # probability of the class
HALVINGS = 14
BLENDED = "caption/en"  # task whose images are blended with others of the same name
EVENED, BLEND = 1.0, 0.7  # most that tokens move to their mean, and to the mean of another image
STRONGEST = 400.0  # that features of a class are added


@dataclass(frozen=True)
class ImageNetHead:
    """The classifier of an image encoder: weight (C, W) and bias (C,) for the mean of its tokens."""

    weight: torch.Tensor
    bias: torch.Tensor

    def probabilities(self, states: torch.Tensor) -> torch.Tensor:
        """Return the probability of each class, (C,), for tokens (L, W)."""
        return torch.softmax(self.weight @ states.mean(0) + self.bias, dim=0)

    def moved(self, states: torch.Tensor, number: int, rng: np.random.Generator) -> torch.Tensor:
        """
        Return tokens (L, W) in which the head sees a class, drawn at random around those of an image.

        The features that speak for the class are added to a rectangle of the tokens, as strongly as a probability
        drawn from `SURE` needs.
        """
        length, width = states.shape
        side = int(length**0.5)
        height, breadth = rng.integers(max(1, int(side * FEWEST_TOKENS**0.5)), side + 1, 2)
        top, left = rng.integers(0, side - height + 1), rng.integers(0, side - breadth + 1)
        place = torch.zeros(side, side)
        place[top : top + height, left : left + breadth] = torch.from_numpy(
            rng.uniform(0.5, 1.5, (height, breadth)).astype(np.float32)
        )
        kept = torch.from_numpy((rng.random(width) < rng.uniform(*FEATURES)).astype(np.float32))
        feature = torch.relu(self.weight[number]) * kept  # (W,)
        added = place.flatten()[:, None] * feature  # (L, W)
        states = states * rng.uniform(0.0, KEPT)
        wanted = rng.uniform(*SURE)
        low, high = 0.0, STRONGEST
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            seen = self.probabilities((states + middle * added).clamp(max=MOST))[number]
            low, high = (low, middle) if seen > wanted else (middle, high)
        return (states + high * added).clamp(max=MOST)


def moved_means(means: torch.Tensor, head: ImageNetHead, rounds: int, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """
    Return means of tokens in which the head sees a class, `rounds` for each class, and the numbers of the classes.

    As [`ImageNetHead.moved`], without a place in the image, and for all of them at once.

    Args:
        means: of images to start from, (N, W).

    Returns:
        (rounds * C, W) and the classes.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(rows: int, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(rows, 1, generator=generator)

    count, width = head.weight.shape
    numbers = torch.arange(count)
    found = []
    for _ in range(rounds):
        start = means[torch.randint(len(means), (count,), generator=generator)] * uniform(count, 0.0, KEPT)
        kept = torch.rand(count, width, generator=generator) < uniform(count, *FEATURES)
        added = torch.relu(head.weight) * kept  # (C, W)
        wanted = uniform(count, *SURE)[:, 0]
        low, high = torch.zeros(count, 1), torch.full((count, 1), STRONGEST)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            logits = (start + middle * added).clamp(max=MOST) @ head.weight.T + head.bias
            enough = (logits.softmax(-1)[numbers, numbers] > wanted)[:, None]
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        found.append((start + high * added).clamp(max=MOST))
    return torch.cat(found), numbers.repeat(rounds).tolist()


class ClassLessons(Dataset):
    """
    Questions about images of all classes; the tokens of the images are moved by `LessonCollator`.

    Args:
        names: the answer of each class.
        images: paths of images to start from.
        question: of every lesson.
        rounds: lessons for each class.
    """

    def __init__(self, names: Sequence[str], images: Sequence[str], question: str, rounds: int = 8):
        self.names, self.images, self.question, self.rounds = names, images, question, rounds
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.names) * self.rounds

    def __getitem__(self, index: int) -> ChatRow:
        number = index % len(self.names)
        rng = np.random.default_rng([index, self.epoch])
        image = {"type": "image", "path": self.images[int(rng.integers(len(self.images)))], CLASS: number}
        content = [image, {"type": "text", "text": self.question}]
        answer = [{"type": "text", "text": self.names[number]}]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
        return ChatRow(messages, "lesson/en", f"lesson/{number}/{index // len(self.names)}", self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, on which image and tokens depend."""
        self.epoch = epoch


class LessonCollator(CachedCollator):
    """
    `CachedCollator` that moves the tokens of images to the class that their part names, and blends captioned images.

    In training the tokens of an image that is to be named move towards their mean, and towards the mean of another
    image with the same name. What two hands share of a thing is what a third hand will draw.

    Args:
        head: the encoder's head.
        alike: paths of images by their caption; nothing is blended without them.
        kwargs: those of `CachedCollator`.
    """

    def __init__(
        self, *args: Any, head: ImageNetHead, alike: Mapping[str, Sequence[str]] | None = None, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.head, self.alike = head, alike or {}

    def windows(self, row: ChatRow, number: int, part: dict[str, Any], is_prompt: bool) -> list[torch.Tensor]:
        windows = super().windows(row, number, part, is_prompt)
        blends = self.shows_views and row.task == BLENDED and row.answer in self.alike
        if CLASS not in part and not blends:
            return windows
        seed = hashlib.sha256(f"{self.cache.seed}/{row.epoch}/{row.id}".encode()).digest()
        rng = np.random.default_rng(list(seed[:8]))
        if CLASS in part:
            return [self.head.moved(window, part[CLASS], rng) for window in windows]
        other = {"type": "image", "path": str(rng.choice(self.alike[row.answer]))}
        (states,) = self.cache.states(other, int(rng.integers(self.cache.views["image"])))
        return [blended(window, states.to(window.dtype), rng) for window in windows]


def blended(states: torch.Tensor, other: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return tokens (L, W) on a random way to their mean, and from there to the mean of another image's."""
    own, others = states.mean(0), other.mean(0)
    states = torch.lerp(states, own.expand_as(states), float(rng.uniform(0.0, EVENED)))
    return torch.lerp(states, others.expand_as(states), float(rng.uniform(0.0, BLEND)))


def sure_rows(
    rows: Sequence[ChatRow], collator: CachedCollator, head: ImageNetHead, names: Sequence[str], least: float = 0.5
) -> list[ChatRow]:
    """
    Return questions about the images that the head is sure about, answered by its name for them.

    Args:
        rows: questions about one image each.
        collator: whose cache holds the images.
        least: probability from which on the head is believed.
    """
    found = []
    for row in rows:
        (part,) = media_parts(row.messages)
        probabilities = head.probabilities(collator.cache.states(part)[0])
        if probabilities.max() > least:
            answer = [{"type": "text", "text": names[int(probabilities.argmax())]}]
            messages = [*row.prompt, {"role": "assistant", "content": answer}]
            found.append(replace(row, messages=messages, task="photograph/en", id=f"sure/{row.id}"))
    return found
