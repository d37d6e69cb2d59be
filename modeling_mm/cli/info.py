# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm info`: this installation, or the parts, sizes and limits of a model."""

import importlib.metadata
import os
import platform
from argparse import Namespace
from typing import get_args

from ..modalities import MODALITIES
from ..utils.resources import Kind, find_resource, list_resources, resource_or_path
from ..utils.tables import format_table

PACKAGES = ("modeling_mm", "torch", "transformers", "accelerate", "datasets", "peft", "trl", "fastapi", "gradio")
CROSS = "cross-attention"


def run(options: Namespace) -> None:
    """Print a path, a model or the installation."""
    if options.path:
        kind, _, name = options.path.partition("/")
        print(find_resource(kind, name))
    elif options.model:
        describe_model(options.model)
    else:
        describe_installation()


def describe_installation() -> None:
    """Print versions, devices, and the names of packaged files."""
    import torch  # here and below only if needed, so that `--path` is fast

    rows = [("python", platform.python_version()), *((name, version(name)) for name in PACKAGES)]
    rows.append(("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"))
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        rows.append((f"cuda:{number}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB"))
    print(format_table(("what", "found"), rows))
    for kind in get_args(Kind):
        print(f"{kind}: {', '.join(list_resources(kind))}")


def version(package: str) -> str:
    """Return the version of a package, if it is installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def describe_model(name: str) -> None:
    """Print the parts of a model or preset with their sizes, then its limits. No weights are read."""
    import torch

    from .. import MMConfig, MMModel, MMProcessor
    from ..audio import window_length
    from ..cross_attention import CROSS_ATTENTION
    from .loading import load_config

    path = resource_or_path("presets", name)
    config = load_config(name) if path == name else MMConfig.from_pretrained(path)
    with torch.device("meta"):
        model = MMModel(config)
    text = config.get_text_config(decoder=True)
    places = [
        f"{group.placement} layers {', '.join(map(str, group.layers))}" + f" ({group.name})" * bool(group.prefix)
        for group in model.language_model.groups
    ]
    kinds = {"text": f"{text.model_type}, {text.n_layer} layers of {text.n_embd}", CROSS: "; ".join(places)}
    joined = [each for each in MODALITIES.values() if getattr(config, each.config_field) is not None]
    for modality in joined:
        kinds[modality.tower_attribute] = getattr(config, modality.config_field).model_type
        kinds[modality.connector_attribute] = getattr(config, modality.connector_attribute)
    sizes = dict.fromkeys(kinds, 0)
    for parameter_name, parameter in model.named_parameters():
        part = CROSS if CROSS_ATTENTION.search(parameter_name) else parameter_name.partition(".")[0]
        sizes[part if part in sizes else "text"] += parameter.numel()
    rows = [(part, kinds[part], f"{size / 1e6:.2f}M") for part, size in sizes.items()]
    rows.append(("total", str(config.dtype or "").removeprefix("torch."), f"{sum(sizes.values()) / 1e6:.2f}M"))
    print(format_table(("part", "kind", "parameters"), rows, right=(2,), widest=80))
    print(f"Reads text, {', '.join(each.plural for each in joined)}. Vocabulary: {text.vocab_size} tokens.")
    print(f"Positions of text: {text.n_positions if config.text_position_encoding == 'learned' else 'no limit'}.")
    extractor = MMProcessor.from_pretrained(name).feature_extractor if path == name else None
    if extractor is not None:
        seconds = window_length(extractor) / extractor.sampling_rate
        print(f"Window of audio: {seconds:g} s at {extractor.sampling_rate} Hz; longer audio becomes several windows.")
