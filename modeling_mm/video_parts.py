# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Videos as media that the model has: frames as images behind their times, and the audio track as audio.

A video is expanded before anything else reads a chat or a text, so that placeholders, batches and caches know images
and audio alone.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .chat import VIDEO_OPTIONS, media_source, parts_of
from .configuration_mm import HIDDEN
from .modalities import MODALITIES, VIDEO, Modality
from .placeholders import Rows, is_no_list, mismatch, split_by_row, split_rows
from .videos import Video, VideoOptions, load_video, take_options

VIDEO_TOKEN = "<|video|>"  # in texts of `processor(text=..., videos=...)`; the vocabulary does not have it
# Names of videos for messages; models have images and audio.
NAMES = Modality(VIDEO, dimensions=(4,), token=VIDEO_TOKEN)

# ---- From a video to parts of a chat --------------------------------------------------------------------------------


def time_text(seconds: float) -> str:
    """Return a time as it stands in front of a frame: `0s`, `1.5s`, `12.04s`."""
    return f"{round(max(seconds, 0.0), 2):.10g}s"


def video_parts(video: Video, frame_times: bool = True) -> list[dict[str, Any]]:
    """Return the parts of a chat that show a video: each frame behind its time, then the audio."""
    parts: list[dict[str, Any]] = []
    for time, frame in zip(video.times, video.frames, strict=True):
        # `of` says with which media a text belongs.
        parts += [{"type": "text", "text": time_text(time), "of": "image"}] if frame_times else []
        parts.append({"type": "image", "image": frame})
    return parts if video.audio is None else [*parts, {"type": "audio", "audio": video.audio}]


