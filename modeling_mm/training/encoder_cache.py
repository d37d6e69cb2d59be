# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
What frozen encoders make of each picture and sound, kept on disk, so that they run once and not in every epoch.

A store is two files: `states.bin`, float16 one item behind the other, and `index.jsonl`, one line an item. Items are
appended, so an interrupted run goes on where it was.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..audio import load_audio
from ..data.chat_row import ChatRow, media_parts, media_source
from ..encoders import encode
from ..images import load_image
from .audio_augmentation import SoundAugmentation
from .image_augmentation import PictureAugmentation

# Shape legend: N items that are real, T frames, L encoder tokens, W the encoder's width.

STORED = np.float16


class StateStore:
    """
    Encoder states by key: each item is a list of windows (L, W), one for a picture.

    Any number of processes may read it, also while one fills it; two must not fill it at a time.

    Args:
        folder: where its two files lie; made if it is not there
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.entries: dict[str, tuple[int, list[int], int]] = {}  # key -> offset in values, length of each window, W
        self.num_values, self.index_size = 0, 0  # how much of its two files is whole, in values and in bytes
        self.read_index()
        self._values: np.memmap | None = None

    def read_index(self) -> None:
        """Reads the index as far as it is whole; what an interrupted run left behind it goes with the next append."""
        self.entries, self.num_values, self.index_size = {}, 0, 0
        path, data = self.folder / "index.jsonl", self.folder / "states.bin"
        available = data.stat().st_size // STORED().itemsize if data.is_file() else 0
        if not path.is_file():
            return
        with open(path, "rb") as index:
            for line in index:
                if not line.endswith(b"\n"):
                    break
                key, offset, lengths, width = json.loads(line)
                if offset + sum(lengths) * width > available:
                    break
                self.entries[key] = (offset, lengths, width)
                self.num_values, self.index_size = offset + sum(lengths) * width, self.index_size + len(line)

    def append(self, items: Iterable[tuple[str, list[torch.Tensor]]]) -> None:
        """
        Items as key and windows (L, W); states first, then the index, so that no line points at nothing.

        Raises:
            ValueError: for values that float16 cannot hold.
        """
        index_path = self.folder / "index.jsonl"
        if index_path.is_file() and index_path.stat().st_size != self.index_size:
            self.read_index()  # another has filled it in the meantime, or was interrupted
        added: dict[str, tuple[int, list[int], int]] = {}
        offset = self.num_values
        with open(self.folder / "states.bin", "ab") as states:
            states.truncate(offset * STORED().itemsize)
            for key, windows in items:
                lengths, width = [len(window) for window in windows], windows[0].shape[1]
                added[key] = (offset, lengths, width)
                offset += sum(lengths) * width
                for window in windows:
                    states.write(to_stored(window).tobytes())
        lines = "".join(json.dumps([key, *entry]) + "\n" for key, entry in added.items()).encode()
        with open(index_path, "ab") as index:
            index.truncate(self.index_size)
            index.write(lines)
        self.entries |= added
        self.num_values, self.index_size, self._values = offset, self.index_size + len(lines), None

    def __getitem__(self, key: str) -> list[torch.Tensor]:
        """The windows of an item, (L, W) each, in float32."""
        offset, lengths, width = self.entries[key]
        if self._values is None:
            self._values = np.memmap(self.folder / "states.bin", STORED, "r", shape=(self.num_values,))
        values = torch.from_numpy(self._values[offset : offset + sum(lengths) * width].astype(np.float32))
        return list(values.view(-1, width).split(lengths))

    def __contains__(self, key: str) -> bool:
        return key in self.entries

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_values": None}  # workers open the file anew


def to_stored(states: torch.Tensor) -> np.ndarray:
    """
    Raises:
        ValueError: where a value is none, or beyond what float16 holds.
    """
    values = states.to(torch.float32).numpy()
    largest = np.abs(values).max(initial=0.0)
    if not largest <= np.finfo(STORED).max:
        raise ValueError(
            f"The encoder's states reach {largest}, and an encoder cache holds values up to {np.finfo(STORED).max}. "
            "Train without an encoder cache."
        )
    return values.astype(STORED)


class EncoderCache:
    """
    The outputs of a model's frozen encoders for media files, on disk, by the files' content.

    A store belongs to the weights, the preprocessing and the augmentation it was made with: others get another folder.

    Args:
        folder: of all stores
        model: the joint model; its encoders must be frozen
        processor: its processor
        picture, sound: how views other than the first are changed; flips are left out, as they depend on the text
        picture_views, sound_views: how many views of each file are kept; the first is the file as it is
        seed: of the augmentation
        batch_size: files that are encoded together
        dtype: what the encoders compute in: `torch.bfloat16` is two to three times as fast where the machine has it

    Raises:
        ValueError: where an encoder is not frozen, so that what is kept would soon be wrong.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        model: Any,
        processor: Any,
        picture: PictureAugmentation | None = None,
        sound: SoundAugmentation | None = None,
        picture_views: int = 1,
        sound_views: int = 1,
        seed: int = 0,
        batch_size: int = 16,
        dtype: torch.dtype = torch.float32,
    ):
        self.processor, self.seed, self.batch_size, self.dtype = processor, seed, batch_size, dtype
        self.augmentations: dict[str, Any] = {
            "image": picture or PictureAugmentation(),
            "audio": sound or SoundAugmentation(),
        }
        self.views = {"image": picture_views, "audio": sound_views}
        self.towers = {"image": model.base_model.vision_tower, "audio": model.base_model.audio_tower}
        self.digests: dict[str, str] = {}
        self.stores: dict[str, StateStore] = {}
        parts = {"image": processor.image_processor, "audio": processor.feature_extractor}
        for kind, tower in self.towers.items():
            if tower is None:
                continue
            if any(p.requires_grad for p in tower.parameters()):
                raise ValueError(
                    f"The {kind} encoder is not frozen: its outputs change while it is trained, and cannot be kept. "
                    "Freeze it (freeze_vision, freeze_audio), or train without an encoder cache."
                )
            augmentation = asdict(self.augmentations[kind])
            name = fingerprint(
                tower, settings_of(tower.config), settings_of(parts[kind]), augmentation, seed, str(dtype)
            )
            self.stores[kind] = StateStore(Path(folder) / f"{kind}-{name}")

    def fill(self, rows: Iterable[ChatRow], views: bool = True, progress: bool = True) -> None:
        """
        Encodes all media of the rows that are not in the cache yet.

        Args:
            views: whether the other views are made too; samples to be tested with need only the first

        Raises:
            ValueError: for media that are no files, or that the model has no encoder for.
        """
        wanted: dict[str, dict[str, tuple[str, int]]] = {kind: {} for kind in self.stores}
        for row in rows:
            for part in media_parts(row.messages):
                kind, path = part["type"], source_path(part)
                for view in range(self.views[kind] if views else 1):
                    key = f"{self.digest(path)}/{view}"
                    if key not in self.store(kind):
                        wanted[kind][key] = (path, view)
        for kind, todo in wanted.items():
            bar = tqdm(total=len(todo), desc=f"encoding {kind}", disable=not (progress and todo))
            items = list(todo.items())
            for start in range(0, len(items), self.batch_size):
                batch = items[start : start + self.batch_size]
                self.stores[kind].append(self.encode(kind, batch))
                bar.update(len(batch))
            bar.close()

    @torch.inference_mode()
    def encode(
        self, kind: str, batch: Sequence[tuple[str, tuple[str, int]]]
    ) -> Iterator[tuple[str, list[torch.Tensor]]]:
        """The windows of files that are given as key and (path, view)."""
        tower = self.towers[kind].eval()
        device = next(tower.parameters()).device
        media = [[self.load(kind, path, view, key)] for key, (path, view) in batch]
        if kind == "image":
            inputs = self.processor(images=media, return_tensors="pt")
            with self.autocast(device):
                _, tokens, _ = encode(tower, inputs["pixel_values"].flatten(0, 1).to(device))  # (N, L, W)
            return iter([(key, [states.cpu()]) for (key, _), states in zip(batch, tokens, strict=True)])
        inputs = self.processor(audio=media, return_tensors="pt")
        name = self.processor.feature_extractor.model_input_names[0]
        frames = inputs["feature_attention_mask"].bool().to(device)  # (B, A, T)
        present = frames.any(-1)  # (B, A)
        with self.autocast(device):
            _, tokens, mask = encode(tower, inputs[name].to(device)[present], frames[present])  # (N, L, W), (N, L)
        windows = [states[real].cpu() for states, real in zip(tokens, mask, strict=True)]
        counts = present.sum(-1).tolist()
        starts = np.cumsum([0, *counts])
        return iter([(key, windows[starts[i] : starts[i + 1]]) for i, (key, _) in enumerate(batch)])

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)

    def load(self, kind: str, path: str, view: int, key: str) -> Any:
        """A picture, or samples with their rate, changed unless it is the first view."""
        generator = np.random.default_rng(int(hashlib.sha256(f"{self.seed}/{key}".encode()).hexdigest()[:16], 16))
        if kind == "image":
            picture = load_image(path)
            return self.augmentations[kind].apply(picture, False, generator) if view else picture
        rate = self.processor.feature_extractor.sampling_rate
        samples = load_audio(path, rate)
        return (self.augmentations[kind].apply(samples, rate, generator) if view else samples), rate

    def states(self, part: dict[str, Any], view: int = 0) -> list[torch.Tensor]:
        """
        The windows (L, W) of a media part of a message.

        Raises:
            KeyError: where it is not in the cache, with the file.
            ValueError: for media that are no files, or that the model has no encoder for.
        """
        path, store = source_path(part), self.store(part["type"])
        key = f"{self.digest(path)}/{view}"
        if key not in store:
            raise KeyError(f"{path} is not in the encoder cache; `fill` it with all rows that are to be used.")
        return store[key]

    def store(self, kind: str) -> StateStore:
        if kind not in self.stores:
            raise ValueError(
                f"A sample has a part of type {kind!r}, but the model has no encoder for it. Join one, or leave such "
                "samples out."
            )
        return self.stores[kind]

    def count_tokens(self, part: dict[str, Any]) -> int:
        """How many tokens the encoder made of a media part."""
        _, lengths, _ = self.stores[part["type"]].entries[f"{self.digest(source_path(part))}/0"]
        return sum(lengths)

    def digest(self, path: str) -> str:
        """Of a file's content; read once."""
        if path not in self.digests:
            self.digests[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]
        return self.digests[path]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "towers": None}  # workers only read


def source_path(part: dict[str, Any]) -> str:
    """
    Raises:
        ValueError: for media that are no files.
    """
    source = media_source(part)
    if not isinstance(source, (str, os.PathLike)) or not Path(source).is_file():
        raise ValueError(
            f"The encoder cache takes media that are files, but a part of type {part['type']!r} holds {source!r:.80}. "
            "Write them to files, or train without an encoder cache."
        )
    return str(source)


# What configs and processors say of themselves besides settings; some of it is there only once they were saved.
INCIDENTAL = {
    *("_name_or_path", "architectures", "dtype", "transformers_version", "id2label", "label2id"),
    *("auto_map", "processor_class", "_processor_class", "image_processor_type", "feature_extractor_type"),
}


def settings_of(part: Any) -> dict[str, Any]:
    """What of a config, an image processor or a feature extractor changes what comes out."""
    return {name: value for name, value in part.to_dict().items() if name not in INCIDENTAL}


def fingerprint(tower: nn.Module, *settings: Any) -> str:
    """Of an encoder's weights and of settings that can be written as JSON."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
