# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""One chat sample, from every known form: the package's own, TRL's with media in columns, or prompt and completion."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

from ..chat import OTHER_ROLES, SOURCE_KEYS, VIDEO_OPTIONS, media_source, normalize_part
from ..modalities import MODALITIES, VIDEO
from ..placeholders import as_list, as_number
from ..processing_mm import READERS

Message = dict[str, Any]

ROLES = ("system", "user", "assistant")
# Other keys of a media part: the rate of bare samples, a mark for images with writing, which are never mirrored, and
# which frames of a video are shown.
MEDIA_KEYS = ("sampling_rate", "has_text", *VIDEO_OPTIONS)

# Other keys of a text part: the objects whose places it has, see `boxes`, and the number of their image.
TEXT_KEYS = ("objects", "image_index")


@dataclass(frozen=True)
class ChatRow:
    """
    A conversation to learn from.

    It is not a dict, because the stock `Trainer` removes the columns of dicts that are not arguments of the model, and
    leaves other objects alone.

    Args:
        messages: turns `{"role", "content"}`, each content a list of parts `{"type": "text", "text"}`,
            `{"type": "image", ...}`, `{"type": "audio", ...}` and `{"type": "video", ...}`, with the media under
            `path`, `url`, `bytes`, `base64` or the part's own type. A text with places may have its `objects`, whose
            boxes then follow the changes of their image in training.
        task: the kind of question, such as `caption/fr`; metrics are reported for each.
        id: the sample's name, for reports.
        epoch: the pass over the data; augmentation draws differently in each.
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
    """Return the text parts of a turn, joined, without surrounding white space; not the times of a video's frames."""
    return "".join(part["text"] for part in turn["content"] if part["type"] == "text" and "of" not in part).strip()


def media_kinds() -> tuple[str, ...]:
    """Return the types of media parts: the modalities, and videos, which become parts of two of them."""
    return (*MODALITIES, VIDEO)


