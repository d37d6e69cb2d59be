# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm export`: ONNX graphs of a model and the program that runs them, checked against the model."""

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..deploy.onnx_export import export_onnx
from ..deploy.runtime import Generator
from ..evaluation import prompt_inputs
from ..utils import folder_beside, replace_folder
from .ask import user_turn
from .loading import load_model


def run(options: Namespace) -> int:
    """Write the folder, unless its answer differs from the model's; return 1 if it does. With int8 it may differ."""
    model, processor = load_model(options.model, "cpu", "float32")
    model.generation_config.max_length = None  # --max-new-tokens takes its place, without a warning
    inputs = prompt_inputs(processor, [[user_turn(options)]])
    target = Path(options.folder)
    print("Writing the graphs ...", flush=True)
    with folder_beside(target) as folder:
        export_onnx(model, processor, folder, inputs, options.int8)
        generator = Generator(folder, torch.get_num_threads())
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        length = options.max_new_tokens

        def of_model() -> list[int]:
            ids = model.generate(**inputs, max_new_tokens=length, do_sample=False, num_beams=1)
            return list(ids[0, inputs["input_ids"].shape[1] :].tolist())

        sides = [timed(of_model), timed(lambda: generator.generate(length, **arrays))]
        for name, (ids, seconds) in zip(("model", "graphs"), sides, strict=True):
            print(f"{name:7s}{seconds:7.2f} s   {processor.tokenizer.decode(ids, skip_special_tokens=True)!r}")
        is_same = sides[0][0] == sides[1][0]
        if not is_same and not options.int8:
            print(f"{options.model} and its graphs answer differently; nothing was saved.", file=sys.stderr)
            return 1
        replace_folder(folder, target)
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{'The same tokens' if is_same else 'Other tokens'}. Saved: {target} ({size / 1e6:.1f} MB)")
    return 0


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a second call gives, and its seconds."""
    call()
    began = time.perf_counter()
    return call(), time.perf_counter() - began
