# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm draw`: images of a text, and after an image, by a model that writes their codes."""

import io
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria, StoppingCriteriaList

from .. import MMForConditionalGeneration
from ..pipeline_codes import MMTextToImagePipeline, room_for
from ..utils import show_progress, write_bytes
from .arguments import IMAGE_FORMATS
from .loading import load_model

AT_ONCE = 16  # images of one batch
GAP = 2  # pixels between the images of a sheet


class ShowSteps(StoppingCriteria):
    """Stopping criterion that stops nothing, and shows how many tokens each row has got."""

    def __init__(self, progress: Any):
        self.progress = progress

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.progress.update(1)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def run(options: Namespace) -> None:
    """Write the images, of several one sheet into a file, or a file each into a folder."""
    model, processor = load_model(options.model, options.device, options.dtype, heads=(MMForConditionalGeneration,))
    pipe = MMTextToImagePipeline(model, processor, device=model.device)
    for path in write_images(draw(options, pipe), Path(options.out)):
        print(f"Drawn: {path}")


def draw(options: Namespace, pipe: MMTextToImagePipeline) -> list[Image.Image]:
    """Return as many images as the command wants."""
    row = {"text": options.text, "image": options.like}
    given: dict[str, Any] = {} if options.guidance_scale is None else {"guidance_scale": options.guidance_scale}
    if options.seed is not None:
        given["generator"] = torch.Generator(pipe.device).manual_seed(options.seed)
    written = pipe.processor.written_modality(pipe.written)
    images: list[Image.Image] = []
    steps = room_for(written.tokens, written.codec) * math.ceil(options.count / AT_ONCE)
    with show_progress(total=steps, desc="drawing, tokens") as progress:
        criteria = StoppingCriteriaList([ShowSteps(progress)])
        while len(images) < options.count:
            number = min(AT_ONCE, options.count - len(images))
            drawn = pipe(row, num_images_per_prompt=number, stopping_criteria=criteria, **given)
            images += drawn if isinstance(drawn, list) else [drawn]
    return images


def write_images(images: list[Image.Image], out: Path) -> list[Path]:
    """Write images into a folder, as `1.png` and so on, or into a file; return the paths."""
    if out.suffix:
        paths, images = [out], [contact_sheet(images)]
    else:
        paths = [out / f"{number}.png" for number in range(1, len(images) + 1)]
    for path, image in zip(paths, images, strict=True):
        file = io.BytesIO()
        image.save(file, IMAGE_FORMATS[path.suffix.lower()])
        write_bytes(path, file.getvalue())
    return paths


def contact_sheet(images: list[Image.Image]) -> Image.Image:
    """Return images of one size side by side, in about as many columns as rows; one image as it is."""
    if len(images) == 1:
        return images[0]
    columns = math.ceil(math.sqrt(len(images)))
    width, height = (side + GAP for side in images[0].size)
    sheet = Image.new("RGB", (columns * width - GAP, math.ceil(len(images) / columns) * height - GAP), "white")
    for number, image in enumerate(images):
        sheet.paste(image, (number % columns * width, number // columns * height))
    return sheet