def media_parts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the media parts of a normalized conversation in order."""
    kinds = media_kinds()
    return [part for turn in messages for part in turn["content"] if part["type"] in kinds]


def to_row(sample: Any, folder: str | os.PathLike | None = None) -> ChatRow:
    """
    Return a sample in any of the known forms as a `ChatRow`.

    Args:
        sample: a mapping with `messages`, or with `prompt` and `completion` (text or messages each), and optionally
            `task` and `id`. Contents may be strings. Media parts without media are filled in order from the columns
            `images` or `image`, `audios` or `audio`, `videos` or `video`; if the conversation is plain text, those
            media are put in front of the first user turn, as TRL does. `has_text` marks all its images as ones with
            writing.
        folder: the start of relative paths.

    Raises:
        ValueError: for another form, with what was expected and what was given.
    """
    if isinstance(sample, ChatRow):
        return sample
    if not isinstance(sample, Mapping):
        raise ValueError(f"expected a mapping with `messages`, got {type(sample).__name__}")
    turns = raw_messages(sample)
    messages = [normalize_turn(turn, number) for number, turn in enumerate(turns)]
    for kind in media_kinds():
        fill_parts(messages, kind, sample, turns)
    for part in media_parts(messages):
        resolve_source(part, folder)
        if sample.get("has_text") and part["type"] in ("image", VIDEO):
            part["has_text"] = True
    task, name = as_number(sample.get("task")), as_number(sample.get("id"))
    return ChatRow(messages, None if task is None else str(task), None if name is None else str(name))


def raw_messages(sample: Mapping[str, Any]) -> list[Any]:
    """Return the turns of a sample as they are."""
    if sample.get("messages") is not None:
        turns = as_list(sample["messages"])
    elif sample.get("prompt") is not None and sample.get("completion") is not None:
        turns = []
        for role, column in (("user", "prompt"), ("assistant", "completion")):
            value = as_list(sample[column])
            if not isinstance(value, (str, list, tuple)):
                raise ValueError(f"expected text or a list of messages, got {value!r:.80}")
            turns += [{"role": role, "content": value}] if isinstance(value, str) else value
    else:
        raise ValueError(
            f"expected `messages`, or `prompt` and `completion`; got the columns {sorted(map(str, sample))}"
        )
    if not isinstance(turns, (list, tuple)) or not turns:
        raise ValueError(f"expected a list with at least one message, got {turns!r:.80}")
    return list(turns)


def normalize_turn(turn: Any, number: int) -> Message:
    """Return a fresh turn with a list of parts, which hold only known keys."""
    if isinstance(turn, Mapping) and turn.get("role") in OTHER_ROLES:
        turn = {**turn, "role": OTHER_ROLES[turn["role"]]}
    if not isinstance(turn, Mapping) or turn.get("role") not in ROLES:
        raise ValueError(f"message {number}: expected a `role` of {', '.join(ROLES)}, got {turn!r:.80}")
    content = as_list(turn.get("content"))
    content = [content] if isinstance(content, str) else content
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"message {number}: its `content` must be text or a list of parts, got {content!r:.80}")
    parts = []
    for given in content:
        part = {"type": "text", "text": given} if isinstance(given, str) else normalize_part(given)
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append({key: part[key] for key in ("type", "text", *TEXT_KEYS) if key in part})
        elif kind in media_kinds():
            parts.append({key: part[key] for key in ("type", kind, *SOURCE_KEYS, *MEDIA_KEYS) if key in part})
        else:
            raise ValueError(
                f"message {number}: expected a part of `type` text (with `text`), {' or '.join(media_kinds())}, got "
                f"{part!r:.80}"
            )
    return {"role": turn["role"], "content": parts}


def fill_parts(messages: list[Message], kind: str, sample: Mapping[str, Any], turns: Sequence[Any]) -> None:
    """
    Put the media of a column into the parts that hold none, or in front of a first user turn that is plain text.

    Raises:
        ValueError: if their numbers differ; with both.
    """
    column = next((name for name in (f"{kind}s", kind) if sample.get(name) is not None), f"{kind}s")
    wanted = sum(part["type"] == kind and media_source(part) is None for part in media_parts(messages))
    items = split_column(as_list(sample.get(column)), kind, wanted)
    first = next((number for number, turn in enumerate(messages) if turn["role"] == "user"), None)
    has_parts = any(part["type"] == kind for part in media_parts(messages))
    if first is not None and isinstance(turns[first]["content"], str) and not has_parts:
        messages[first]["content"][:0] = [{"type": kind} for _ in items]
    empty = [part for part in media_parts(messages) if part["type"] == kind and media_source(part) is None]
    if len(empty) != len(items):
        raise ValueError(
            f"{len(empty)} {kind} parts hold no {kind}, and the column `{column}` has {len(items)}; give one for each "
            "such part"
        )
    for part, item in zip(empty, items, strict=True):
        part[kind] = item


def split_column(items: Any, kind: str, wanted: int) -> list[Any]:
    """
    Return the media of a column.

    Args:
        items: one of them, a list, or an array or tensor of several that are alike, as `datasets` stacks them.
        kind: their modality.
        wanted: the number of parts without media.
    """
    if items is None:
        return []
    is_item = READERS[kind][0] if kind in READERS else lambda value: not isinstance(value, (list, tuple))
    is_stack = (
        getattr(items, "ndim", 0) > 1 and len(items) == wanted > 1
    )  # gray images have as many axes as one of RGB
    return [items] if is_item(items) and not is_stack else list(items)


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
    if is_relative(path := part.get("path")):
        part["path"] = str(Path(folder) / path)
    elif is_relative(source) and len(source) < 1024 and (Path(folder) / source).is_file():  # it may be base64
        part[kind] = str(Path(folder) / source)


def is_relative(path: Any) -> TypeGuard[str]:
    """Return True for a file's path without its start, and False for URLs."""
    return isinstance(path, str) and "://" not in path and not path.startswith("data:") and not os.path.isabs(path)
