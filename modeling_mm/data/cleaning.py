# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Examples that a model can learn from, and a report of the others."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..audio import load_audio, unpack_audio
from ..chat import VIDEO_OPTIONS
from ..images import load_image, to_numpy
from ..item_reader import ItemReader
from ..modalities import BUILT_IN, MODALITIES, VIDEO
from ..processing_mm import READERS
from ..sources import local_path, read_bytes
from ..utils.files import write_text
from ..utils.progress import show_progress
from ..videos import VideoOptions, load_video
from .chat_row import ChatRow, Message, media_parts, media_source, to_row, turn_text
from .reading import ChatDataset

# Of a video some frames are decoded, and its audio.
CHECKED_FRAMES = VideoOptions(num_frames=8)
REPORT_NAMES = ("cleaning.json", "cleaning.txt")
# A peak 60 dB below full scale is inaudible, and rounding noise to a feature extractor.
SILENCE_PEAK = 0.001
# Words of questions about a modality, in English, Chinese, French, Spanish and Russian.
ASKS_FOR = {
    "image": re.compile(
        r"\b(?:pictur(?:e|es)\b|images?\b|photo|imagen|imágenes|foto|рисун|картин|изображени|фото)|图片|图像|照片|这张图",
        re.I,
    ),
    "audio": re.compile(
        r"\b(?:soun(?:d|ds)\b|audio|recordings?\b|hear\b|heard|sonido|grabación|oyes|enregistrement|entend|звук|аудио"
        r"|запись|записи\b|слыш)|声音|音频|录音|听到",
        re.I,
    ),
}


@dataclass(frozen=True)
class Rejected:
    """An example that is left out."""

    number: int  # its index, from 0
    id: str | None
    file: str | None  # path of the media at fault
    reason: str  # kind of fault, see `clean`
    detail: str


@dataclass
class CleaningReport:
    """Number of examples that were kept, and those that were left out, in their order."""

    kept: int = 0
    left_out: list[Rejected] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of examples left out for each reason, the most frequent first."""
        return dict(Counter(row.reason for row in self.left_out).most_common())

    def __str__(self) -> str:
        totals = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        lines = [f"{self.kept} examples kept, {len(self.left_out)} left out{f' ({totals})' if totals else ''}"]
        for row in self.left_out:
            name = f"{row.number}" if row.id is None else f"{row.number} ({row.id})"
            lines.append("\t".join((name, row.reason, row.file or "-", " ".join(row.detail.split()))))
        return "\n".join(lines) + "\n"

    def save(self, folder: str | os.PathLike) -> None:
        """Write `cleaning.json`, for programs, and `cleaning.txt`, for readers, into a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        rows = {"kept": self.kept, "counts": self.counts, "left_out": [asdict(row) for row in self.left_out]}
        texts = (json.dumps(rows, ensure_ascii=False, indent=1) + "\n", str(self))
        for name, text in zip(REPORT_NAMES, texts, strict=True):
            write_text(Path(folder) / name, text)


class RejectExample(Exception):
    """Reason why an example is left out."""

    def __init__(self, reason: str, detail: str, file: str | None = None):
        super().__init__(detail)
        self.reason, self.detail, self.file = reason, detail, file


