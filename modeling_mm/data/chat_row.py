# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""One chat sample, whatever form it came in: our own, TRL's with media in columns, or prompt and completion."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..chat import SOURCE_KEYS, normalize_part

Message = dict[str, Any]

ROLES = ("system", "user", "assistant")
# The kinds of media parts, and the columns in which TRL keeps what such parts show.
MEDIA_COLUMNS = {"image": ("images", "image"), "audio": ("audios", "audio")}
# What else of a media part is kept: the rate of bare samples, and that a picture bears writing (it is never mirrored).
MEDIA_KEYS = ("sampling_rate", "has_text")


@dataclass(frozen=True)
class ChatRow:
    """
    A conversation to learn from. Not a dict, because the stock `Trainer` removes the columns of dicts that are no
    arguments of the model, and leaves other objects alone.

    Args:
        messages: turns `{"role", "content"}`, each content a list of parts `{"type": "text", "text"}`,
            `{"type": "image", ...}` and `{"type": "audio", ...}`, with the media under `path`, `url`, `bytes`,
            `base64` or the part's own type.
        task: what is asked of the model, such as `caption/fr`; figures are given for each.
        id: the sample's name, for reports.
        epoch: which pass over its data set shows it; augmentation draws anew in each.
    """

    messages: list[Message]
    task: str | None = None
    id: str | None = None
    epoch: int = field(default=0, compare=False)
    is_normalized: ClassVar[bool] = True  # the processor takes the messages as they are

    @property
    def prompt(self) -> list[Message]:
        """The turns before the last one of the assistant."""
        return self.messages[: self._answer_index()]

    @property
    def answer(self) -> str:
        """The text of the assistant's last turn, without surrounding white space."""
        return turn_text(self.messages[self._answer_index()])

    def _answer_index(self) -> int:
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index]["role"] == "assistant":
                return index
        raise ValueError(
            f"{'The sample' if self.id is None else f'Sample {self.id!r}'} has no turn of the assistant, only "
            f"{[turn['role'] for turn in self.messages]}; give it an answer, or use its `messages` as the prompt"
        )


def turn_text(turn: Message) -> str:
    """What is written in a turn, its parts of text joined, without surrounding white space."""
    return "".join(part["text"] for part in turn["content"] if part["type"] == "text").strip()


def media_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The parts of a normalised conversation that are pictures or sounds, in order."""
    return [part for turn in messages for part in turn["content"] if part["type"] in MEDIA_COLUMNS]


def media_source(part: Mapping[str, Any]) -> Any:
    """What a media part shows, a path or anything else that the processor loads; None where it holds nothing."""
    return next((part[key] for key in (part["type"], *SOURCE_KEYS) if part.get(key) is not None), None)


def to_row(sample: Any, folder: str | os.PathLike | None = None) -> ChatRow:
    """
    A sample in any of the known forms as a `ChatRow`.

    Args:
        sample: a mapping with `messages`, or with `prompt` and `completion` (text or messages each), and optionally
            `task` and `id`. Contents may be strings. Media parts that hold nothing are filled in order from the
            columns `images` or `image`, `audios` or `audio`; where the conversation is plain text, those media are
            put in front of the first user turn, as TRL does. `has_text` marks all its pictures as bearing writing.
        folder: where relative paths start.

    Raises:
        ValueError: for what is no such sample, with what was expected and what came.
    """
    if isinstance(sample, ChatRow):
        return sample
    if not isinstance(sample, Mapping):
        raise ValueError(f"expected a mapping with `messages`, got {type(sample).__name__}")
    raw = raw_messages(sample)
    messages = [normal_turn(turn, number) for number, turn in enumerate(raw)]
    for kind in MEDIA_COLUMNS:
        fill_media(messages, kind, column_items(sample, kind), is_text=plain_start(raw))
    for part in media_parts(messages):
        resolve_source(part, folder)
        if sample.get("has_text") and part["type"] == "image":
            part["has_text"] = True
    task, name = sample.get("task"), sample.get("id")
    return ChatRow(messages, None if task is None else str(task), None if name is None else str(name))


def raw_messages(sample: Mapping[str, Any]) -> list[Any]:
    """The turns of a sample as they came."""
    if sample.get("messages") is not None:
        turns = sample["messages"]
    elif sample.get("prompt") is not None and sample.get("completion") is not None:
        turns = [*as_turns(sample["prompt"], "user"), *as_turns(sample["completion"], "assistant")]
    else:
        raise ValueError(
            f"expected `messages`, or `prompt` and `completion`; got the columns {sorted(map(str, sample))}"
        )
    if not isinstance(turns, (list, tuple)) or not turns:
        raise ValueError(f"expected a list with at least one message, got {turns!r:.80}")
    return list(turns)


def as_turns(value: Any, role: str) -> list[Any]:
    """A prompt or a completion as turns: text is one turn of `role`."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected text or a list of messages, got {value!r:.80}")
    return list(value)


