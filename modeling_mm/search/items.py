# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Items to be found: read from a folder of files, from JSON lines, or from a dataset."""

import mimetypes
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..data.chat_row import media_parts, media_source, to_row
from ..data.reading import JsonLines, find_lines, is_saved, load_with_datasets
from ..modalities import MODALITIES
from ..sources import WEB, is_file_url
from .columns import infer_columns, type_of

TEXT = "text"
TEXT_SUFFIX = ".txt"
METADATA_FILE = "metadata.jsonl"  # of files of its folder, as `datasets` reads it: `file_name` and columns
FILE_NAME = "file_name"
# Types that Python's table of names lacks in some versions.
MORE_TYPES = {".flac": "audio/flac", ".ogg": "audio/ogg", ".opus": "audio/ogg", ".m4a": "audio/mp4"}
MORE_TYPES |= {".webp": "image/webp"}
COLUMNS_READ_AHEAD = 1000  # rows of a stream whose types are not known


@dataclass(frozen=True)
class Item:
    """
    A text, media or a mix of them in one row.

    Args:
        text: "" if it has none. It may hold placeholders (`<|image|>`), else media stand before it
        media: by modality, in order: paths, URLs, bytes, or what else the processor takes
        id: unique in an index; by default a hash of its content
        metadata: values by column, for conditions and to be shown
        where: its place in its source, for messages
    """

    text: str = ""
    media: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    where: str = "The item"

    @property
    def kind(self) -> str:
        """The modalities of its media, then `text`, joined by `+`."""
        present = [name for name in MODALITIES if self.media.get(name)]
        return "+".join([*present, *([TEXT] if self.text.strip() else [])])


@dataclass(frozen=True)
class ItemSource:
    """
    Items of a folder or dataset.

    Args:
        name: of the folder or dataset; rows of an index keep it
        columns: types of the metadata
        read: function that reads every N-th item, from an index on: `read(0, 1)` reads all
        total: number of items, if it is known
        left_out: files and columns that items do not keep, with their numbers
        is_whole: False if a limit cuts it off
    """

    name: str
    columns: Mapping[str, str]
    read: Callable[[int, int], Iterator[Item]]
    total: int | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    is_whole: bool = True


def open_items(
    source: str | os.PathLike, split: str = "train", limit: int | None = None, name: str | None = None
) -> ItemSource:
    """
    Open the items of a folder or dataset.

    Args:
        source: a folder of images, audio and `.txt` files at any depth, of which a `metadata.jsonl` may give columns
            by `file_name`; a `.jsonl` file; a folder that `datasets` saved; or the id of a dataset on the Hub, which
            is streamed. Rows have `text`, `image` or `images`, `audio`, `id`, and columns of metadata. Of chats
            the media count, with the answer as metadata.
        split: of a dataset
        limit: number of items, from the front
        name: configuration of a dataset

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if it holds no items, or columns of several types.
    """
    path = Path(source)
    if path.is_dir() and not is_dataset(path, split):
        return listed(str(path.resolve()), *folder_items(path), limit)
    if (file := find_lines(path, split)) is not None:
        lines = JsonLines(file, limit)
        rows = [item_of(row, f"{file}, row {number}", file.parent) for number, row in enumerate(lines)]
        return listed(str(file.resolve()), rows, Counter(), limit)
    return streamed(str(source), load_with_datasets(str(source), split, True, name), limit)


def is_dataset(folder: Path, split: str) -> bool:
    """Return if a folder holds the rows of a dataset, and not files that are items by themselves."""
    return is_saved(folder) or (folder / f"{split}.jsonl").is_file() or any(folder.rglob("*.parquet"))


def listed(name: str, items: Sequence[Item], left_out: Counter[str], limit: int | None) -> ItemSource:
    """Return a source whose items are all known."""
    is_whole = limit is None or len(items) < limit
    items = items[:limit]
    if not items:
        raise ValueError(f"{name} holds no items. Expected images, audio, or {TEXT_SUFFIX} files.")
    left_out = left_out + nested_columns(items)
    items = [replace(each, metadata=scalars(each.metadata)) for each in items]
    columns = infer_columns(each.metadata for each in items)

    def read(first: int, step: int) -> Iterator[Item]:
        yield from items[first::step]

    return ItemSource(name, columns, read, len(items), left_out, is_whole)


def nested_columns(items: Iterable[Item]) -> Counter[str]:
    """Count the values of each column that holds lists or other nested values, which an index does not keep."""
    named = (name for each in items for name, value in each.metadata.items() if not is_scalar(value))
    return Counter(f"column {name!r}" for name in named)


def scalars(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metadata.items() if is_scalar(value)}


def is_scalar(value: Any) -> bool:
    return value is None or type_of(value) is not None


# ---- Folders --------------------------------------------------------------------------------------------------------


