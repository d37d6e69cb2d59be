# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The weights that a card's figures belong to, so that figures of other weights are noticed."""

import hashlib
import os
import re
from pathlib import Path

FILES = "model*.safetensors"
PART = 2**22  # bytes that are read at once
STATEMENT = "Measured on weights with the SHA-256 `{digest}`."
STATED = re.compile(re.escape(STATEMENT).replace(re.escape("{digest}"), "([0-9a-f]{64})"))


def weights_digest(folder: str | os.PathLike) -> str | None:
    """
    Return the SHA-256 of a folder's weights, as the Hub shows it beside the file, or nothing if there are none.

    Weights in several files have that of their digests, in the order of their names.

    Example:
        >>> weights_digest("/nowhere") is None
        True
    """
    digests = [file_digest(path) for path in sorted(Path(folder).glob(FILES))]
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, which is read in parts."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(PART):
            digest.update(part)
    return digest.hexdigest()


def measured_on(digest: str | None) -> str:
    """Return what a card says of the weights that its figures belong to; nothing if they are not known."""
    return "" if digest is None else STATEMENT.format(digest=digest)


def measured_digests(text: str) -> list[str]:
    """
    Return the digests that a card states.

    Example:
        >>> measured_digests("## Figures\\n\\n" + measured_on("a" * 64)) == ["a" * 64]
        True
    """
    return STATED.findall(text)
