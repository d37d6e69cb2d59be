# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Checksums of image files that Pillow and libtiff do not read."""

import re
import zlib

from PIL import Image

PNG_START = re.compile(rb"\x89PNG\r\n\x1a\n")
# Beginnings of files of icons and cursors, which hold PNG files.
ICONS = (b"\0\0\x01\0", b"\0\0\x02\0", b"icns")
MOST_CHUNKS = 1 << 18  # a file of nothing but chunks would be walked through for long
# Tags of a TIFF file: its compression, and where its strips or tiles are and how many bytes they have.
TIFF_COMPRESSION, TIFF_PIECES = 259, ((273, 279), (324, 325))
TIFF_DEFLATE = (8, 32946)
UNPACKED_AT_ONCE = 1 << 20
# Bytes that a pixel may have, with room for tiles that reach beyond the image.
TIFF_PIXEL_BYTES = 64


def check_png_chunks(data: bytes) -> None:
    """
    Check the length and the checksum of each chunk of a PNG file, or of those in an icon; Pillow skips the pixels'.

    Raises:
        ValueError: for the first wrong one.
    """
    starts = PNG_START.finditer(data) if data.startswith(ICONS) else filter(None, [PNG_START.match(data)])
    for match in starts:
        place, name = match.end(), b""
        for _ in range(MOST_CHUNKS):
            if name == b"IEND":
                break
            end = place + 12 + int.from_bytes(data[place : place + 4], "big")
            if end > len(data):
                raise ValueError(f"a PNG chunk promises {end} bytes and {len(data)} are there")
            name = data[place + 4 : place + 8]
            if zlib.crc32(data[place + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise ValueError(f"the checksum of the PNG chunk {name!r} at byte {place} is wrong")
            place = end
        else:
            raise ValueError(f"a PNG file with more than {MOST_CHUNKS} chunks")


def check_tiff_strips(data: bytes, image: Image.Image) -> None:
    """
    Check the checksums of a TIFF file that is compressed as PNG is; libtiff stops when it has enough pixels.

    Raises:
        ValueError: for a piece that ends before its checksum, and for more bytes than the pixels can have.
        zlib.error: for a wrong checksum.
    """
    tags = getattr(image, "tag_v2", {})
    if tags.get(TIFF_COMPRESSION) not in TIFF_DEFLATE:
        return
    pieces = [piece for names in TIFF_PIECES for piece in zip(*(tags.get(name, ()) for name in names), strict=False)]
    left = TIFF_PIXEL_BYTES * image.width * image.height + UNPACKED_AT_ONCE
    for place, size in pieces:
        unpacker, packed = zlib.decompressobj(), data[place : place + size]
        while packed and not unpacker.eof and left > 0:
            left -= max(len(unpacker.decompress(packed, UNPACKED_AT_ONCE)), 1)
            packed = unpacker.unconsumed_tail
        if not unpacker.eof:
            raise ValueError(f"the TIFF strip at byte {place} has no end")
