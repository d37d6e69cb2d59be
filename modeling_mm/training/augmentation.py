# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Random changes of examples that depend on the seed, the epoch and the example alone.

The order of examples, the batch and the number of workers or processes do not matter, so that a resumed run equals an
unbroken one.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.chat_row import ChatRow, media_parts, turn_text
from ..data.examples import is_task_among, without_parts
from ..images import to_numpy
from ..modalities import MODALITIES
from .audio_augmentation import AudioAugmentation
from .image_augmentation import ImageAugmentation
from .located_texts import check_places_can_follow, follow_images, points_in_prompt

# Draws of one purpose are independent of those of the others.
PURPOSES = ("media", "features", "dropout", "masking")


@dataclass
class Augmentation:
    """
    Random changes of the media of training examples.

    Args:
        image: changes of images; off by default.
        audio: changes of audio; off by default.
        seed: seed of all draws.

    Example:
        >>> ChatCollator(processor, Augmentation(ImageAugmentation(crop=0.2), AudioAugmentation(speed=0.1)))
    """

    image: ImageAugmentation = field(default_factory=ImageAugmentation)
    audio: AudioAugmentation = field(default_factory=AudioAugmentation)
    seed: int = 0

    def change_media(self, row: ChatRow, rate: int | None) -> ChatRow:
        """
        Return an example with its media loaded and changed; media that do not change are not loaded.

        Args:
            rate: sampling rate of the audio encoder, or None if the model has none.

        Raises:
            ValueError: for a text with location tokens, but without the `objects` that would follow a crop or a flip.
        """
        if self.image.crop > 0 or self.image.flip > 0:
            check_places_can_follow(row.messages)
        # A place that a prompt points at must stay in the image.
        changes = replace(self, image=replace(self.image, crop=0.0)) if points_in_prompt(row.messages) else self
        generator = generator_of(row, self.seed, "media")
        is_flipped = generator.random() < self.image.flip and self._may_flip(row)

        def change(part: dict[str, Any]) -> dict[str, Any]:
            augmentation = getattr(changes, part["type"], None) if part["type"] in MODALITIES else None
            return part if augmentation is None else augmentation.change(part, generator, is_flipped, rate)

        messages = [{**turn, "content": [change(part) for part in turn["content"]]} for turn in row.messages]
        return replace(row, messages=follow_images(messages))

    def change_features(self, row: ChatRow, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a row's tensors with its spectrograms masked, where `feature_attention_mask` marks real frames."""
        modality = MODALITIES["audio"]
        name = next((name for name in modality.inputs if name in features), None)
        if name is None or not self.audio.masks_features:
            return features
        time_axis = 2 if name == "input_features" else 1
        generator = generator_of(row, self.seed, "features")
        return {**features, name: self.audio.mask(features[name], features[modality.mask], time_axis, generator)}

    def _may_flip(self, row: ChatRow) -> bool:
        has_text = any(part.get("has_text", False) for part in media_parts(row.messages))
        return self.image.may_flip(row.task, [turn_text(turn) for turn in row.messages], has_text)


@dataclass
class ModalityDropout:
    """
    Random removal of one modality of an example, so that a model learns to answer from the others alone.

    All media of the modality go, with their placeholders; the text stays. Examples with media of one modality do not
    change, so that something to answer from always remains.

    Args:
        image: probability that the images of an example are removed.
        audio: probability that its audio is removed; at most 1 together with `image`.
        seed: seed of all draws.
        unchanged_tasks: tasks that need every modality, by their name or the part of it before the "/".

    Example:
        >>> ChatCollator(processor, modality_dropout=ModalityDropout(image=0.1, audio=0.1))
    """

    image: float = 0.0
    audio: float = 0.0
    seed: int = 0
    unchanged_tasks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, share in self.shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"`{name}` of ModalityDropout must lie in [0, 1], got {share}.")
        if sum(self.shares.values()) > 1:
            raise ValueError(
                f"{' and '.join(f'`{name}`' for name in self.shares)} of ModalityDropout must not exceed 1 together, "
                f"got {' and '.join(map(str, self.shares.values()))}."
            )

    @property
    def shares(self) -> dict[str, float]:
        """Return the probability of each modality's removal."""
        return {name: getattr(self, name) for name in MODALITIES if hasattr(self, name)}

    def __call__(self, row: ChatRow) -> ChatRow:
        """Return the example without one modality, or as it is."""
        kinds = {part["type"] for part in media_parts(row.messages)}
        if len(kinds) < 2 or is_task_among(row.task, self.unchanged_tasks):
            return row
        drawn, limit = generator_of(row, self.seed, "dropout").random(), 0.0
        for dropped, share in self.shares.items():
            limit += share
            if drawn < limit:
                return without_parts(row, {dropped})
        return row


def generator_of(row: ChatRow, seed: int, purpose: str) -> np.random.Generator:
    """Return the generator of an example in its epoch."""
    digest = hashlib.blake2b(digest_size=16)
    add_to_digest(digest, [row.id, row.task, row.messages])
    words = np.frombuffer(digest.digest(), dtype="<u4")
    return np.random.default_rng([seed, row.epoch, PURPOSES.index(purpose), *map(int, words)])


def add_to_digest(digest: Any, value: Any) -> None:
    """Add to `digest` the content of an example: text, the ends of paths, bytes, pixels and samples."""
    if isinstance(value, Mapping):
        for key in sorted(value):
            # The folder of the data must not matter.
            item = PurePath(value[key]).parts[-2:] if key == "path" and value[key] is not None else value[key]
            add_to_digest(digest, [key, item])
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
        # A decoder of `datasets`: the text beside it tells examples apart.
        digest.update(type(value).__name__.encode())