def folder_items(folder: Path) -> tuple[list[Item], Counter[str]]:
    """Return the items of a folder's files, by path, and the number of files of each other kind."""
    items, left_out = [], Counter[str]()
    metadata: dict[Path, dict[str, Any]] = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        inside = path.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or path.name == METADATA_FILE:
            continue
        kind = kind_of(path)
        if kind is None:
            left_out[f"files of type {path.suffix or 'unknown'}"] += 1
            continue
        item = Item(id=inside.as_posix(), where=str(path))
        if kind == TEXT:
            item = replace(item, text=path.read_text(encoding="utf-8", errors="replace"))
        else:
            item = replace(item, media={kind: [str(path.resolve())]})
        items.append(item)
    for path in folder.rglob(METADATA_FILE):
        metadata |= read_metadata(path)
    return [with_metadata(each, metadata.get(Path(each.where).resolve(), {})) for each in items], left_out


def kind_of(path: Path) -> str | None:
    """Return the modality of a file by its name, `text` for a `.txt` file, None for another file."""
    suffix = path.suffix.lower()
    if suffix == TEXT_SUFFIX:
        return TEXT
    kind = (MORE_TYPES.get(suffix) or mimetypes.guess_type(path.name)[0] or "").partition("/")[0]
    return kind if kind in MODALITIES else None


def read_metadata(path: Path) -> dict[Path, dict[str, Any]]:
    """Return the rows of a `metadata.jsonl` by the files that they describe."""
    rows = {}
    for number, row in enumerate(JsonLines(path)):
        if not isinstance(row.get(FILE_NAME), str):
            raise ValueError(f"{path}, row {number}: expected a {FILE_NAME!r}, got the columns {', '.join(row)}.")
        rows[(path.parent / row[FILE_NAME]).resolve()] = {key: row[key] for key in row if key != FILE_NAME}
    return rows


def with_metadata(item: Item, row: Mapping[str, Any]) -> Item:
    """Return an item with the columns of its file; a `text` becomes part of it."""
    text = str(row.get(TEXT) or item.text)
    return replace(item, text=text, metadata={key: row[key] for key in row if key != TEXT})


# ---- Rows of datasets -----------------------------------------------------------------------------------------------


def item_of(row: Mapping[str, Any], where: str, folder: Path | None = None) -> Item:
    """
    Return a row of a dataset as an item.

    Args:
        row: columns; of a chat `messages`
        where: its place, for messages
        folder: the start of relative paths
    """
    if "messages" in row or "prompt" in row:
        return item_of_chat(row, where, folder)
    used = {TEXT, "id"}
    media: dict[str, list[Any]] = {}
    for name in MODALITIES:
        names = dict.fromkeys((name, f"{name}s"))
        values = [each for key in names for each in as_items(row.get(key))]
        used |= set(names)
        if values:
            media[name] = [located(each, folder) for each in values]
    text, number = row.get(TEXT), row.get("id")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{where}: expected a text in the column 'text', got {text!r:.60}.")
    metadata = {key: value for key, value in row.items() if key not in used}
    return Item(text or "", media, None if number is None else str(number), metadata, where)


def item_of_chat(row: Mapping[str, Any], where: str, folder: Path | None) -> Item:
    """Return the media of a chat, or without any its answer, as an item, with the answer as metadata."""
    try:
        chat = to_row(row, folder)
        answer = chat.answer
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    media: dict[str, list[Any]] = {}
    for part in media_parts(chat.messages):
        media.setdefault(part["type"], []).append(media_source(part))
    if others := set(media) - set(MODALITIES):
        raise ValueError(f"{where}: an index holds no {others.pop()}; leave the row out.")
    metadata = {"answer": answer, "task": chat.task}
    return Item("" if media else answer, media, chat.id, metadata, where)


def as_items(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def located(source: Any, folder: Path | None) -> Any:
    """Return a source whose path starts in a folder if it is relative."""
    if isinstance(source, Mapping) and source.get("bytes") is None and isinstance(source.get("path"), str):
        source = source["path"]
    if not isinstance(source, str) or folder is None or source.startswith((*WEB, "data:")) or is_file_url(source):
        return source
    return str((folder / source).resolve())


def streamed(name: str, dataset: Any, limit: int | None) -> ItemSource:
    """Return a dataset's stream as a source. Labels become their names."""
    features = dataset.features or {}
    labels = {key: each.int2str for key, each in features.items() if hasattr(each, "int2str")}
    plain = dataset.decode(False) if features else dataset
    plain = plain if limit is None else plain.take(limit)

    def read_raw(first: int, step: int) -> Iterator[Item]:
        from datasets.distributed import split_dataset_by_node

        shard = plain if step == 1 else split_dataset_by_node(plain, first, step)
        of_process = f" of process {first}" if step > 1 else ""
        for number, row in enumerate(shard):
            for key in labels:
                row[key] = None if row[key] is None or row[key] < 0 else labels[key](row[key])
            yield item_of(row, f"{name}, row {number}{of_process}")

    def read(first: int, step: int) -> Iterator[Item]:
        for item in read_raw(first, step):
            yield replace(item, metadata=scalars(item.metadata))

    ahead = list(islice(read_raw(0, 1), COLUMNS_READ_AHEAD))
    if not ahead:
        raise ValueError(f"{name} holds no items.")
    columns = infer_columns(scalars(each.metadata) for each in ahead)
    return ItemSource(name, columns, read, None, nested_columns(ahead), is_whole=limit is None)
