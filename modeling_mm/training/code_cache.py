# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Assistants' images and audio as codes in training, each file encoded once and kept on disk."""

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..chat import CODES
from ..data.chat_row import ChatRow
from ..utils.files import write_bytes
from .encoder_cache import content_digest, fingerprint, source_path


class CodeCache:
    """
    Codes of media files on disk, by the content of the files and the weights of the codec.

    Processes and workers may share a folder: a file appears in it as a whole.

    Args:
        folder: folder of all codes.
        processor: processor with the codecs of the model, see [`MMProcessor.use_codecs`].

    Example:
        >>> collator = ChatCollator(processor, code_cache=CodeCache("cache", processor))
    """

    def __init__(self, folder: str | os.PathLike, processor: Any):
        self.processor = processor
        self.folders = {
            name: Path(folder) / f"{name}-{fingerprint(each.codec)}" for name, each in processor.written.items()
        }
        self.digests: dict[str, str] = {}

    def codes(self, part: dict[str, Any]) -> list[list[int]]:
        """
        Return the codes (K, T) of an assistant's media part.

        Raises:
            ValueError: for media that are not a file, and for a file that cannot be read.
        """
        source = source_path(part)
        if source not in self.digests:
            self.digests[source] = content_digest(source)
        path = self.folders[part["type"]] / f"{self.digests[source]}.npy"
        if path.is_file():
            kept: list[list[int]] = np.load(path, allow_pickle=False).tolist()
            return kept
        codes: list[list[int]] = self.processor.encode_codes(part)
        data = io.BytesIO()
        np.save(data, np.asarray(codes, dtype=np.int32))
        write_bytes(path, data.getvalue())
        return codes


def write_codes(processor: Any, row: ChatRow, cache: CodeCache | None = None) -> ChatRow:
    """Return a row whose assistants' media are their codes, so that no dropout and no augmentation changes them."""

    def known(part: dict[str, Any]) -> dict[str, Any]:
        if cache is None or part["type"] not in cache.folders or CODES in part:
            return part
        return {**part, CODES: cache.codes(part)}

    messages = [
        {**turn, "content": [known(part) for part in turn["content"]]} if turn["role"] == "assistant" else turn
        for turn in row.messages
    ]
    return replace(row, messages=processor.write_codes([messages])[0])
