# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""A row of exported graphs: a whole greedy generation without torch."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from ...deploy import export_onnx
from ...deploy.runtime import Generator
from .bench import Bench
from .models import PROMPT_TOKENS, captioner, greedy, text_config, vision_config
from .results import Result
from .work import decoding_work


def exported(bench: Bench) -> Iterator[Result]:
    """Answer a question on an image by ONNX graphs, in float32 and in 8 bits, against ours in torch in float32."""
    text, vision = text_config(), vision_config()
    model = captioner(text, vision).eval()
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    ids = torch.randint(0, text.vocab_size - 8, (1, PROMPT_TOKENS))
    ids[:, 0] = model.config.placeholder_ids[0]
    size = vision.image_size
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 1, 3, size, size),
        "image_mask": torch.ones(1, 1, dtype=torch.bool),
    }
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    work = decoding_work(model, 1, PROMPT_TOKENS, bench.tokens, patches, patches)
    for kind, target in (("float32", 1.5), ("int8", 2.5)):
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(model, None, Path(folder), inputs, int8=kind == "int8")
            generator = Generator(folder, torch.get_num_threads())
            generator.settings["ends"] = []  # both sides write all tokens
            ours = partial(generator.generate, bench.tokens, **arrays)
            theirs = partial(model.generate, **inputs, **greedy(bench.tokens))
            label = f"exported graphs, {kind}, batch 1"
            yield bench.compare(label, "ours in torch", ours, theirs, target, bench.tokens, "tokens/s", work=work)