def normal_turn(turn: Any, number: int) -> Message:
    """A fresh turn with a list of parts."""
    if not isinstance(turn, Mapping) or turn.get("role") not in ROLES:
        raise ValueError(f"message {number}: expected a `role` of {', '.join(ROLES)}, got {turn!r:.80}")
    content = turn.get("content")
    if isinstance(content, str):
        content = [content]
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"message {number}: its `content` must be text or a list of parts, got {content!r:.80}")
    return {"role": turn["role"], "content": [normal_part(part, number) for part in content]}


def normal_part(part: Any, number: int) -> dict[str, Any]:
    """A fresh part with the keys that count."""
    part = {"type": "text", "text": part} if isinstance(part, str) else normalize_part(part)
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind in MEDIA_COLUMNS:
        return {key: part[key] for key in ("type", kind, *SOURCE_KEYS, *MEDIA_KEYS) if key in part}
    raise ValueError(
        f"message {number}: expected a part of `type` text (with `text`), image or audio, got {part!r:.80}"
    )


def plain_start(turns: Sequence[Any]) -> bool:
    """Whether the first user turn was given as plain text, so that media can only stand in front of it."""
    first = next((turn for turn in turns if turn["role"] == "user"), None)
    return first is not None and isinstance(first["content"], str)


def column_items(sample: Mapping[str, Any], kind: str) -> list[Any]:
    """The media that a sample keeps in a column of their own."""
    for column in MEDIA_COLUMNS[kind]:
        items = sample.get(column)
        if items is not None:
            return list(items) if isinstance(items, (list, tuple)) else [items]
    return []


def fill_media(messages: list[Message], kind: str, items: list[Any], is_text: bool) -> None:
    """
    Put the media of a column into the parts that hold none, in place.

    Raises:
        ValueError: where their numbers differ; with both.
    """
    if items and is_text and not any(part["type"] == kind for part in media_parts(messages)):
        first = next(turn for turn in messages if turn["role"] == "user")
        first["content"][:0] = [{"type": kind} for _ in items]
    empty = [part for part in media_parts(messages) if part["type"] == kind and media_source(part) is None]
    if len(empty) != len(items):
        raise ValueError(
            f"{len(empty)} {kind} parts hold no {kind}, and the column `{MEDIA_COLUMNS[kind][0]}` has {len(items)}; "
            "give one for each such part"
        )
    for part, item in zip(empty, items, strict=True):
        part[kind] = item


def resolve_source(part: dict[str, Any], folder: str | os.PathLike | None) -> None:
    """Make the path of a media part start at `folder`, in place; a dict of `datasets` without bytes is its path."""
    kind = part["type"]
    source = part.get(kind)
    if isinstance(source, Mapping) and source.get("bytes") is None and source.get("array") is None:
        del part[kind]
        part["path"] = source.get("path")
    if isinstance(part.get("path"), os.PathLike):
        part["path"] = os.fspath(part["path"])
    if folder is None:
        return
    if is_relative(part.get("path")):
        part["path"] = str(Path(folder) / part["path"])
    elif is_relative(source) and len(source) < 1024 and (Path(folder) / source).is_file():  # it may be base64
        part[kind] = str(Path(folder) / source)


def is_relative(path: Any) -> bool:
    """Whether `path` is a file's path that does not say where it starts; URLs do."""
    return isinstance(path, str) and "://" not in path and not path.startswith("data:") and not os.path.isabs(path)
