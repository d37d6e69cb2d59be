# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The description of an index: its model, columns and store, in a file beside the rows."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..utils.files import write_text

MANIFEST = "index.json"
PARTS = "parts"  # folder of embeddings that a build has made and not yet stored
MEDIA = "media"  # folder of media that have no file elsewhere
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """
    Description of an index.

    Args:
        store: `exact`, `milvus` or the address of a Milvus server
        collection: name in Milvus
        index_type: of Milvus
        dimension: numbers of an embedding
        model: folder or Hub id of the model that made the embeddings
        fingerprint: hash of its weights and vocabulary
        columns: types of the metadata
        is_complete: a build has come to its end
        format: version of the file
    """

    store: str
    collection: str
    index_type: str | None
    dimension: int
    model: str
    fingerprint: str
    columns: Mapping[str, str]
    is_complete: bool = False
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        write_text(folder / MANIFEST, json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """
    Read the description of an index.

    Raises:
        FileNotFoundError: if the folder holds no index.
        ValueError: for a file that is damaged or of a newer version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no index, as it has no {MANIFEST}. Build one: modeling-mm index build."
        )
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = Manifest(**values)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not the description of an index ({error}). Build the index again.") from error
    if found.format != FORMAT:
        raise ValueError(f"{path} has the format {found.format}, expected {FORMAT}. Build the index again.")
    return found
