# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Greedy generation from the graphs of `modeling-mm export`, without torch and without this package.

It needs numpy, and onnxruntime or openvino; `export` copies it beside the graphs:

```python
from runtime import Generator

generator = Generator("exported")
ids = generator.generate(input_ids=..., attention_mask=..., pixel_values=..., image_mask=...)  # one row, numpy
text = tokenizers.Tokenizer.from_file("exported/tokenizer.json").decode(ids)
```
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS_FILE = "export.json"
MEDIA, PROMPT, STEP = "media.onnx", "prompt.onnx", "step.onnx"


class Graph:
    """
    A graph that takes arrays in their order, run by ONNX Runtime.

    Args:
        path: of the ONNX file
        threads: that one product uses; 0 for all cores
    """

    def __init__(self, path: Path, threads: int = 0):
        import onnxruntime  # an extra of the package

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [given.name for given in self.session.get_inputs()]

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        found: list[np.ndarray] = self.session.run(None, dict(zip(self.names, arrays, strict=True)))
        return found


class OpenVINOGraph:
    """
    The same, run by OpenVINO, in a process without torch.

    NumPy has two types of 64-bit integers with one name, and OpenVINO takes one of them: ONNX Runtime gives the other.
    """

    def __init__(self, path: Path, threads: int = 0):
        import openvino  # an extra of the package

        # Without the first it computes in bfloat16 where the CPU can.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        self.graph = openvino.Core().compile_model(path, "CPU", settings)

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        found = self.graph([each.view(each.dtype.name) for each in arrays])
        return [found[output] for output in self.graph.outputs]


ENGINES: dict[str, type[Graph] | type[OpenVINOGraph]] = {"onnxruntime": Graph, "openvino": OpenVINOGraph}


class Generator:
    """
    The answers of an exported model, the same tokens as its `generate` gives greedily.

    Args:
        folder: that `export` has written
        threads: that one product uses; 0 for all cores
        engine: `"onnxruntime"` or `"openvino"`

    Raises:
        ValueError: for another engine.
    """

    def __init__(self, folder: str | Path, threads: int = 0, engine: str = "onnxruntime"):
        if engine not in ENGINES:
            raise ValueError(f"There is no engine {engine!r}. Expected one of {', '.join(ENGINES)}.")
        folder, graph = Path(folder), ENGINES[engine]
        self.settings: dict[str, Any] = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        self.media, self.prompt, self.step = (graph(folder / name, threads) for name in (MEDIA, PROMPT, STEP))

    def generate(self, max_new_tokens: int | None = None, **inputs: np.ndarray) -> list[int]:
        """
        Return the ids of the answer to one prompt, its end included.

        Args:
            max_new_tokens: the most of them; by default as many as the model has positions for.
            **inputs: arrays of one row, as the processor gives them: `input_ids` (1, L), `attention_mask` (1, L) and
                the media that the folder was exported for.

        Raises:
            ValueError: for missing or unknown inputs, media of other shapes than the graphs', and a prompt that leaves
                no position for an answer.
        """
        return list(self.stream(max_new_tokens, **inputs))

    def stream(self, max_new_tokens: int | None = None, **inputs: np.ndarray) -> Iterator[int]:
        """Yield the ids of [`generate`] as they come."""
        self.check(inputs)
        mask = inputs["attention_mask"].astype(np.int64)
        room = self.settings["positions"] - int(mask.sum()) + 1  # the last token takes no position
        if room < 1:
            raise ValueError(f"The prompt has {mask.sum()} tokens, the model {self.settings['positions']} positions.")
        media = self.media(*(inputs[name] for name in self.settings["media"]))
        logits, keys, values, *state = self.prompt(inputs["input_ids"].astype(np.int64), mask, *media)
        banned, token = self.settings["never"] + self.settings["never_first"], None
        for _ in range(room if max_new_tokens is None else min(room, max_new_tokens)):
            if token is not None:
                mask = np.concatenate([mask, np.ones((1, 1), np.int64)], axis=1)
                logits, keys, values = self.step(np.array([[token]]), mask, keys, values, *state)
                banned = self.settings["never"]
            logits[:, banned] = -np.inf
            token = int(logits[0].argmax())
            yield token
            if token in self.settings["ends"]:
                return

    def check(self, inputs: dict[str, np.ndarray]) -> None:
        """Raise a `ValueError` for inputs that the graphs were not made for."""
        expected = {"input_ids", "attention_mask", *self.settings["media"]}
        if inputs.keys() != expected:
            raise ValueError(f"Expected the inputs {', '.join(sorted(expected))}, got {', '.join(sorted(inputs))}.")
        for name, shape in self.settings["media"].items():
            if list(inputs[name].shape) != shape:
                raise ValueError(f"{name} has shape {list(inputs[name].shape)}; the graphs are for {shape}.")
        if inputs["input_ids"].shape != inputs["attention_mask"].shape or len(inputs["input_ids"]) != 1:
            raise ValueError(f"input_ids must be one row, with its attention_mask, got {inputs['input_ids'].shape}.")
