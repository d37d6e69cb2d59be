# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Images as the bytes of a file, and as the parts of a message."""

import base64
import io
from typing import Any

from PIL import Image


def to_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def to_part(image: Image.Image) -> dict[str, Any]:
    """Return an image as a part of a message with its file in a data URL, as clients send theirs."""
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(to_png(image)).decode()}"},
    }
