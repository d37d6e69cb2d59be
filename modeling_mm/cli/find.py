# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm find`: boxes of things in an image, by a model that answers with them."""

import io
from argparse import Namespace
from pathlib import Path
from typing import Any, cast

from PIL import Image

from .. import MMForConditionalGeneration
from ..boxes import BOX, DETECT_PROMPT, FIND_PROMPT, ImageObject
from ..detections import score_of
from ..evaluation import free_positions, prompt_inputs
from ..explain import draw_objects
from ..images import load_image
from ..utils import write_bytes
from .arguments import IMAGE_FORMATS
from .loading import load_model


def run(options: Namespace) -> None:
    """Print a line for each box, the likeliest first, and draw them if there is a file to draw into."""
    model, processor = load_model(options.model, options.device, options.dtype, heads=(MMForConditionalGeneration,))
    if model.config.location_token_id is None or model.config.vision_config is None:
        raise ValueError(
            f"{options.model} does not find things: it has no location tokens or no image encoder. Give a model that "
            "was trained to, by a recipe with `model.locations: true`."
        )
    image = cast(Image.Image, load_image(options.image))
    prompt = DETECT_PROMPT if options.text is None else FIND_PROMPT.format(label=options.text)
    answer = find(model, processor, image, prompt, options.max_new_tokens)
    found = sorted((e for e in answer if score_of(e) >= options.threshold), key=score_of, reverse=True)
    for each in found:
        print(line_of(each))
    if not found:
        print("Nothing found.")
    if options.out is not None:
        file, path = io.BytesIO(), Path(options.out)
        draw_objects(image, found).save(file, IMAGE_FORMATS[path.suffix.lower()])
        write_bytes(path, file.getvalue())
        print(f"Drawn: {path}")


def find(model: Any, processor: Any, image: Image.Image, prompt: str, most_tokens: int) -> list[ImageObject]:
    """Return the boxes of an answer, of as many tokens as the model has positions for, with their scores."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
    given = prompt_inputs(processor, [[{"role": "user", "content": content}]])
    inputs = {name: tensor.to(model.device) for name, tensor in given.items()}
    outputs = model.generate(
        **inputs,
        max_new_tokens=int(min(most_tokens, max(1, free_positions(model.config, inputs["input_ids"].shape[1])))),
        do_sample=False,
        num_beams=1,
        output_scores=True,
        return_dict_in_generate=True,
    )
    (answer,) = processor.parse_answers(outputs, [(image.height, image.width)], (BOX,))
    found: list[ImageObject] = answer.objects
    return found


def line_of(item: ImageObject) -> str:
    """Return an object as a line: name, score, and left, top, right and bottom in pixels."""
    left, top, right, bottom = (round(edge) for edge in item.place)
    return f"{item.label}  {score_of(item):.2f}  {left} {top} {right} {bottom}"
