# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Content of items: decoded, hashed, and refused if there is nothing in it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..audio import scale_to_unit, unpack_audio
from ..images import load_image, to_numpy
from ..modalities import MODALITIES
from ..sources import describe, read_bytes
from ..utils.files import write_bytes
from .columns import check_length, check_metadata
from .items import Item
from .segments import Row

SILENCE = 1e-4  # of full scale, -80 dB: the difference of the loudest and the quietest sample of silence
SIGNATURE_BYTES = 16


@dataclass(frozen=True)
class Content:
    """
    An item with its media decoded.

    Args:
        item: the item, with an id
        media: by modality, what the processor takes
        signature: hash of text, media and metadata
    """

    item: Item
    media: Mapping[str, list[Any]]
    signature: str


def sign(item: Item) -> tuple[str, dict[str, list[Any]]]:
    """
    Return the hash of an item's text, media and metadata, and its media as bytes where they are files.

    Raises:
        ValueError: for a file that cannot be read, with the item.
    """
    digest = hashlib.blake2b(digest_size=SIGNATURE_BYTES)
    digest.update(json.dumps([item.text, dict(item.metadata)], sort_keys=True, default=str).encode())
    media: dict[str, list[Any]] = {}
    for name in MODALITIES:
        for source in item.media.get(name, ()):
            data = read_source(source, item.where)
            digest.update(json.dumps([name, name_of(source)]).encode())
            digest.update(data if isinstance(data, bytes) else bytes_of(data))
            media.setdefault(name, []).append(data)
    return digest.hexdigest(), media


def read_source(source: Any, where: str) -> Any:
    """Return the bytes of a file, of a URL or of a dict of `datasets`; other media as they are."""
    is_bare_array = isinstance(source, dict) and "array" in source
    if isinstance(source, (Image.Image, np.ndarray, tuple)) or hasattr(source, "__array__") or is_bare_array:
        return source
    try:
        return read_bytes(source)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def bytes_of(decoded: Any) -> bytes:
    """Return the bytes of a decoded image or audio, to be hashed."""
    if isinstance(decoded, dict):
        decoded = (decoded["array"], decoded.get("sampling_rate"))
    if isinstance(decoded, tuple):
        return b"".join(np.ascontiguousarray(each).tobytes() for each in decoded)
    return np.ascontiguousarray(decoded).tobytes()


def name_of(source: Any) -> str:
    """Return the path or URL of a medium, empty for one that is bytes or decoded."""
    if isinstance(source, Mapping):
        source = source.get("path") or ""
    return str(source) if isinstance(source, str) and len(source) < 4096 and not source.startswith("data:") else ""


def read_content(item: Item, media: Mapping[str, list[Any]], signature: str) -> Content:
    """
    Decode the media of an item, and check that there is something in it to find.

    Args:
        item: a row; without an id it gets its signature
        media: of [`sign`]
        signature: of [`sign`]

    Raises:
        ValueError: for an item with nothing in it, a silent audio, an image of one color, and media that cannot be
            decoded, with the item.
    """
    check_length(item.text, item.where)
    if not item.text.strip() and not any(media.values()):
        raise ValueError(f"{item.where}: there is nothing in it, neither a text nor media.")
    decoded: dict[str, list[Any]] = {}
    for name, sources in media.items():
        for data, source in zip(sources, item.media[name], strict=True):
            where = f"{item.where}: {name} {describe(name_of(source) or source)}"
            decoded.setdefault(name, []).append(decode(name, data, where))
    item = replace(item, id=signature if item.id is None else item.id)
    check_length(item.id or "", f"{item.where}, its id")
    return Content(item, decoded, signature)


def row_of(content: Content, columns: Mapping[str, str], source: str, folder: Path) -> Row:
    """
    Return the row of an item.

    Args:
        columns: types of the index's metadata
        source: folder or dataset of the item
        folder: gets the media that are bytes, so that they can be shown

    Raises:
        ValueError: for metadata that do not fit the columns, with the item.
    """
    item = content.item
    assert item.id is not None
    media = {name: [kept_path(each, folder) for each in item.media[name]] for name in content.media}
    metadata = check_metadata(item.metadata, columns, item.where)
    return Row(item.id, item.kind, item.text, media, source, content.signature, metadata)


def kept_path(source: Any, folder: Path) -> str:
    """Return the path or URL of a medium; bytes are written to a file; empty for one that was given decoded."""
    data = source.get("bytes") if isinstance(source, Mapping) else source
    if not isinstance(data, bytes):
        return name_of(source)
    name = hashlib.blake2b(data, digest_size=SIGNATURE_BYTES).hexdigest() + Path(name_of(source)).suffix
    path = folder / name
    if not path.is_file():
        write_bytes(path, data)
    return str(path.resolve())


def decode(name: str, data: Any, where: str) -> Any:
    """Decode one medium; raise a ValueError if it cannot be decoded or has no content."""
    if name not in READ:  # a modality that the package does not know
        return data
    try:
        decoded = READ[name](data)
        is_empty = IS_EMPTY[name](decoded)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if is_empty:
        raise ValueError(f"{where} has no content: {REASONS[name]}.")
    return decoded


def decode_pixels(source: Any) -> Image.Image:
    loaded = load_image(source)
    assert isinstance(loaded, Image.Image), "without `is_scaled` every source becomes an image"
    return loaded


def decode_wave(source: Any) -> Any:
    """Return audio as (samples (length,), rate), or as it is if it does not state its rate."""
    samples, rate = unpack_audio(source)
    return source if rate is None else (samples, rate)


def is_silent(audio: Any) -> bool:
    """Return if no sample of audio differs from another by more than -80 dB of full scale."""
    samples = scale_to_unit(to_numpy(audio[0] if isinstance(audio, tuple) else audio))
    return not samples.size or bool(np.ptp(samples) < SILENCE)


def is_blank(image: Image.Image) -> bool:
    """Return if all pixels of an RGB image have one color."""
    bands: Any = image.getextrema()
    return all(low == high for low, high in bands)


# By modality, in the order of the table: how it is read, when it has no content, and how that is said.
READ: dict[str, Callable[[Any], Any]] = dict(zip(MODALITIES, (decode_pixels, decode_wave), strict=False))
IS_EMPTY: dict[str, Callable[[Any], bool]] = dict(zip(MODALITIES, (is_blank, is_silent), strict=False))
REASONS = dict(zip(MODALITIES, ("all its pixels have one color", "it is silent"), strict=False))
