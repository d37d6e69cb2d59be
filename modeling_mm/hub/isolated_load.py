# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Loads a folder in a separate process and saves its answer to one question. `check.py` runs this file as a script.

    python -I isolated_load.py FOLDER OUT [ROOT]     # without ROOT, the folder of the package, the package is hidden

OUT holds the model's inputs and its `logits` as safetensors. Standard output ends with a line of JSON: the missing,
unexpected and mismatched names of weights.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

PACKAGE = "modeling_mm"
IMAGE_SIZE = (48, 64)
RATE = 16_000


def main(folder: str, out: str, root: str | None = None) -> None:
    options = {} if root else {"trust_remote_code": True}
    if root is None:
        sys.modules[PACKAGE] = None  # type: ignore[assignment]  # `import` raises ModuleNotFoundError
    else:
        sys.path.insert(0, root)
        importlib.import_module(PACKAGE)
    import torch
    import transformers
    from safetensors.torch import save_file

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    processor = transformers.AutoProcessor.from_pretrained(folder, **options)
    model, info = getattr(transformers, auto_class(config, dir(transformers))).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **options
    )
    inputs = processor.apply_chat_template(
        conversation(config), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        output = model(**inputs)
    logits = output["logits" if "logits" in output else "last_hidden_state"]
    save_file({"logits": logits.contiguous(), **{name: value.contiguous() for name, value in inputs.items()}}, out)
    names = ("missing_keys", "unexpected_keys", "mismatched_keys")
    print(json.dumps({name: sorted(map(str, info[name])) for name in names}))


def auto_class(config: dict[str, Any], known: list[str]) -> str:
    """Return the name of the Auto class that loads the architecture of the folder."""
    architecture = config["architectures"][0]
    for name, path in config["auto_map"].items():
        if name.startswith("AutoModel") and path.split(".")[-1] == architecture and name in known:
            return name
    raise ValueError(f"`auto_map` in config.json names no AutoModel class that makes {architecture}.")


def conversation(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one question, with an image and one second of audio if the model takes them."""
    import numpy as np

    content: list[dict[str, Any]] = []
    if config.get("vision_config"):
        height, width = IMAGE_SIZE
        rows, columns = np.mgrid[:height, :width]
        pixels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1)
        content.append({"type": "image", "image": pixels.astype(np.uint8)})
    if config.get("audio_config"):
        wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
        content.append({"type": "audio", "audio": {"array": wave.astype(np.float32), "sampling_rate": RATE}})
    return [{"role": "user", "content": [*content, {"type": "text", "text": "What is this?"}]}]


if __name__ == "__main__":
    main(*sys.argv[1:])