@dataclass(frozen=True)
class VideoReader:
    """
    Reader of videos for one processor.

    Args:
        has_images, has_audio: True if the model has the encoder.
        options: of the call; those of a part come before them.
        hides_placeholders: True for decoders that know no text between media.
    """

    has_images: bool
    has_audio: bool
    options: VideoOptions = field(default_factory=VideoOptions)
    hides_placeholders: bool = False

    @classmethod
    def of(cls, processor: Any, options: dict[str, Any] | None = None) -> "VideoReader":
        """Return the reader of a processor, which takes the options of videos out of the options of a call."""
        return cls(
            has_images=processor.image_processor is not None,
            has_audio=processor.feature_extractor is not None,
            options=take_options(options or {}),
            hides_placeholders=processor.placeholders == HIDDEN,
        )

    def parts(self, source: Any, options: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """
        Return the parts that show a video.

        Raises:
            ValueError: if the model cannot see, or cannot hear what it must; and as `load_video`.
        """
        self.check()
        chosen = self.options.update(options or {})
        if chosen.load_audio_from_video and not self.has_audio:
            raise ValueError(
                "`load_audio_from_video=True` needs a model with an audio encoder, and this processor has no "
                "`feature_extractor`; leave it out, or join one"
            )
        with_audio = self.has_audio and chosen.load_audio_from_video is not False
        times = not self.hides_placeholders if chosen.frame_times is None else chosen.frame_times
        return video_parts(load_video(source, chosen, with_audio), times)

    def check(self) -> None:
        """Raise a `ValueError` for a model that cannot see."""
        if not self.has_images:
            raise ValueError(
                "a video is shown as images, but this processor has no `image_processor`; join a vision encoder, or "
                "pass the file as an audio part, of which the audio track is read"
            )


def expand_chats(chats: Sequence[Sequence[Any]], reader: VideoReader, videos: Any = None) -> list[list[Any]]:
    """
    Return conversations whose video parts have become parts of images, text and audio; others are the same objects.

    Args:
        videos: for parts that hold none: one list for each conversation, or a flat list.

    Raises:
        ValueError: for a video that cannot be shown, with its conversation and turn; and if parts and `videos` differ
            in number.
    """
    counts = [sum(len(parts_of(turn, VIDEO)) for turn in chat) for chat in chats]
    if videos is None and not any(counts):
        return list(chats)  # type: ignore[arg-type]
    given = iter(fill_videos(chats, videos))
    return [
        [
            expand_turn(turn, f"Conversation {row}, turn {number}", reader, given) if parts_of(turn, VIDEO) else turn
            for number, turn in enumerate(chat)
        ]
        for row, chat in enumerate(chats)
    ]


def fill_videos(chats: Sequence[Sequence[Any]], videos: Any) -> list[Any]:
    """Return the source of each video part in order; those that hold none take one of `videos`."""
    sources = [[media_source(part) for turn in chat for part in parts_of(turn, VIDEO)] for chat in chats]
    if videos is None:
        return [source for row in sources for source in row]
    empty = [sum(each is None for each in row) for row in sources]
    if not any(empty):
        raise ValueError(
            'the `videos` have no part that waits for them; write {"type": "video"} into the content of the turn that '
            "they belong to, or pass them in their parts alone"
        )
    rows = split_by_row(*split_rows(videos, is_no_list), empty, NAMES)
    for row, (count, items) in enumerate(zip(empty, rows, strict=True)):
        if count != len(items):
            raise ValueError(
                f"Conversation {row} has {count} video parts that hold none, and {len(items)} videos were given for it"
            )
    waiting = [iter(items) for items in rows]
    return [next(waiting[row]) if each is None else each for row, items in enumerate(sources) for each in items]


def expand_turn(turn: Mapping[str, Any], where: str, reader: VideoReader, sources: Iterator[Any]) -> dict[str, Any]:
    """Return a turn with the parts of its videos, the next ones of `sources`."""
    content: list[Any] = []
    for part in turn["content"]:
        if not (isinstance(part, Mapping) and part.get("type") == VIDEO):
            content.append(part)
            continue
        source = next(sources)
        try:
            reader.check()
            if source is None:
                raise ValueError("its video part holds no video; give it a `path`, `url`, `base64` or `bytes`")
            shown = reader.parts(source, {name: part[name] for name in VIDEO_OPTIONS if name in part})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        marks = {"has_text": True} if part.get("has_text") else {}
        content += [{**each, **marks} if each["type"] == "image" else each for each in shown]
    return {**turn, "content": content}


# ---- From a video to placeholders in a text -------------------------------------------------------------------------


def insert_videos(
    text: Any, media: Mapping[str, Any], is_item: Mapping[str, Callable[[Any], bool]], videos: Any, reader: VideoReader
) -> tuple[Any, dict[str, Any]]:
    """
    Put the frames and the audio of videos where `<|video|>` stands in texts.

    Args:
        text: a string, a list of strings, or None for one row for each video or inner list.
        media: by modality, as the processor takes them.
        is_item: by modality, tells one item from a list of items.
        videos: one, a list of lists, one for each row; or a flat list, which is split by the placeholders.

    Returns:
        The text with placeholders of images and audio, and by modality one list of items for each row.

    Raises:
        ValueError: if text and media do not match, and for a video that cannot be shown; with the row.
    """
    reader.check()
    given = split_rows(videos, is_no_list)
    if text is None:
        text = [""] * (len(given[0]) if given[1] else len(given[0][0]))
    texts = [text] if isinstance(text, str) else list(text)
    if not all(isinstance(each, str) for each in texts):
        return text, dict(media)  # refused by what reads it next
    names = {**MODALITIES, VIDEO: NAMES}
    pattern = re.compile(f"({'|'.join(re.escape(each.token) for each in names.values())})")
    split = [pattern.split(each) for each in texts]
    rows: dict[str, Rows] = {}
    for name, modality in names.items():
        found = given if name == VIDEO else split_rows(media.get(name), is_item.get(name, is_no_list))
        rows[name] = split_by_row(*found, [pieces.count(modality.token) for pieces in split], modality)
    filled: dict[str, Rows] = {name: [[] for _ in texts] for name in MODALITIES}
    for row, pieces in enumerate(split):
        items = {name: rows[name][row] for name in names}
        if len(pieces) == 1:  # without a placeholder; media go in front
            pieces = [modality.token for name, modality in names.items() for _ in items[name]] + pieces
        for name, modality in names.items():
            if pieces.count(modality.token) != len(items[name]):
                counts = mismatch(modality, pieces.count(modality.token), len(items[name]))
                raise ValueError(f"Row {row}: {counts}. Write one {modality.token} for each, or none at all.")
        texts[row], parts = fill_row(pieces, items, names, reader, row)
        for name in MODALITIES:
            filled[name][row] = [part[name] for part in parts if part["type"] == name]
    return (texts[0] if isinstance(text, str) else texts), filled


def fill_row(
    pieces: Sequence[str], items: Mapping[str, list[Any]], names: Mapping[str, Modality], reader: VideoReader, row: int
) -> tuple[str, list[dict[str, Any]]]:
    """Return the text of a row with its videos written as frames and audio, and the parts of all its media."""
    kinds = {modality.token: name for name, modality in names.items()}
    left = {name: iter(enumerate(each)) for name, each in items.items()}
    parts: list[dict[str, Any]] = []
    for piece in pieces:
        if (kind := kinds.get(piece)) is None:
            parts.append({"type": "text", "text": piece})
            continue
        index, item = next(left[kind])
        try:
            parts += reader.parts(item) if kind == VIDEO else [{"type": kind, kind: item}]
        except ValueError as error:
            raise ValueError(f"Row {row}, item {index} of its videos: {error}") from error
    tokens = {name: modality.token for name, modality in MODALITIES.items()}
    return "".join(part["text"] if part["type"] == "text" else tokens[part["type"]] for part in parts), parts
