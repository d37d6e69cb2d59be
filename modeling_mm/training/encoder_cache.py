# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Outputs of frozen encoders for media files, kept on disk, so that the encoders run once and not in every epoch."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..boxes import LOCATION
from ..data.chat_row import ChatRow, Message, media_parts, media_source
from ..encoders import encode
from ..modalities import MODALITIES, VIDEO
from ..sources import local_path
from ..utils.progress import show_progress
from .augmentation import Augmentation
from .state_store import StateStore

# Shape legend: B files, N items that are real, A windows a file, T frames, L encoder tokens, W the encoder's width.


class EncoderCache:
    """
    Outputs of a model's frozen encoders for media files, on disk, by the content of the files.

    A store belongs to the weights, the preprocessing and the augmentation that filled it. Others get another folder.

    Args:
        folder: folder of all stores.
        model: joint model with frozen encoders.
        processor: processor of the model.
        augmentation: changes of the views after the first. Flips are left out, as they depend on the text.
        views: number of views of each file by modality, 1 by default. The first view is the file as it is.
        batch_size: files that are encoded together.
        dtype: precision of the encoders; `torch.bfloat16` is two to three times as fast on hardware that has it.

    Raises:
        ValueError: if an encoder is not frozen, because its outputs would change.

    Example:
        >>> cache = EncoderCache("cache", model, processor, views={"image": 4})
        >>> cache.fill(chats)
        >>> collator = CachedCollator(processor, cache)
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        model: Any,
        processor: Any,
        augmentation: Augmentation | None = None,
        views: Mapping[str, int] | None = None,
        batch_size: int = 16,
        dtype: torch.dtype = torch.float32,
    ):
        self.processor, self.batch_size, self.dtype = processor, batch_size, dtype
        self.augmentation = augmentation or Augmentation()
        self.seed = self.augmentation.seed
        self.views = {kind: (views or {}).get(kind, 1) for kind in MODALITIES}
        self.towers: dict[str, Any] = {}
        self.digests: dict[str, str] = {}
        self.stores: dict[str, StateStore] = {}
        for kind, modality in MODALITIES.items():
            tower = getattr(model.base_model, modality.tower_attribute, None)
            if tower is None:
                continue
            if any(p.requires_grad for p in tower.parameters()):
                raise ValueError(
                    f"The {kind} encoder is not frozen, so that its outputs change in training and cannot be cached. "
                    f"Freeze it ({modality.freeze_field}=True), or train without an encoder cache."
                )
            changes, layers = getattr(self.augmentation, kind, None), getattr(tower, "feature_layers", None)
            name = fingerprint(
                tower,
                settings_of(tower.config),
                settings_of(getattr(processor, modality.processor)),
                {} if changes is None else asdict(changes),
                self.seed,
                str(dtype),
                *([] if layers is None else [list(layers)]),
            )
            self.towers[kind] = tower
            self.stores[kind] = StateStore(Path(folder) / f"{kind}-{name}")

    def fill(self, rows: Iterable[ChatRow], views: bool = True, progress: bool = True) -> None:
        """
        Encode all media of the rows that are not in the cache yet.

        Args:
            views: encode all views; test data need only the first.

        Raises:
            ValueError: if media are not files, or the model has no encoder for them.
        """
        wanted: dict[str, dict[str, tuple[str, int]]] = {kind: {} for kind in self.stores}
        for row in rows:
            refuse_videos(row)
            if self.views["image"] > 1 and views:
                refuse_places(row)
            for part in shown_parts(self.processor, row.messages):
                kind, path = part["type"], source_path(part)
                for view in range(self.views[kind] if views else 1):
                    key = f"{self.digest(path)}/{view}"
                    if key not in self.store(kind):
                        wanted[kind][key] = (path, view)
        for kind, todo in wanted.items():
            items = list(todo.items())
            with show_progress(total=len(todo), desc=f"encoding {kind}", disable=not (progress and todo)) as bar:
                for start in range(0, len(items), self.batch_size):
                    batch = items[start : start + self.batch_size]
                    self.stores[kind].append(self.encode(kind, batch))
                    bar.update(len(batch))

    @torch.inference_mode()
    def encode(
        self, kind: str, batch: Sequence[tuple[str, tuple[str, int]]]
    ) -> Iterator[tuple[str, list[torch.Tensor]]]:
        """Return key and windows of files that are given as key and (path, view)."""
        modality, tower = MODALITIES[kind], self.towers[kind].eval()
        device = next(tower.parameters()).device
        media = [[self.load(kind, path, view, key)] for key, (path, view) in batch]
        inputs = self.processor(**{modality.plural: media}, return_tensors="pt")
        items = next(inputs[name] for name in modality.inputs if name in inputs).to(device)  # (B, A, ...)
        mask = inputs[modality.mask].bool().to(device)  # (B, A) or (B, A, T)
        present = mask.any(-1) if modality.has_frames else mask  # (B, A)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            frames = mask[present] if modality.has_frames else None
            _, tokens, real = encode(tower, items[present], frames)  # (N, L, W), (N, L)
        windows = iter([states[kept].cpu() for states, kept in zip(tokens, real, strict=True)])
        counts = present.sum(-1).tolist()
        return iter([(key, [next(windows) for _ in range(n)]) for (key, _), n in zip(batch, counts, strict=True)])

    def load(self, kind: str, path: str, view: int, key: str) -> Any:
        """Return media for the processor: the file as it is, or changed unless it is the first view."""
        part: dict[str, Any] = {"type": kind, "path": path}
        if view:
            seed = hashlib.sha256(f"{self.seed}/{key}".encode()).hexdigest()[:16]
            rate = getattr(self.processor.feature_extractor, "sampling_rate", None)
            part = getattr(self.augmentation, kind).change(part, np.random.default_rng(int(seed, 16)), False, rate)
        source = media_source(part)
        return (source, part["sampling_rate"]) if "sampling_rate" in part else source

    def states(self, part: dict[str, Any], view: int = 0) -> list[torch.Tensor]:
        """
        Return the windows (L, W) of a media part.

        Raises:
            KeyError: if its file is not in the cache.
            ValueError: if its states are damaged.
        """
        path, store = source_path(part), self.store(part["type"])
        key = f"{self.digest(path)}/{view}"
        if key not in store:
            raise KeyError(f"{path} is not in the encoder cache. `fill` it with all rows that will be used.")
        try:
            return store[key]
        except ValueError as error:
            raise ValueError(f"The encoder cache of {path} cannot be used: {error}") from error

    def store(self, kind: str) -> StateStore:
        if kind not in self.stores:
            raise ValueError(
                f"An example has a part of type {kind!r}, but the model has no encoder for it. Join one, or remove "
                "such examples."
            )
        return self.stores[kind]

    def count_tokens(self, part: dict[str, Any]) -> int:
        """Return the number of encoder tokens of a media part."""
        _, lengths, *_ = self.stores[part["type"]].entries[f"{self.digest(source_path(part))}/0"]
        return sum(lengths)

    def digest(self, path: str) -> str:
        """Return the digest of a file's content, which is read once."""
        if path not in self.digests:
            self.digests[path] = content_digest(path)
        return self.digests[path]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "towers": None}  # workers only read


