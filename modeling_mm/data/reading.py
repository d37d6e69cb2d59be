# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Chat samples from JSONL files, folders, saved `datasets` and the Hub, at random access or as a stream.

On disk a sample is one line of JSON, whose media paths start at the file's own folder:

    {"messages": [{"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}], "task": "caption/en"}
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .chat_row import ChatRow, to_row
from .streaming import file_stream, from_stream, to_stream

__all__ = ["ChatDataset", "ChatRow", "ChatStream", "load_chats", "to_row"]

# What `datasets` leaves in a folder that it saved a data set, or several splits, to.
SAVED_NAMES = ("dataset_dict.json", "state.json")


class Epoch:
    """The number of the current pass, in memory that workers of a `DataLoader` share however long they live."""

    def __init__(self):
        self._value = torch.zeros((), dtype=torch.long).share_memory_()

    def set(self, epoch: int) -> None:
        self._value.fill_(epoch)

    def get(self) -> int:
        return int(self._value)


class ChatDataset(torch.utils.data.Dataset):
    """
    Chat samples at random access; items are `ChatRow`.

    Args:
        samples: a sequence of samples in any form that `to_row` knows, or of rows; nothing of it is copied.
        folder: where relative media paths start.
    """

    def __init__(self, samples: Sequence[Any], folder: str | os.PathLike | None = None):
        self.samples = samples
        self.folder = folder
        self._epoch = Epoch()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> ChatRow:
        """
        Raises:
            ValueError: for a sample that is no conversation; with its number.
        """
        sample = self.samples[int(index)]
        try:
            row = to_row(sample, self.folder)
        except ValueError as error:
            raise ValueError(f"Sample {index}: {error}") from error
        return replace(row, epoch=self._epoch.get())

    def set_epoch(self, epoch: int) -> None:
        """Told by the `Trainer` before each pass; rows carry it, so that augmentation draws anew."""
        self._epoch.set(epoch)


class ChatStream(torch.utils.data.IterableDataset):
    """
    Chat samples one after the other; items are `ChatRow`. Workers of a `DataLoader` share its shards.

    Args:
        samples: a `datasets.IterableDataset` with the columns of `streaming.STREAM_COLUMNS`.
    """

    def __init__(self, samples: Any):
        super().__init__()
        self.samples = samples
        self._epoch = Epoch()

    def __iter__(self) -> Iterator[ChatRow]:
        for number, sample in enumerate(self.samples):
            try:
                row = to_row(from_stream(sample))
            except ValueError as error:
                raise ValueError(f"Sample {number} of the stream: {error}") from error
            yield replace(row, epoch=self._epoch.get())

    def shuffle(self, seed: int, buffer_size: int = 1000) -> "ChatStream":
        """The stream with its shards shuffled, and its samples within a buffer; otherwise in every epoch."""
        return ChatStream(self.samples.shuffle(seed=seed, buffer_size=buffer_size))

    def set_epoch(self, epoch: int) -> None:
        """Told by the `Trainer` before each pass."""
        self._epoch.set(epoch)
        self.samples.set_epoch(epoch)


class JsonLines(Sequence):
    """
    The lines of a JSONL file, read when they are asked for; only where they start is kept.

    Raises:
        ValueError: where a line is no JSON object, or there is no line; with the file and the line's number.
    """

    def __init__(self, path: Path, limit: int | None = None):
        self.path = path
        self._starts: list[int] = []
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if limit is not None and len(self._starts) == limit:
                    break
                if line.strip():
                    parse_line(line, f"{path}, line {number}")
                    self._starts.append(start)
                start += len(line)
        if not self._starts:
            raise ValueError(f"{path} holds no samples; expected one JSON object a line")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index):
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            return json.loads(file.readline())


class ArrowRows(Sequence):
    """The rows of a `datasets.Dataset` as plain values; media stay files, which the processor decodes."""

    def __init__(self, dataset: Any):
        self.dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index].to_pylist()[0]


def parse_line(line: bytes | str, where: str) -> dict[str, Any]:
    """A line of JSONL. Raises ValueError, with `where` it stands, for what is no JSON object."""
    try:
        sample = json.loads(line)
    except ValueError as error:  # bytes that are no text, too
        raise ValueError(f"{where}: expected a JSON object, got what cannot be read as JSON ({error})") from error
    if not isinstance(sample, Mapping):
        raise ValueError(f"{where}: expected a JSON object, got {type(sample).__name__}")
    return dict(sample)


def load_chats(
    source: str | os.PathLike,
    split: str = "train",
    streaming: bool = False,
    name: str | None = None,
    limit: int | None = None,
) -> ChatDataset | ChatStream:
    """
    Read chat samples.

    Args:
        source: a `.jsonl` file; a folder with `<split>.jsonl`, or one that `datasets` saved, or any that it can load
            (pictures or sounds in sub-folders with a `metadata.jsonl`, parquet, ...); or the id of a data set on the
            Hub. What forms the samples may have, see `to_row`.
        split: which part of a folder or of a data set; a `.jsonl` file has no parts and ignores it.
        streaming: whether to read the samples one after the other instead of at random access.
        name: the configuration of a data set that has several.
        limit: how many samples are read at most, from the front.

    Raises:
        FileNotFoundError: where `source` is a path and nothing is there.
        ValueError: for lines that are no JSON objects, splits that are not there, and options that do not apply.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1, or None for all samples, got {limit}")
    path = Path(source)
    file = find_lines(path, split)
    if file is not None:
        if name is not None:
            raise ValueError(f"`name` ({name!r}) chooses a configuration on the Hub; {file} has none, leave it out")
        if streaming:
            samples = file_stream(file)
            return ChatStream(samples if limit is None else samples.take(limit))
        return ChatDataset(JsonLines(file, limit), file.parent)
    dataset = load_with_datasets(path, str(source), split, streaming, name)
    if streaming:
        return ChatStream(to_stream(dataset if limit is None else dataset.take(limit)))
    return ChatDataset(ArrowRows(dataset if limit is None else dataset.select(range(min(limit, len(dataset))))))


def find_lines(path: Path, split: str) -> Path | None:
    """
    The JSONL file that `path` and `split` name; None where `datasets` has to read the folder, or the Hub.

    Raises:
        FileNotFoundError: for a path to nothing.
        ValueError: for a folder of JSONL files without that split; with those that are there.
    """
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        return path
    if not path.is_dir():
        if path.is_absolute() or str(path).startswith("."):
            raise FileNotFoundError(f"there is neither a file nor a folder {path}")
        return None
    if (path / f"{split}.jsonl").is_file():
        return path / f"{split}.jsonl"
    splits = sorted(file.stem for file in path.glob("*.jsonl") if file.stem != "metadata")
    if splits and not any((path / saved).is_file() for saved in SAVED_NAMES):
        raise ValueError(f"{path} has no split {split!r}; it has {', '.join(splits)}")
    return None


def load_with_datasets(path: Path, source: str, split: str, streaming: bool, name: str | None) -> Any:
    """What `datasets` reads, from a folder that it saved, any other folder, or the Hub."""
    import datasets  # only here: files of JSONL do without it

    if not any((path / saved).is_file() for saved in SAVED_NAMES):
        return datasets.load_dataset(source, name, split=split, streaming=streaming)
    if name is not None:
        raise ValueError(f"`name` ({name!r}) chooses a configuration on the Hub; {path} has none, leave it out")
    saved = datasets.load_from_disk(path)
    if isinstance(saved, Mapping):
        if split not in saved:
            raise ValueError(f"{path} has no split {split!r}; it has {', '.join(saved)}")
        saved = saved[split]
    return saved.to_iterable_dataset() if streaming else saved
