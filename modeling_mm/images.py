# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Loading of images: every source, mode and layout becomes an upright 8-bit RGB image."""

import io
import os
from collections.abc import Sequence
from struct import error as StructError
from typing import Any
from zlib import error as ZlibError

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from .batching import pad_rows
from .image_files import check_png_chunks, check_tiff_strips
from .modalities import MODALITIES
from .placeholders import Rows, load_rows
from .sources import describe, read_bytes

# Encapsulated PostScript is a program: Pillow passes it to an interpreter.
REFUSED_FORMATS = ("EPS",)
# Cut-out images are drawn for a white page.
BACKGROUND = (255, 255, 255, 255)
MAX_UINT8 = 255
MAX_UINT16 = 65535
# Pillow's errors for a damaged file depend on the format and on the place of the damage.
DAMAGED_FILE_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, StructError, ZlibError),
    *(RuntimeError, LookupError, ArithmeticError, AttributeError, TypeError),  # AVIF, BLP, SPIDER
)
ACCEPTED_IMAGES = (
    "a path, a URL, bytes, a PIL image, an array or tensor of 1, 3 or 4 channels, or a dict with `bytes` or `path`"
)


def decode_image(data: bytes) -> Image.Image:
    """
    Decode an image file into RGB.

    Raises:
        ValueError: for a file that is not an image, is cut short, or would unpack into more pixels than Pillow allows.
    """
    try:
        check_png_chunks(data)
        Image.init()
        formats = [name for name in Image.OPEN if name not in REFUSED_FORMATS]
        with Image.open(io.BytesIO(data), formats=formats) as image:
            check_tiff_strips(data, image)
            return to_rgb(image)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"the file would unpack into more pixels than the limit allows ({error}); if you trust it, raise "
            f"`PIL.Image.MAX_IMAGE_PIXELS` (now {Image.MAX_IMAGE_PIXELS}), otherwise shrink it first"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"expected an image, got {len(data)} bytes in no format that Pillow knows; convert the file to PNG or JPEG"
        ) from error
    except DAMAGED_FILE_ERRORS as error:
        raise ValueError(f"the image is damaged or cut short ({error}); save or download the file again") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Return any PIL image as upright 8-bit RGB; one that is so already as it is, not copied.

    Applies the EXIF rotation, lays transparency on white, expands palettes and gray, scales 16-bit and float gray,
    and takes the first frame of an animation.
    """
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # otherwise `exif_transpose` would copy it
        image = ImageOps.exif_transpose(image)
    if 0 in image.size:
        raise ValueError(f"the image holds no pixels (its size is {image.size[0]}x{image.size[1]})")
    # Pillow clips these modes to 255 instead of scaling them.
    if image.mode == "F" or image.mode.startswith("I"):
        # Image files of this 32-bit mode hold 16 bits.
        values = np.asarray(image)
        fits_16_bits = image.mode == "I" and values.min() >= 0 and MAX_UINT8 < values.max() <= MAX_UINT16
        return array_to_image(values.astype(np.uint16) if fits_16_bits else values)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def scale_to_uint8(values: np.ndarray) -> np.ndarray:
    """
    Scale pixel values of any type to 0..255.

    16-bit integers are divided by 257, other integers stay; floats within [0, 1] are multiplied by 255, other floats
    are rounded.

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
            "`do_rescale=False` if it is float and normalized already"
        )
    if values.dtype.kind == "f" and 1 < high < 2:
        raise ValueError(
            f"float pixels up to {high:g} are neither within [0, 1] nor clearly within [0, 255]; clip the array to 1"
        )
    is_unit_range = values.dtype.kind == "f" and high <= 1
    return np.round(values * MAX_UINT8 if is_unit_range else values).astype(np.uint8)


def to_channels_last(values: np.ndarray, channels_first: bool) -> np.ndarray:
    """
    Return an (H, W), (H, W, C) or (C, H, W) array as (H, W, C).

    If both ends could be channels, three or four of them count before one, then `channels_first` decides.
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
    """Return an array, or a tensor on any device, as numpy; bfloat16, which numpy lacks, becomes float32."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = array.float() if array.dtype == torch.bfloat16 else array
        return array.numpy()
    return np.asarray(array)


def array_to_image(array: Any, channels_first: bool | None = None) -> Image.Image:
    """
    Return an array or tensor of 1, 3 or 4 channels as an RGB image; see `scale_to_uint8` for its values.

    Args:
        array: of shape (H, W), (H, W, C) or (C, H, W).
        channels_first: for an ambiguous shape; by default tensors have their channels first, arrays last.
    """
    return _to_image(scale_to_uint8(_pixels(array, channels_first)))


def _to_image(values: np.ndarray) -> Image.Image:
    """Return (H, W, C) pixels of 8 bits as an RGB image."""
    image = Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
    return image if image.mode == "RGB" else to_rgb(image)


def array_to_floats(array: Any, channels_first: bool | None = None) -> np.ndarray:
    """Return an array that is scaled already as (3, H, W), float32, gray repeated; its values stay."""
    values = _pixels(array, channels_first).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("the array holds NaN or infinite pixels")
    if values.shape[-1] == 4:
        raise ValueError("an array that is scaled already cannot have an alpha channel; composite it first")
    return np.ascontiguousarray(np.moveaxis(np.broadcast_to(values, (*values.shape[:2], 3)), -1, 0))


