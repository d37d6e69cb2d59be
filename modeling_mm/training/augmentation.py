# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Samples changed at random, yet always the same way: what is drawn depends on the seed, the epoch and the sample alone.

Neither the order of samples, nor the batch, nor the number of workers or processes plays a part.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback

from ..audio import load_audio
from ..data.chat_row import ChatRow, Message, media_parts, media_source, turn_text
from ..images import load_image, to_numpy
from .audio_augmentation import SoundAugmentation
from .image_augmentation import PictureAugmentation

__all__ = ["Augmentation", "ModalityDropout", "PictureAugmentation", "SetEpochCallback", "SoundAugmentation"]

MODALITIES = ("image", "audio")
# Draws for one purpose tell nothing of those for another.
PURPOSES = ("media", "features", "dropout")


@dataclass
class Augmentation:
    """
    What may happen to the media of training samples; see `PictureAugmentation` and `SoundAugmentation`.

    Args:
        picture: changes of pictures; off by default.
        sound: changes of sounds; off by default.
        seed: other draws for another seed.
    """

    picture: PictureAugmentation = field(default_factory=PictureAugmentation)
    sound: SoundAugmentation = field(default_factory=SoundAugmentation)
    seed: int = 0

    def change_media(self, row: ChatRow, rate: int | None) -> ChatRow:
        """
        The row with its pictures and sounds loaded and changed; those that nothing happens to are left alone.

        Args:
            rate: the audio encoder's sampling rate; None for a model that does not hear.
        """
        generator = generator_of(row, self.seed, "media")
        is_flipped = generator.random() < self.picture.flip and self._may_flip(row)

        def change(part: dict[str, Any]) -> dict[str, Any]:
            if part["type"] == "image" and self.picture.is_on:
                picture = cast(Image.Image, load_image(media_source(part)))
                return {"type": "image", "image": self.picture.apply(picture, is_flipped, generator)}
            if part["type"] == "audio" and self.sound.changes_samples and rate is not None:
                samples = load_audio(media_source(part), rate, part.get("sampling_rate"))
                return {"type": "audio", "audio": self.sound.apply(samples, rate, generator), "sampling_rate": rate}
            return part

        return replace(row, messages=[change_turn(turn, change) for turn in row.messages])

    def change_features(self, row: ChatRow, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A row's tensors with its spectrograms masked; `feature_attention_mask` says which frames are real."""
        name = next((name for name in ("input_features", "input_values") if name in features), None)
        if name is None or not self.sound.masks_features:
            return features
        time_axis = 2 if name == "input_features" else 1
        generator = generator_of(row, self.seed, "features")
        return {
            **features,
            name: self.sound.mask(features[name], features["feature_attention_mask"], time_axis, generator),
        }

    def _may_flip(self, row: ChatRow) -> bool:
        has_text = any(part.get("has_text", False) for part in media_parts(row.messages))
        return self.picture.may_flip(row.task, [turn_text(turn) for turn in row.messages], has_text)


@dataclass
class ModalityDropout:
    """
    Leaves one modality of a sample out, so that a model learns to answer from the other alone.

    All pictures or all sounds of a sample go, with their placeholders; the text stays. Something to answer from always
    remains: samples with media of one modality only are never touched, and never do both go.

    Args:
        image: how likely the pictures of a sample with pictures and sounds are left out.
        audio: how likely its sounds are; at most 1 with `image` together.
        seed: other draws for another seed.
        unchanged_tasks: tasks, or what stands before the "/" of theirs, that cannot be done without both.
    """

    image: float = 0.0
    audio: float = 0.0
    seed: int = 0
    unchanged_tasks: tuple[str, ...] = ("match", "match-human", "sound-match")

    def __post_init__(self):
        for name in MODALITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` of ModalityDropout must lie in [0, 1], got {getattr(self, name)}")
        if self.image + self.audio > 1:
            raise ValueError(
                f"`image` and `audio` of ModalityDropout must not exceed 1 together, got {self.image} and {self.audio}"
            )

    def __call__(self, row: ChatRow) -> ChatRow:
        """The row without its pictures, or without its sounds, or as it is."""
        kinds = {part["type"] for part in media_parts(row.messages)}
        if len(kinds) < len(MODALITIES) or self._is_unchanged(row.task):
            return row
        drawn = generator_of(row, self.seed, "dropout").random()
        if drawn >= self.image + self.audio:
            return row
        dropped = "image" if drawn < self.image else "audio"
        messages = [
            {**turn, "content": [part for part in turn["content"] if part["type"] != dropped]} for turn in row.messages
        ]
        return replace(row, messages=messages)

    def _is_unchanged(self, task: str | None) -> bool:
        return task is not None and (task in self.unchanged_tasks or task.split("/")[0] in self.unchanged_tasks)


class SetEpochCallback(TrainerCallback):
    """
    Tells the training data which epoch begins.

    The stock `Trainer` does so itself in one process, and for streams; with several processes and data at random
    access it tells the sampler only, and augmentation would be the same in every epoch.
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        dataset = getattr(train_dataloader, "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))


def change_turn(turn: Message, change) -> Message:
    """A turn with each of its parts changed."""
    return {**turn, "content": [change(part) for part in turn["content"]]}


def generator_of(row: ChatRow, seed: int, purpose: str) -> np.random.Generator:
    """The generator of a sample in its epoch."""
    digest = hashlib.blake2b(digest_size=16)
    add_to_digest(digest, [row.id, row.task, row.messages])
    words = np.frombuffer(digest.digest(), dtype="<u4")
    return np.random.default_rng([seed, row.epoch, PURPOSES.index(purpose), *map(int, words)])


def add_to_digest(digest: Any, value: Any) -> None:
    """Put what tells one sample from another into `digest`: text, the last names of paths, bytes, pixels, samples."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            # Where the data lie must not matter.
            parts = PurePath(value[key]).parts[-2:] if key == "path" and value[key] is not None else value[key]
            add_to_digest(digest, [key, parts])
    elif isinstance(value, (list, tuple)):
        digest.update(b"[%d" % len(value))
        for item in value:
            add_to_digest(digest, item)
    elif isinstance(value, bytes):
        digest.update(value)
    elif isinstance(value, Image.Image):
        digest.update(value.tobytes())
    elif isinstance(value, (np.ndarray, torch.Tensor)):
        digest.update(np.ascontiguousarray(to_numpy(value)).tobytes())
    elif isinstance(value, (str, int, float, type(None))):
        digest.update(f"{value}\0".encode())
    else:
        # A decoder of `datasets`: the text beside it has to tell.
        digest.update(type(value).__name__.encode())