def shown_parts(processor: Any, messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the media parts that encoders read: all but those that an assistant writes as codes."""
    return [
        part
        for turn in messages
        for part in media_parts([turn])
        if turn["role"] != "assistant" or not processor.has_codes(part["type"])
    ]


def has_videos(row: ChatRow) -> bool:
    return any(part["type"] == VIDEO for part in media_parts(row.messages))


def refuse_videos(row: ChatRow) -> None:
    """Raise a `ValueError` for an example with a video, whose frames are not files."""
    if has_videos(row):
        raise ValueError(
            f"The encoder cache takes images and audio that are files, but example {row.id!r} has a video. Write its "
            "frames and audio to files (`modeling_mm.data.write_videos`), or train without an encoder cache."
        )


def refuse_places(row: ChatRow) -> None:
    """Raise a `ValueError` for an example with places, which would not be those of the other views of its image."""
    if any("objects" in part or LOCATION.search(part.get("text", "")) for t in row.messages for part in t["content"]):
        raise ValueError(
            f"Example {row.id!r} has the places of objects, which a cached view of its image would show elsewhere. "
            "Set `image_views` to 1, or train without an encoder cache."
        )


def source_path(part: dict[str, Any]) -> str:
    """Return the path of a media part, or raise a ValueError if its media are not a file."""
    source = media_source(part)
    if not isinstance(source, (str, os.PathLike)) or not (path := local_path(source)).is_file():
        raise ValueError(
            f"The encoder cache takes media that are files, but a part of type {part['type']!r} holds {source!r:.80}. "
            "Write them to files, or train without an encoder cache."
        )
    return str(path)


# Entries of configs and processors that are not settings; some exist only after saving.
INCIDENTAL = {
    *("_name_or_path", "architectures", "dtype", "transformers_version", "id2label", "label2id"),
    *("auto_map", "processor_class", "_processor_class", "image_processor_type", "feature_extractor_type"),
}


def settings_of(part: Any) -> dict[str, Any]:
    """Return the settings of a config, an image processor or a feature extractor that change its outputs."""
    return {name: value for name, value in part.to_dict().items() if name not in INCIDENTAL}


def content_digest(path: str) -> str:
    """Return a digest of a file's content."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]


def fingerprint(tower: nn.Module, *settings: Any) -> str:
    """Return a digest of an encoder's weights and of settings that JSON can hold."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
