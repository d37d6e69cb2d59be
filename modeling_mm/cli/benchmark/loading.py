# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Rows of imports, of `from_pretrained` and of conversion."""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, VisionEncoderDecoderModel

from ... import MMConfig, MMForConditionalGeneration
from .bench import Bench
from .models import peer_captioner, text_config, vision_config, whisper_config
from .results import Result

IMPORT = "import time, transformers; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
GREATEST_IMPORT = 0.3  # seconds
GPT2_LARGE = {"n_embd": 1280, "n_layer": 36, "n_head": 20}  # 774M

# Prints the memory in MB that a call adds at its peak in a fresh process in which all is imported, on Linux. Weights
# are read once, because those that are mapped from a file take no memory before.
PEAK = """
import re, sys, transformers, modeling_mm
transformers.GPT2LMHeadModel, transformers.ViTModel, transformers.VisionEncoderDecoderModel
call, peak = {call}, lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
model = call(sys.argv[1])
total = sum(float(parameter.detach().sum()) for parameter in model.parameters())
print((peak() - before) // 1024)
"""


def imports(bench: Bench) -> Iterator[Result]:
    """Measure what `import modeling_mm` adds to `import transformers`, each in a fresh process."""
    runs = [fresh(IMPORT.format("modeling_mm")) for _ in range(bench.repeats)]
    ratios = [seconds / GREATEST_IMPORT for seconds in runs]
    found = statistics.median(runs)
    yield Result("import modeling_mm", "limit", "s", found, GREATEST_IMPORT, ratios, 1.0, is_at_most=True)


def load(bench: Bench) -> Iterator[Result]:
    """
    Load a model of about a billion parameters, against VisionEncoderDecoderModel of about the same size.

    `from_pretrained` of ours reads each weight, to refuse those that are not finite; that of the peer maps the file,
    whose pages are read when they are used. So the time until each weight is there has a separate row.
    """
    text = text_config(**GPT2_LARGE)

    def joint_model() -> PreTrainedModel:
        whisper = whisper_config(d_model=768, encoder_layers=8)
        return MMForConditionalGeneration(MMConfig.from_text_vision_audio_configs(text, vision_config(), whisper))

    def peer() -> PreTrainedModel:
        return peer_captioner(text, vision_config())

    with tempfile.TemporaryDirectory() as folder:
        folders = [str(Path(folder, name)) for name in ("ours", "peer")]
        sizes = [save(make, path) for make, path in zip((joint_model, peer), folders, strict=True)]
        load_ours = partial(MMForConditionalGeneration.from_pretrained, folders[0])
        load_peer = partial(VisionEncoderDecoderModel.from_pretrained, folders[1])
        label, name = f"from_pretrained of {sizes[0]:.0f}M", f"{VisionEncoderDecoderModel.__name__} {sizes[1]:.0f}M"
        yield bench.compare(label, name, load_ours, load_peer, 1.1, is_at_most=True)
        read_ours, read_peer = (partial(read_weights, load) for load in (load_ours, load_peer))
        yield bench.compare(f"{label}, each weight read", name, read_ours, read_peer, 1.1, is_at_most=True)
        calls = ("modeling_mm.MMForConditionalGeneration.from_pretrained", peer_call())
        yield from compare_peaks(label, name, calls, folders, 1.1)


def save(make: Callable[[], PreTrainedModel], folder: str) -> float:
    """Make and save a model, which is then gone; return its parameters in millions."""
    model = make()
    model.save_pretrained(folder)
    return millions(model)


def read_weights(load: Callable[[], PreTrainedModel]) -> None:
    """Load a model and read each of its weights once."""
    for parameter in load().parameters():
        parameter.detach().sum()


def convert(bench: Bench) -> Iterator[Result]:
    """Convert a captioner of about 250M parameters, against `from_pretrained` of the original."""
    peer = peer_captioner(text_config(add_cross_attention=True), vision_config())
    label, name = f"from_encoder_decoder of {millions(peer):.0f}M", "from_pretrained of the original"
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        del peer
        ours = partial(MMForConditionalGeneration.from_encoder_decoder, folder)
        theirs = partial(VisionEncoderDecoderModel.from_pretrained, folder)
        yield bench.compare(label, name, ours, theirs, 1.5, is_at_most=True)
        calls = ("modeling_mm.MMForConditionalGeneration.from_encoder_decoder", peer_call())
        yield from compare_peaks(label, name, calls, [folder, folder], 1.3)


def peer_call() -> str:
    """Return the source of the peer's loading."""
    return f"transformers.{VisionEncoderDecoderModel.__name__}.from_pretrained"


def compare_peaks(
    label: str, peer: str, calls: tuple[str, str], folders: list[str], target: float
) -> Iterator[Result]:
    """Compare the memory of two calls on a folder each, in fresh processes, on Linux."""
    if sys.platform != "linux":
        return
    pairs = zip(calls, folders, strict=True)
    ours, theirs = (fresh(PEAK.format(call=call), folder) for call, folder in pairs)
    unit = "MB at the peak"
    yield Result(label, peer, unit, ours, theirs, [ours / max(1.0, theirs)], target, is_at_most=True)


def fresh(source: str, *arguments: str) -> float:
    """Return the number that source prints in a fresh process."""
    return float(subprocess.check_output([sys.executable, "-c", source, *arguments]))


def millions(model: PreTrainedModel) -> float:
    """Return a model's parameters in millions."""
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6
