# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Checks of the small files of a local model folder, whose damage transformers reports without their names."""

import json
import os
from pathlib import Path

CONFIGS = ("config.json", "generation_config.json")
PROCESSOR_CONFIGS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
TOKENIZER = "tokenizer.json"
OTHER_TOKENIZERS = ("vocab*", "*.model", "tekken.json")


def check_configs(folder: str | os.PathLike, names: tuple[str, ...], required: tuple[str, ...] = ()) -> None:
    """
    Check that files are readable and hold a JSON object; those that are not required may be missing.

    Raises:
        ValueError: with the path of a file that does not.
    """
    for path in (Path(folder, name) for name in names):
        if not os.path.lexists(path) and path.name not in required:
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read ({error}). Save or download it again.") from error
        if not isinstance(values, dict):
            raise ValueError(
                f"{path}: expected a JSON object, got {type(values).__name__}. Save or download it again."
            )


def check_processor_files(folder: str | os.PathLike) -> None:
    """Check the files of a processor; of the tokenizer, which is large, only how it begins and ends."""
    check_configs(folder, PROCESSOR_CONFIGS)
    path = Path(folder, TOKENIZER)
    if not os.path.lexists(path):
        if not any(any(Path(folder).glob(pattern)) for pattern in OTHER_TOKENIZERS):
            raise ValueError(f"{path}: missing. Save or download it again.")
        return
    try:
        with open(path, "rb") as file:
            start = file.read(1)
            file.seek(max(0, path.stat().st_size - 16))
            end = file.read().rstrip()[-1:]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error}). Save or download it again.") from error
    if (start, end) != (b"{", b"}"):
        raise ValueError(f"{path}: damaged or cut short, no JSON object. Save or download it again.")
