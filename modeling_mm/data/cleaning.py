# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Chat samples that a model can learn from, and a report of those that were left out and why."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..audio import decode_audio, load_audio, unpack_audio
from ..configuration_mm import AUDIO_TOKEN, IMAGE_TOKEN
from ..images import load_image, to_numpy
from ..sources import read_bytes
from ..utils.files import write_text
from .chat_row import ChatRow, Message, media_parts, media_source, to_row, turn_text
from .reading import ChatDataset

REPORT_NAMES = ("cleaning.json", "cleaning.txt")
# A peak 60 dB below full scale is silence to the ear and nothing but rounding to a feature extractor.
SILENCE_PEAK = 0.001
# Words of a question that say which modality it is about, in the languages of the corpora.
ASKS_FOR = {
    "image": re.compile(
        r"\b(?:pictures?\b|images?\b|photo|imagen|imágenes|foto|рисун|картин|изображени|фото)|图片|图像|照片|这张图",
        re.I,
    ),
    "audio": re.compile(
        r"\b(?:sounds?\b|audio|recordings?\b|hear\b|heard|sonido|grabación|oyes|enregistrement|entend|звук|аудио"
        r"|запись|записи\b|слыш)|声音|音频|录音|听到",
        re.I,
    ),
}


@dataclass(frozen=True)
class Rejected:
    """
    One sample that is left out.

    Args:
        number: its place among the samples, from 0.
        id: its name, where it has one.
        file: the medium at fault, where it is one.
        reason: the kind of fault, one of a few: see `clean`.
        detail: what exactly is wrong.
    """

    number: int
    id: str | None
    file: str | None
    reason: str
    detail: str


