# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Loading of images: every source, mode and layout becomes an upright 8-bit RGB image."""

import io
import os
from collections.abc import Sequence
from struct import error as StructError
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .sources import describe, read_bytes

# Encapsulated PostScript is a program: Pillow hands it to an interpreter.
REFUSED_FORMATS = ("EPS",)
# What shows through transparency. White, because cut-out pictures are drawn to stand on a page.
BACKGROUND = (255, 255, 255, 255)
MAX_UINT8 = 255
MAX_UINT16 = 65535
# What Pillow raises on a damaged file, depending on the format and on where the damage is.
DAMAGED_FILE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, StructError)
ACCEPTED_IMAGES = (
    "a path, a URL, bytes, a PIL image, an array or tensor of 1, 3 or 4 channels, or a dict with `bytes` or `path`"
)


def decode_image(data: bytes) -> Image.Image:
    """
    Decode a picture file into RGB.

    Raises:
        ValueError: for a file that is no picture, is cut short, or would unpack into more pixels than Pillow allows.
    """
    try:
        Image.init()
        formats = [name for name in Image.OPEN if name not in REFUSED_FORMATS]
        with Image.open(io.BytesIO(data), formats=formats) as image:
            return to_rgb(image)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"the file would unpack into more pixels than the limit allows ({error}); if you trust it, raise "
            f"`PIL.Image.MAX_IMAGE_PIXELS` (now {Image.MAX_IMAGE_PIXELS}), otherwise shrink it first"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"expected a picture, got {len(data)} bytes in no format that Pillow knows; convert the file to PNG or "
            "JPEG"
        ) from error
    except DAMAGED_FILE_ERRORS as error:
        raise ValueError(f"the picture is damaged or cut short ({error}); save or download the file again") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Any PIL picture as upright 8-bit RGB.

    The EXIF rotation is applied, transparency is laid on white, palettes and grey are expanded, 16-bit and float
    greys are scaled. Of an animation the first frame is taken.
    """
    image = ImageOps.exif_transpose(image)
    if 0 in image.size:
        raise ValueError(f"the picture holds no pixels (its size is {image.size[0]}x{image.size[1]})")
    # Pillow clips these modes to 255 instead of scaling them.
    if image.mode == "F" or image.mode.startswith("I"):
        # A 32-bit mode says nothing of the range in use; a picture file that has it holds 16 bits.
        values = np.asarray(image)
        fits_16_bits = image.mode == "I" and values.min() >= 0 and MAX_UINT8 < values.max() <= MAX_UINT16
        return array_to_image(values.astype(np.uint16) if fits_16_bits else values)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    return image.convert("RGB")


def scale_to_uint8(values: np.ndarray) -> np.ndarray:
    """
    Pixel values of any type in 0..255.

    16-bit integers are divided by 257; other integers are taken as they are; floats within [0, 1] are multiplied by
    255, other floats are rounded.

    Raises:
        ValueError: for values outside the range, NaN and infinity.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * MAX_UINT8
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return np.round(values / (MAX_UINT16 / MAX_UINT8)).astype(np.uint8)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"expected pixels of an integer or float type, got {values.dtype}")
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= MAX_UINT8):  # false for NaN too
        raise ValueError(
            f"expected pixel values within [0, 1] or [0, 255], got {low:g} to {high:g}; scale the array, or pass "
            "`do_rescale=False` if it is float and normalised already"
        )
    if values.dtype.kind == "f" and 1 < high < 2:
        raise ValueError(
            f"float pixels up to {high:g} are neither within [0, 1] nor clearly within [0, 255]; clip the array to 1"
        )
    is_unit_range = values.dtype.kind == "f" and high <= 1
    return np.round(values * MAX_UINT8 if is_unit_range else values).astype(np.uint8)


