# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Chat examples from JSONL files, folders, saved `datasets` and the Hub, at random access or as a stream.

On disk an example is one line of JSON, with media paths relative to the folder of the file:

    {"messages": [{"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}], "task": "caption/en"}
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .chat_row import ChatRow, to_row
from .streaming import file_stream, to_stream, unpack

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# Files that `datasets` writes into a folder that it saves a dataset, or several splits, to.
SAVED_NAMES = ("dataset_dict.json", "state.json")


def shared_epoch() -> torch.Tensor:
    """Return the number of the current pass, which workers of a `DataLoader` share, also persistent ones."""
    return torch.zeros((), dtype=torch.long).share_memory_()


class ChatDataset(torch.utils.data.Dataset):
    """
    Chat examples at random access, as `ChatRow`.

    Args:
        samples: sequence of examples in any form that `to_row` knows; it is not copied.
        folder: folder that media paths are relative to.

    Example:
        >>> ChatDataset([{"prompt": "What is a cat?", "completion": "an animal"}])[0].answer
        'an animal'
    """

    def __init__(self, samples: Sequence[Any], folder: str | os.PathLike | None = None):
        self.samples = samples
        self.folder = folder
        self._epoch = shared_epoch()

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[ChatRow]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> ChatRow:
        sample = self.samples[int(index)]
        try:
            row = to_row(sample, self.folder)
        except ValueError as error:
            raise ValueError(f"Example {index}: {error}") from error
        return replace(row, epoch=int(self._epoch))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the rows, on which augmentation depends. The `Trainer` calls it before each pass."""
        self._epoch.fill_(epoch)


class ChatStream(torch.utils.data.IterableDataset):
    """
    Chat examples one after the other, as `ChatRow`. Workers of a `DataLoader` share its shards.

    Args:
        samples: a `datasets.IterableDataset` with the columns of `streaming.features`; `load_chats` makes it.
    """

    def __init__(self, samples: "IterableDataset"):
        super().__init__()
        self.samples = samples
        self._epoch = shared_epoch()

    def __iter__(self) -> Iterator[ChatRow]:
        for columns in self.samples:
            yield replace(unpack(columns), epoch=int(self._epoch))

    def shuffle(self, seed: int, buffer_size: int = 1000) -> "ChatStream":
        """Return the stream with shuffled shards, and examples shuffled within a buffer, differently in each epoch."""
        return ChatStream(self.samples.shuffle(seed=seed, buffer_size=buffer_size))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the rows and of the order. The `Trainer` calls it before each pass."""
        self._epoch.fill_(epoch)
        self.samples.set_epoch(epoch)


class JsonLines(Sequence):
    """Lines of a JSONL file, checked once and read on access; only their places are kept."""

    def __init__(self, path: Path, limit: int | None = None):
        self.path = path
        self._starts: list[int] = []
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if limit is not None and len(self._starts) == limit:
                    break
                if line.strip():
                    check_line(line, f"{path}, line {number}")
                    self._starts.append(start)
                start += len(line)
        if not self._starts:
            raise ValueError(f"{path} holds no examples. Write one JSON object a line.")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            return json.loads(file.readline())


class ArrowRows(Sequence):
    """Rows of a `datasets.Dataset` as plain values. Media stay files, which the processor decodes."""

    def __init__(self, dataset: "Dataset"):
        self.dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index].to_pylist()[0]


def check_line(line: bytes, where: str) -> None:
    """Raise a ValueError, with `where`, if a line is not a JSON object."""
    try:
        sample = json.loads(line)
    except ValueError as error:  # also for bytes that are not text
        raise ValueError(f"{where}: expected a JSON object, got invalid JSON ({error})") from error
    if not isinstance(sample, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(sample).__name__}")


def load_chats(
    source: str | os.PathLike,
    split: str = "train",
    streaming: bool = False,
    name: str | None = None,
    limit: int | None = None,
) -> ChatDataset | ChatStream:
    """
    Read chat examples.

    Args:
        source: a `.jsonl` file; a folder with `<split>.jsonl`, a folder that `datasets` saved, or any that it can load
            (media in sub-folders with a `metadata.jsonl`, parquet, ...); or the id of a dataset on the Hub. See
            `to_row` for the forms of examples.
        split: part of a folder or of a dataset. A `.jsonl` file has no parts and ignores it.
        streaming: read the examples one after the other instead of at random access.
        name: configuration of a dataset that has several.
        limit: largest number of examples, from the front.

    Raises:
        FileNotFoundError: if `source` is a path that does not exist.
        ValueError: if a line is not a JSON object, a split does not exist, or an option does not apply.

    Example:
        >>> load_chats("processing/corpora/sample/train.jsonl", limit=3)[0].answer
        'cat'
    """
    if limit is not None and limit < 1:
        raise ValueError(f"`limit` must be at least 1, or None for all examples, got {limit}.")
    path = Path(source)
    file = find_lines(path, split)
    if name is not None and (file is not None or is_saved(path)):
        raise ValueError(f"`name` ({name!r}) chooses a configuration on the Hub, but {path} has none. Remove it.")
    if file is not None:
        if not streaming:
            return ChatDataset(JsonLines(file, limit), file.parent)
        stream = file_stream(file)
        return ChatStream(stream if limit is None else stream.take(limit))
    dataset = load_with_datasets(str(source), split, streaming, name)
    if limit is not None:
        dataset = dataset.take(limit)
    return ChatStream(to_stream(dataset)) if streaming else ChatDataset(ArrowRows(dataset))


def find_lines(path: Path, split: str) -> Path | None:
    """Return the JSONL file of a path and a split, or None if `datasets` must read the folder or the Hub."""
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise FileNotFoundError(f"The file {path} does not exist.")
        return path
    if path.is_file():
        raise ValueError(
            f"{path} is a file of another kind: expected a .jsonl file, a folder or a dataset of the Hub."
        )
    if not path.is_dir():
        if path.is_absolute() or str(path).startswith("."):
            raise FileNotFoundError(f"{path} is neither a file nor a folder.")
        return None
    if (path / f"{split}.jsonl").is_file():
        return path / f"{split}.jsonl"
    splits = sorted(file.stem for file in path.glob("*.jsonl") if file.stem != "metadata")
    if splits and not is_saved(path):
        raise ValueError(f"{path} has no split {split!r}. It has {', '.join(splits)}.")
    return None


def is_saved(path: Path) -> bool:
    """Return if `datasets` has saved a dataset, or several splits, to a folder."""
    return any((path / name).is_file() for name in SAVED_NAMES)


def load_with_datasets(source: str, split: str, streaming: bool, name: str | None) -> Any:
    import datasets  # only here, as JSONL files do not need it

    if not is_saved(Path(source)):
        return datasets.load_dataset(source, name, split=split, streaming=streaming)
    saved = datasets.load_from_disk(source)
    if isinstance(saved, Mapping):
        if split not in saved:
            raise ValueError(f"{source} has no split {split!r}. It has {', '.join(saved)}.")
        saved = saved[split]
    return saved.to_iterable_dataset() if streaming else saved