@dataclass
class CleaningReport:
    """How many samples were kept, and which were left out and why, in their order."""

    kept: int = 0
    left_out: list[Rejected] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How many samples were left out for each reason, the most frequent first."""
        return dict(Counter(row.reason for row in self.left_out).most_common())

    def __str__(self) -> str:
        """One line a sample, after the totals."""
        totals = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        lines = [f"{self.kept} samples kept, {len(self.left_out)} left out{f' ({totals})' if totals else ''}"]
        for row in self.left_out:
            name = f"{row.number}" if row.id is None else f"{row.number} ({row.id})"
            lines.append("\t".join((name, row.reason, row.file or "-", " ".join(row.detail.split()))))
        return "\n".join(lines) + "\n"

    def save(self, folder: str | os.PathLike) -> None:
        """Writes `cleaning.json`, for programs, and `cleaning.txt`, for readers, into `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        rows = {"kept": self.kept, "counts": self.counts, "left_out": [asdict(row) for row in self.left_out]}
        texts = (json.dumps(rows, ensure_ascii=False, indent=1) + "\n", str(self))
        for name, text in zip(REPORT_NAMES, texts, strict=True):
            write_text(Path(folder) / name, text)


class RejectExample(Exception):
    """Why a sample is left out."""

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
    Keep the samples that a model can learn from.

    Left out are, with these reasons:
    - `malformed`: no conversation, or media columns that do not match its parts;
    - `roles`: user and assistant do not take turns; `no answer`: the assistant does not come last, or says nothing;
    - `empty`: a turn of the user has neither text nor media;
    - `placeholder`: a media token is written into the text; `no medium`: a media part holds nothing;
    - `missing`: the file is not there; `unreadable`: it cannot be decoded, or holds no pixels or samples;
    - `wrong modality`: a sound where a picture should be, or the reverse; `silent`: a sound without sound;
    - `wording`: the question is about a picture where there is only a sound, or the reverse;
    - `duplicate`: a sample before has media of the same bytes and the same words.

    Args:
        samples: in any form that `to_row` knows; a `ChatDataset`; or a `ChatStream`, which itself stops at a sample
            that is malformed.
        folder: where relative media paths start; a `ChatDataset` knows that itself.
        check_wording: whether to look for questions about a modality that is not there.
        silence_peak: sounds that never exceed it, of 1, are silent.
        progress: whether to show a bar.

    Returns:
        The rows that are kept, in their order, and the report of the others.
    """
    from tqdm import tqdm  # only here, as the package does without it

    report, kept = CleaningReport(), []
    seen: dict[str, int] = {}
    media = MediaChecks(silence_peak)
    raw = samples
    if isinstance(samples, ChatDataset):  # which would stop at the first sample that is malformed
        raw, folder = samples.samples, samples.folder
    for number, sample in enumerate(tqdm(raw, desc="cleaning", disable=not progress)):
        try:
            row = checked_row(sample, folder, check_wording)
            first = seen.setdefault(digest_of(row, media), number)
            if first != number:
                raise RejectExample("duplicate", f"the same media and words as sample {first}")
        except RejectExample as fault:
            report.left_out.append(Rejected(number, name_of(sample), fault.file, fault.reason, fault.detail))
        else:
            kept.append(row)
    report.kept = len(kept)
    return kept, report


def name_of(sample: Any) -> str | None:
    """The id of a sample, however broken it is."""
    name = sample.get("id") if isinstance(sample, dict) else getattr(sample, "id", None)
    return None if name is None else str(name)


def checked_row(sample: Any, folder: str | os.PathLike | None, check_wording: bool) -> ChatRow:
    """A sample as a row, or a RejectExample in what it says; its media are not looked at."""
    try:
        row = to_row(sample, folder)
    except ValueError as error:
        raise RejectExample("malformed", str(error)) from error
    check_turns(row.messages)
    for turn in row.messages:
        for token in (IMAGE_TOKEN, AUDIO_TOKEN):
            if token in turn_text(turn):
                raise RejectExample(
                    "placeholder", f"{token} is written in the text of the {turn['role']}; parts stand for media"
                )
    if check_wording:
        check_modality(row)
    return row


def check_turns(messages: list[Message]) -> None:
    """Raise a RejectExample unless user and assistant alternate, after any system turn, and each says something."""
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
    """A RejectExample where the questions are about one modality alone, and the media are of the other alone."""
    kinds = {part["type"] for part in media_parts(row.messages)}
    question = " ".join(turn_text(turn) for turn in row.messages if turn["role"] == "user")
    asked = {kind for kind, words in ASKS_FOR.items() if words.search(question)}
    if len(kinds) == 1 and len(asked) == 1 and kinds != asked:
        raise RejectExample(
            "wording", f"the question asks for {asked.pop()}, the only media are {kinds.pop()}: {question}"
        )


def digest_of(row: ChatRow, media: "MediaChecks") -> str:
    """What two samples have in common if and only if their roles, words and the bytes of their media are the same."""
    digest = hashlib.sha256()
    for turn in row.messages:
        digest.update(f"\0{turn['role']}\0".encode())
        for part in turn["content"]:
            told = " ".join(part["text"].split()) if part["type"] == "text" else media.check(part)
            digest.update(f"\1{part['type']}\1{told}".encode())
    return digest.hexdigest()


class MediaChecks:
    """Looks at media, at each file once however many samples share it."""

    def __init__(self, silence_peak: float):
        self.silence_peak = silence_peak
        self._known: dict[tuple[str, str], str | RejectExample] = {}

    def check(self, part: dict[str, Any]) -> str:
        """The sha256 of what a media part shows; raises a RejectExample where it cannot be learned from."""
        source = media_source(part)
        if not isinstance(source, (str, os.PathLike)):
            return self._look(part["type"], source, part.get("sampling_rate"), file_name(source))
        key = (part["type"], os.fspath(source))
        if key not in self._known:
            try:
                self._known[key] = self._look(part["type"], source, None, file_name(source))
            except RejectExample as fault:
                self._known[key] = fault
        found = self._known[key]
        if isinstance(found, RejectExample):
            raise RejectExample(found.reason, found.detail, found.file)
        return found

    def _look(self, kind: str, source: Any, rate: float | None, file: str | None) -> str:
        if source is None:
            raise RejectExample("no medium", f"its {kind} part holds no {kind}")
        if isinstance(source, (str, os.PathLike)) and is_missing(os.fspath(source)):
            raise RejectExample("missing", f"there is no file {source}", file)
        data = None
        try:
            if isinstance(source, (str, os.PathLike, bytes)) or (isinstance(source, dict) and "array" not in source):
                data = source = read_bytes(source)
            if kind == "image":
                pixels = load_image(source).tobytes()
            else:
                pixels = self._hear(source, rate, file)
        except ValueError as error:
            if data is not None and is_other(kind, data):
                wanted, got = ("picture", "sound") if kind == "image" else ("sound", "picture")
                raise RejectExample("wrong modality", f"expected a {wanted}, got a {got}", file) from error
            raise RejectExample("unreadable", str(error), file) from error
        return hashlib.sha256(pixels if data is None else data).hexdigest()

    def _hear(self, source: Any, rate: float | None, file: str | None) -> bytes:
        samples, found_rate = unpack_audio(source)
        # At its own rate, as resampling would cost the most of the time; one that is not told does not matter here.
        rate = int(found_rate or rate or 1)
        heard = load_audio((to_numpy(samples), rate), rate)
        peak = float(np.abs(heard).max())
        if peak <= self.silence_peak:
            raise RejectExample("silent", f"the loudest of {len(heard)} samples is {peak:g}", file)
        return heard.tobytes()


def is_missing(path: str) -> bool:
    """Whether `path` names a file that is not there; text of base64 and addresses do not."""
    path = path.removeprefix("file://")
    if path.startswith(("http://", "https://", "data:")) or len(path) > 4096 or os.path.isfile(path):
        return False
    return bool(os.path.splitext(path)[1]) or os.path.isabs(path)


def is_other(kind: str, data: bytes) -> bool:
    """Whether what is no picture is a sound, or what is no sound a picture."""
    try:
        if kind == "image":
            decode_audio(data)
        else:
            load_image(data)
    except ValueError:
        return False
    return True


def file_name(source: Any) -> str | None:
    """What a report calls a medium: its path, where it has one that is short enough to be one."""
    path = source.get("path") if isinstance(source, dict) else source
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) and len(os.fspath(path)) < 1024 else None