def clean(
    samples: Iterable[Any],
    folder: str | os.PathLike | None = None,
    check_wording: bool = True,
    silence_peak: float = SILENCE_PEAK,
    progress: bool = True,
) -> tuple[list[ChatRow], CleaningReport]:
    """
    Keep the examples that a model can learn from.

    The reasons to leave an example out are:
    - `malformed`: it is not a chat, or its media columns do not match its parts;
    - `roles`: user and assistant do not take turns; `no answer`: the assistant does not come last, or is empty;
    - `empty`: a turn of the user has neither text nor media;
    - `placeholder`: its text holds a media token; `no medium`: a media part holds nothing;
    - `missing`: a file does not exist; `unreadable`: it cannot be decoded, or holds no pixels or samples;
    - `wrong modality`: audio in place of an image, or the reverse; `silent`: audio that is inaudible;
    - `wording`: the question is about an image, but there is only audio, or the reverse;
    - `duplicate`: an earlier example has media of the same bytes and the same words.

    Args:
        samples: examples in any form that `to_row` knows; a `ChatDataset`; or a `ChatStream`, which itself raises for
            malformed examples.
        folder: folder that media paths are relative to; a `ChatDataset` has its own.
        check_wording: reject questions about a modality that is absent.
        silence_peak: audio is silent if no sample exceeds it, of 1.
        progress: show a progress bar.

    Returns:
        The rows that are kept, in their order, and the report.

    Example:
        >>> rows, report = clean(load_chats("train.jsonl"))
        >>> report.save("cleaning")
    """
    report, kept = CleaningReport(), []
    seen: dict[str, int] = {}
    media = MediaChecks(silence_peak)
    raw = samples
    if isinstance(samples, ChatDataset):  # which would raise for the first malformed example
        raw, folder = samples.samples, samples.folder
    for number, sample in enumerate(show_progress(raw, desc="cleaning", disable=not progress)):
        try:
            row = checked_row(sample, folder, check_wording)
            first = seen.setdefault(digest_of(row, media), number)
            if first != number:
                raise RejectExample("duplicate", f"the same media and words as example {first}")
        except RejectExample as fault:
            name = sample.get("id") if isinstance(sample, dict) else getattr(sample, "id", None)
            name = None if name is None else str(name)
            report.left_out.append(Rejected(number, name, fault.file, fault.reason, fault.detail))
        else:
            kept.append(row)
    report.kept = len(kept)
    return kept, report


def checked_row(sample: Any, folder: str | os.PathLike | None, check_wording: bool) -> ChatRow:
    """Return an example as a row, without looking at its media; raise a RejectExample for its text."""
    try:
        row = to_row(sample, folder)
    except ValueError as error:
        raise RejectExample("malformed", str(error)) from error
    check_turns(row.messages)
    for turn in row.messages:
        for modality in MODALITIES.values():
            if modality.token in turn_text(turn):
                raise RejectExample(
                    "placeholder", f"the text of the {turn['role']} holds {modality.token}; use parts for media"
                )
    if check_wording:
        check_modality(row)
    return row