def to_channels_last(values: np.ndarray, channels_first: bool) -> np.ndarray:
    """
    An (H, W), (H, W, C) or (C, H, W) array as (H, W, C).

    Where both ends could be channels, three or four of them count before one, then `channels_first` decides.
    """
    if values.ndim == 2:
        return values[..., None]
    if values.ndim != 3:
        raise ValueError(f"expected an array of 2 or 3 axes, got the shape {values.shape}; pass a batch as a list")
    first, last = values.shape[0], values.shape[-1]
    for options in ((3, 4), (1,)):
        if first in options and (last not in options or channels_first):
            return np.moveaxis(values, 0, -1)
        if last in options:
            return values
    raise ValueError(f"expected 1, 3 or 4 channels on the first or the last axis, got the shape {values.shape}")


def to_numpy(array: Any) -> np.ndarray:
    """A numpy array or a tensor on any device, as numpy; bfloat16, which numpy lacks, becomes float32."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float() if array.dtype == torch.bfloat16 else array
        return array.numpy()
    return np.asarray(array)


def array_to_image(array: Any, channels_first: bool | None = None) -> Image.Image:
    """
    An array or tensor of 1, 3 or 4 channels as an RGB picture; see `scale_to_uint8` for its values.

    Args:
        array: of shape (H, W), (H, W, C) or (C, H, W).
        channels_first: how to read an ambiguous shape; by default tensors have their channels first, arrays last.
    """
    values = _pixels(array, channels_first)
    return to_rgb(
        Image.fromarray(scale_to_uint8(values).squeeze(-1) if values.shape[-1] == 1 else scale_to_uint8(values))
    )


def array_to_floats(array: Any, channels_first: bool | None = None) -> np.ndarray:
    """An array that is scaled already, unchanged but for its layout: (3, H, W), float32, grey repeated."""
    values = _pixels(array, channels_first).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("the array holds NaN or infinite pixels")
    if values.shape[-1] == 4:
        raise ValueError("an array that is scaled already cannot have an alpha channel; composite it first")
    return np.ascontiguousarray(np.moveaxis(np.broadcast_to(values, (*values.shape[:2], 3)), -1, 0))


def _pixels(array: Any, channels_first: bool | None) -> np.ndarray:
    """(H, W, C) values of an array or tensor, at least one pixel."""
    values = to_numpy(array)
    if values.size == 0:
        raise ValueError(f"the picture holds no pixels (its shape is {values.shape})")
    return to_channels_last(values, isinstance(array, torch.Tensor) if channels_first is None else channels_first)


def is_image(value: Any) -> bool:
    """Whether `value` is one picture rather than a list of pictures."""
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))
    return not is_list and getattr(value, "ndim", 3) < 4  # a 4-D array is a batch


def load_image(source: Any, is_scaled: bool = False, channels_first: bool | None = None) -> Image.Image | np.ndarray:
    """
    Load one picture.

    Args:
        source: a path, URL, bytes, PIL picture, numpy array, tensor, or a `datasets.Image` dict.
        is_scaled: whether float arrays are scaled already (`do_rescale=False`) and must be left alone.
        channels_first: how to read arrays whose shape leaves it open.

    Returns:
        An RGB picture, or for float arrays with `is_scaled` a float32 array (3, H, W).

    Raises:
        ValueError: for what is no picture; the message says what was expected, what came and what to do.
    """
    if isinstance(source, Image.Image):
        try:
            return to_rgb(source)
        except DAMAGED_FILE_ERRORS as error:  # an opened file is decoded only now
            raise ValueError(f"the picture cannot be decoded ({error})") from error
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, dict)):
        data = read_bytes(source)
        try:
            return decode_image(data)
        except ValueError as error:
            raise ValueError(f"{describe(source)}: {error}") from error
    if hasattr(source, "__array__"):
        if is_scaled and to_numpy(source).dtype.kind == "f":
            return array_to_floats(source, channels_first)
        return array_to_image(source, channels_first)
    raise ValueError(f"expected {ACCEPTED_IMAGES}; got {describe(source)}")
