# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Checks of loaded weights: every tensor is there, can be read and is finite."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .compat import with_offloaded_weights

MOST_NAMES = 3  # names in a message
SAVE_AGAIN = "Save or download the model again"


def check_weight_files(folder: Path) -> None:
    """
    Check that the weights of a local folder can be opened; only headers are read.

    transformers opens the same files, but its errors name no file.

    Raises:
        ValueError: for a file that is damaged, missing or listed wrongly, with its path. A folder without weights is
            left to transformers, which says what it looked for.
    """
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).exists():
        paths = [folder / SAFE_WEIGHTS_NAME]
    elif index.exists():
        paths = [folder / name for name in read_shards(index)]
    else:
        return
    for path in paths:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            problem = "missing" if isinstance(error, FileNotFoundError) else f"damaged or cut short ({error})"
            raise ValueError(f"{path}: {problem}. {SAVE_AGAIN}.") from error


def read_shards(index: Path) -> list[str]:
    """Return the names of the files of weights that an index lists, or raise a `ValueError` that names the index."""
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(map(os.fspath, set(listed["weight_map"].values())))
        metadata = listed["metadata"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: no readable `weight_map` and `metadata`. {SAVE_AGAIN}.") from error
    if not names or not isinstance(metadata, dict) or any(Path(name).name != name for name in names):
        raise ValueError(f"{index}: `weight_map` must give each weight the name of a file. {SAVE_AGAIN}.")
    return names


def source_of(name: str | os.PathLike | None) -> str:
    """Return what a message calls the source of weights: their file in a local folder, or else its name."""
    if name is None:
        return "The given weights"
    paths = (Path(name, each) for each in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))
    return str(next((path for path in paths if path.is_file()), name))


def check_shapes(mismatched: Iterable[tuple[str, Any, Any]], source: str) -> None:
    """
    Check that no weight has another shape than in the model.

    Raises:
        RuntimeError: with names and shapes, as transformers raises it, which leaves them to a table in its log.
    """
    found = sorted(mismatched)
    if found:
        name, saved, expected = found[0]
        raise RuntimeError(
            f"{source}: {count([each[0] for each in found])} of another shape than in the model: {name} is "
            f"{tuple(saved)}, expected {tuple(expected)}. Save the model again with its config, or pass "
            "ignore_mismatched_sizes=True to start them at random."
        )


def check_missing(model: PreTrainedModel, missing: Iterable[str], source: str) -> None:
    """
    Check that no weight was left out by a checkpoint, and so started at random.

    A head may be new: what lies outside the base model, unless the checkpoint says that it is of the model's class.

    Args:
        missing: names that the loader did not find
        source: name of the checkpoint, for the message

    Raises:
        ValueError: if weights are missing, with their names.
    """
    prefix = f"{model.base_model_prefix}."
    is_same_class = type(model).__name__.removeprefix("FSDP") in (model.config.architectures or ())
    has_head = model.base_model is not model
    lost = sorted(name for name in missing if is_same_class or not has_head or name.startswith(prefix))
    if lost:
        raise ValueError(
            f"{source}: {count(lost)} missing: {shortened(lost)}. {SAVE_AGAIN}, or pass ignore_missing=True "
            f"to let {type(model).__name__} start them at random."
        )


@torch.no_grad()
def check_finite(model: PreTrainedModel, source: str) -> None:
    """
    Check that no weight is NaN or infinite. Buffers may hold infinities, such as masks.

    Raises:
        ValueError: with the names of such weights.
    """
    is_fine: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules():
        with with_offloaded_weights(module):  # one module at a time
            for name, parameter in module.named_parameters(prefix, recurse=False):
                for data in plain(parameter):
                    is_fine[name] = smallest_and_largest(data).isfinite().all()
            for name, buffer in module.named_buffers(prefix, recurse=False):
                for data in plain(buffer):
                    is_fine[name] = ~smallest_and_largest(data).isnan().any()
    broken = [name for name, value in zip(is_fine, read_all(list(is_fine.values())), strict=True) if not value]
    if broken:
        raise ValueError(
            f"{source}: {count(broken)} not finite (NaN or infinity): {shortened(broken)}. "
            "Training may have diverged, or the file is damaged. Take an earlier checkpoint."
        )


def plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the floating tensors that hold a tensor's values: itself, or those inside a quantized or sharded one."""
    data = tensor.data
    if hasattr(data, "__tensor_flatten__"):
        inner = [getattr(data, name) for name in data.__tensor_flatten__()[0]]  # a device mesh may be among them
        for part in inner:
            yield from plain(part) if isinstance(part, torch.Tensor) else ()
    elif data.is_floating_point() and data.numel() > 0 and data.device.type != "meta":
        yield data


def smallest_and_largest(tensor: torch.Tensor) -> torch.Tensor:
    """Return the smallest and the largest value, (2,); both are NaN if one value is. It needs no memory for a mask."""
    values = tensor.float() if tensor.element_size() == 1 else tensor  # float8 has no such kernel
    return torch.stack(torch.aminmax(values))


def read_all(flags: list[torch.Tensor]) -> list[bool]:
    """Read flags from their devices, each device once."""
    read: dict[int, bool] = {}
    for device in dict.fromkeys(flag.device for flag in flags):
        numbers = [number for number, flag in enumerate(flags) if flag.device == device]
        read.update(zip(numbers, torch.stack([flags[number] for number in numbers]).tolist(), strict=True))
    return [read[number] for number in range(len(flags))]


def count(names: list[str]) -> str:
    """Return the number of weights with its verb."""
    return "1 weight is" if len(names) == 1 else f"{len(names)} weights are"


def shortened(names: list[str]) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
