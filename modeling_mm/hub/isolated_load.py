# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Loads a folder in a process of its own and writes down what it says to one picture and one sound. `check.py` runs this
file twice, as a plain script: with the package, and where the package cannot be imported, as with a stranger.

    python -I isolated_load.py FOLDER OUT [ROOT]     # ROOT: where the package lies; without it, it is hidden

OUT is written as safetensors: the model's inputs and its `logits`. A line of JSON is printed: the names that the
weights lack, those that nothing takes, and those of another shape.
"""

import importlib.abc
import json
import sys
from pathlib import Path

PACKAGE = "modeling_mm"
QUESTION = "What is this?"
PICTURE_SIZE = (48, 64)
SOUND_SECONDS = 1.0
SOUND_HERTZ = 440.0


class HidePackage(importlib.abc.MetaPathFinder):
    """Finds nothing of the package, wherever it is installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] == PACKAGE:
            raise ModuleNotFoundError(f"{fullname} is hidden from this process", name=fullname)
        return None


def main(folder: str, out: str, root: str | None = None) -> None:
    if root is None:
        sys.meta_path.insert(0, HidePackage())
        options = {"trust_remote_code": True}
    else:
        sys.path.insert(0, root)
        importlib.import_module(PACKAGE)
        options = {}
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
    said = output["logits" if "logits" in output else "last_hidden_state"]
    save_file({"logits": said.contiguous(), **{name: value.contiguous() for name, value in inputs.items()}}, out)
    names = ("missing_keys", "unexpected_keys", "mismatched_keys")
    print(json.dumps({name: sorted(map(str, info[name])) for name in names}))


def auto_class(config: dict, known: list[str]) -> str:
    """The Auto class that makes the folder's architecture."""
    architecture = config["architectures"][0]
    for name, path in config["auto_map"].items():
        if name.startswith("AutoModel") and path.split(".")[-1] == architecture and name in known:
            return name
    raise ValueError(f"`auto_map` in config.json names no AutoModel class that makes {architecture}")


def conversation(config: dict) -> list[dict]:
    """One question, with a picture and a sound where the model takes them."""
    import numpy as np

    content: list[dict] = []
    if config.get("vision_config"):
        height, width = PICTURE_SIZE
        rows, columns = np.mgrid[:height, :width]
        pixels = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1)
        content.append({"type": "image", "image": pixels.astype(np.uint8)})
    if config.get("audio_config"):
        rate = 16_000
        time = np.arange(int(SOUND_SECONDS * rate)) / rate
        wave = 0.3 * np.sin(2 * np.pi * SOUND_HERTZ * time)
        content.append({"type": "audio", "audio": {"array": wave.astype(np.float32), "sampling_rate": rate}})
    return [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]


if __name__ == "__main__":
    main(*sys.argv[1:])