def _pixels(array: Any, channels_first: bool | None) -> np.ndarray:
    """Return the (H, W, C) values of an array or tensor, at least one pixel."""
    values = to_numpy(array)
    if values.size == 0:
        raise ValueError(f"the image holds no pixels (its shape is {values.shape})")
    return to_channels_last(values, isinstance(array, torch.Tensor) if channels_first is None else channels_first)


def is_image(value: Any) -> bool:
    """Return True for one image and False for a list of them."""
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))
    return not is_list and getattr(value, "ndim", 3) < 4  # a 4-D array is a batch


def load_image(source: Any, is_scaled: bool = False, channels_first: bool | None = None) -> Image.Image | np.ndarray:
    """
    Load one image.

    Args:
        source: a path, URL, bytes, PIL image, numpy array, tensor, or a `datasets.Image` dict.
        is_scaled: leave float arrays alone, as they are scaled already (`do_rescale=False`).
        channels_first: for arrays of an ambiguous shape.

    Returns:
        An RGB image, or for float arrays with `is_scaled` a float32 array (3, H, W).

    Raises:
        ValueError: with what was expected, what was given and the remedy.
    """
    if isinstance(source, Image.Image):
        try:
            return to_rgb(source)
        except DAMAGED_FILE_ERRORS as error:  # an opened file is decoded only now
            raise ValueError(f"the image cannot be decoded ({error})") from error
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


def load_pixels(source: Any, is_scaled: bool, channels_first: bool | None) -> Image.Image | np.ndarray:
    """
    Load one image for an image processor; see `load_image`.

    Returns:
        As `load_image`, but an array of three channels as a `uint8` array (3, H, W), without a copy if it is one:
        image processors work with arrays, and would unpack a PIL image again.
    """
    is_array = hasattr(source, "__array__") and not isinstance(source, Image.Image)
    if is_array and not (is_scaled and to_numpy(source).dtype.kind == "f"):
        values = scale_to_uint8(_pixels(source, channels_first))  # (H, W, C)
        if values.shape[-1] != len("RGB"):
            return _to_image(values)
        values = np.moveaxis(values, -1, 0)
        return values if min(values.strides) > 0 else values.copy()  # torch takes no mirrored array
    return load_image(source, is_scaled, channels_first)


def resized_pixels(image_processor: Any, width: int, height: int) -> float:
    """
    Return the pixels of an image after an image processor's resize, before any crop.

    A processor that sets the shortest edge alone makes the other one as long as the image's shape asks for.
    """
    size = getattr(image_processor, "size", None)
    if size is None or not getattr(image_processor, "do_resize", True) or isinstance(size, int):
        return width * height
    side = size.get("shortest_edge")
    if not side or size.get("longest_edge") or 0 in (width, height):
        return width * height  # a fixed size, or one that is limited on both sides
    return side * side * max(width, height) / min(width, height)


def check_resize(image_processor: Any, width: int, height: int, max_pixels: float | None) -> None:
    """Raise a `ValueError` for an image that an image processor would enlarge beyond `max_pixels`."""
    pixels = resized_pixels(image_processor, width, height)
    if max_pixels is not None and pixels > max(max_pixels, width * height):
        raise ValueError(
            f"an image of {width}x{height} would be resized to {pixels:.0f} pixels, more than the limit of "
            f"{max_pixels:.0f}, since its shorter side is to become {image_processor.size['shortest_edge']}; crop it"
        )


def image_features(
    image_processor: Any, rows: Rows, options: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], list[list[int]]]:
    """
    Load the images of rows and run them through an image processor.

    Args:
        options: call arguments of the image processor.

    Returns:
        `pixel_values` (B, I, 3, H, W) with `image_mask` (B, I), and the tokens of each image: one.
    """
    modality = MODALITIES["image"]
    options = {name: value for name, value in options.items() if name != "return_tensors"}
    layout = options.pop("input_data_format", None)
    channels_first = None if layout is None else getattr(layout, "value", layout) == "channels_first"
    is_scaled = options.get("do_rescale") is False

    def load(source: Any) -> Image.Image | np.ndarray:
        image = load_pixels(source, is_scaled, channels_first)
        width, height = image.size if isinstance(image, Image.Image) else image.shape[:0:-1]  # (3, H, W)
        check_resize(image_processor, width, height, Image.MAX_IMAGE_PIXELS)
        return image

    loaded = load_rows(rows, load, modality)
    flat, counts = [image for images in loaded for image in images], list(map(len, loaded))
    pixels = image_processor(images=flat, return_tensors="pt", **options)["pixel_values"]  # (images, 3, H, W)
    if pixels.ndim != 4 or len(pixels) != len(flat):
        raise ValueError(
            f"{type(image_processor).__name__} makes pixel values of shape {tuple(pixels.shape)} of {len(flat)} "
            "images; an image processor is needed that makes one (3, H, W) array of each"
        )
    mask = pixels.new_ones(len(flat), dtype=torch.bool)
    features = {"pixel_values": pad_rows(pixels, counts), modality.mask: pad_rows(mask, counts)}
    return features, [[1] * count for count in counts]
