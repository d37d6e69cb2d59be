# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Videos of examples as files of images and audio, for encoder caches and for training that decodes each once."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile

from ..chat import VIDEO_OPTIONS
from ..modalities import VIDEO
from ..sources import describe, read_bytes
from ..utils.files import write_text
from ..utils.progress import show_progress
from ..video_parts import VideoReader, expand_turn
from ..videos import Video
from .chat_row import ChatRow, media_parts, media_source

PARTS = "parts.json"  # written last


def write_videos(
    rows: Iterable[ChatRow], folder: str | os.PathLike, processor: Any, progress: bool = True
) -> list[ChatRow]:
    """
    Write the frames and the audio of videos to files, and return the examples with these in their place.

    Videos that were written before, with the same options, are not decoded again.

    Args:
        folder: gets a folder for each video and choice of frames.
        processor: of the model, which decides if audio and times are shown.

    Raises:
        ValueError: for a video that cannot be shown, with its example and turn.

    Example:
        >>> rows = write_videos(load_chats("train.jsonl"), "frames", processor)
        >>> cache.fill(rows)
    """
    reader = VideoReader.of(processor)
    written = []
    for number, row in enumerate(show_progress(rows, desc="writing videos", disable=not progress)):
        if any(part["type"] == VIDEO for part in media_parts(row.messages)):
            name = f"Example {number if row.id is None else row.id}"
            row = replace(row, messages=[write_turn(turn, name, Path(folder), reader) for turn in row.messages])
        written.append(row)
    return written


def write_turn(turn: dict[str, Any], name: str, folder: Path, reader: VideoReader) -> dict[str, Any]:
    """Return a turn whose videos are files of images and audio."""
    content: list[Any] = []
    for part in turn["content"]:
        content += write_video(part, name, folder, reader) if part["type"] == VIDEO else [part]
    return {**turn, "content": content}


def write_video(part: dict[str, Any], name: str, folder: Path, reader: VideoReader) -> list[dict[str, Any]]:
    """Return the parts that show a video, with the paths of their files."""
    source = media_source(part)
    if source is None or isinstance(source, Video):
        raise ValueError(f"{name}: expected a video that is a file, got {describe(source)}; write it to one")
    try:
        data = read_bytes(source)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    options = {key: part[key] for key in (*VIDEO_OPTIONS, "has_text") if key in part}
    key = json.dumps([options, repr(reader)], sort_keys=True).encode()
    place = folder / hashlib.sha256(data + key).hexdigest()[:32]
    if not (place / PARTS).is_file():
        place.mkdir(parents=True, exist_ok=True)
        turn = expand_turn({"content": [{**part, VIDEO: data}]}, name, reader, iter([data]))
        parts = [write_part(each, number, place) for number, each in enumerate(turn["content"])]
        write_text(place / PARTS, json.dumps(parts))
    parts = json.loads((place / PARTS).read_text(encoding="utf-8"))
    return [{**each, "path": str(place / each["path"])} if "path" in each else each for each in parts]


def write_part(part: dict[str, Any], number: int, place: Path) -> dict[str, Any]:
    """Write an image or audio that is decoded, and return its part with the name of the file."""
    kind = part["type"]
    decoded = part.get(kind)
    if kind == "image":
        part[kind].save(place / f"{number}.png")
    elif isinstance(decoded, dict):  # audio
        soundfile.write(place / f"{number}.wav", decoded["array"], decoded["sampling_rate"], subtype="FLOAT")
    else:
        return part
    suffix = "png" if kind == "image" else "wav"
    return {**{key: value for key, value in part.items() if key != kind}, "path": f"{number}.{suffix}"}