def check_turns(messages: Sequence[Message]) -> None:
    """Raise a RejectExample unless user and assistant alternate, after any system turn, and none is empty."""
    roles = [turn["role"] for turn in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        reason = "no answer" if turns and turns == (["user", "assistant"] * len(turns))[: len(turns)] else "roles"
        raise RejectExample(
            reason, f"the roles are {', '.join(roles)}; expected user and assistant in turn, assistant last"
        )
    for number, turn in enumerate(messages):
        if turn["role"] == "assistant" and not turn_text(turn):
            raise RejectExample("no answer", f"message {number}, of the assistant, is empty")
        if turn["role"] == "user" and not turn_text(turn) and not media_parts([turn]):
            raise RejectExample("empty", f"message {number}, of the user, has neither text nor media")


def check_modality(row: ChatRow) -> None:
    """Raise a RejectExample if the questions are about one modality, and the media are of another."""
    kinds = {part["type"] for part in media_parts(row.messages)}
    if VIDEO in kinds:  # to be seen and heard
        return
    question = " ".join(turn_text(turn) for turn in row.messages if turn["role"] == "user")
    asked = {kind for kind, words in ASKS_FOR.items() if words.search(question)}
    if len(kinds) == 1 and len(asked) == 1 and kinds != asked:
        raise RejectExample(
            "wording", f"the question is about {asked.pop()}, but all media are {kinds.pop()}: {question}"
        )


def digest_of(row: ChatRow, media: "MediaChecks") -> str:
    """Return a digest of the roles, the words and the bytes of the media of an example."""
    digest = hashlib.sha256()
    for turn in row.messages:
        digest.update(f"\0{turn['role']}\0".encode())
        for part in turn["content"]:
            content = " ".join(part["text"].split()) if part["type"] == "text" else media.check(part)
            if part["type"] == VIDEO:  # two sections of a file are two videos
                content += str([part.get(name) for name in VIDEO_OPTIONS])
            digest.update(f"\1{part['type']}\1{content}".encode())
    return digest.hexdigest()


class MediaChecks:
    """Checks of media, each file once, however many examples share it."""

    def __init__(self, silence_peak: float):
        self.silence_peak = silence_peak
        self._known: dict[tuple[str, str], str | RejectExample] = {}

    def check(self, part: dict[str, Any]) -> str:
        """Return the sha256 of a part's media, or raise a RejectExample."""
        kind, source = part["type"], media_source(part)
        if not isinstance(source, (str, os.PathLike)):
            return self._digest(kind, source, part.get("sampling_rate"))
        key = (kind, os.fspath(source))
        if key not in self._known:
            try:
                self._known[key] = self._digest(kind, source, None)
            except RejectExample as fault:
                self._known[key] = fault
        found = self._known[key]
        if isinstance(found, RejectExample):
            raise RejectExample(found.reason, found.detail, found.file)
        return found

    def _digest(self, kind: str, source: Any, rate: float | None) -> str:
        file = file_name(source)
        if source is None:
            raise RejectExample("no medium", f"its {kind} part holds no {kind}")
        is_path = isinstance(source, (str, os.PathLike))
        if is_path and is_missing(os.fspath(source)):
            raise RejectExample("missing", f"the file {source} does not exist", file)
        data = None
        try:
            if kind in MODALITIES and kind not in BUILT_IN:
                return hashlib.sha256(ItemReader(MODALITIES[kind]).load(source).tobytes()).hexdigest()
            if is_path or isinstance(source, bytes) or (isinstance(source, dict) and "array" not in source):
                data = source = read_bytes(source)
            if kind == VIDEO:
                content = b"".join(frame.tobytes() for frame in load_video(source, CHECKED_FRAMES).frames)
            else:
                content = load_image(source).tobytes() if kind == "image" else self._samples(source, rate, file)
        except ValueError as error:
            other = None if data is None else other_modality(kind, data)
            if other is not None:
                raise RejectExample("wrong modality", f"expected {kind}, got {other}", file) from error
            raise RejectExample("unreadable", str(error), file) from error
        return hashlib.sha256(content if data is None else data).hexdigest()

    def _samples(self, source: Any, rate: float | None, file: str | None) -> bytes:
        samples, found_rate = unpack_audio(source)
        # At its own rate, as resampling would take most of the time; an unknown rate does not matter here.
        rate = int(found_rate or rate or 1)
        loaded = load_audio((to_numpy(samples), rate), rate)
        peak = float(np.abs(loaded).max())
        if peak <= self.silence_peak:
            raise RejectExample("silent", f"the loudest of {len(loaded)} samples is {peak:g}", file)
        return loaded.tobytes()


def is_missing(path: str) -> bool:
    """Return if `path` names a file that does not exist; base64 and addresses do not."""
    path = os.fspath(local_path(path))
    if path.startswith(("http://", "https://", "data:")) or len(path) > 4096 or os.path.isfile(path):
        return False
    return bool(os.path.splitext(path)[1]) or os.path.isabs(path)


def other_modality(kind: str, data: bytes) -> str | None:
    """Return the modality of a file that is not of the expected kind, or None."""
    for other, (_, decode) in READERS.items():
        with suppress(ValueError):
            if other != kind:
                decode(data)
                return other
    return None


def file_name(source: Any) -> str | None:
    """Return the path of media for a report, or None if they are data."""
    path = source.get("path") if isinstance(source, dict) else source
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) and len(os.fspath(path)) < 1024 else None
