# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Cut the window of outputs/base from 30 s to 5 s, for tasks whose clips are shorter.

    python -m scripts.tasks.short_window           # outputs/base -> outputs/tasks/base-5s

Whisper's encoder adds fixed sinusoids to its positions, so that the first of them serve a shorter window. It then
encodes a clip in a tenth of the time. The weights are otherwise those of outputs/base.
"""

import argparse
import sys
from pathlib import Path

SECONDS = 5
FOLDER = Path("outputs/tasks/base-5s")


def cut_window(source: str, folder: Path, seconds: int = SECONDS) -> None:
    """
    Write a joint model with a Whisper encoder again, with a shorter window.

    Raises:
        ValueError: if the model has no Whisper encoder, or its window is not longer.
    """
    import torch  # only here, as it takes seconds

    from modeling_mm import MMForConditionalGeneration, MMProcessor

    model, processor = MMForConditionalGeneration.from_pretrained(source), MMProcessor.from_pretrained(source)
    tower, extractor = model.model.audio_tower, processor.feature_extractor
    if getattr(getattr(tower, "config", None), "model_type", None) != "whisper":
        raise ValueError(f"{source} has no Whisper encoder whose window could be cut.")
    if seconds >= extractor.chunk_length:
        raise ValueError(f"{source} has windows of {extractor.chunk_length} s. Give fewer seconds, got {seconds}.")
    positions = tower.config.max_source_positions * seconds // extractor.chunk_length
    kept = tower.embed_positions.weight[:positions].detach().clone()
    tower.embed_positions = torch.nn.Embedding.from_pretrained(kept)
    tower.max_source_positions = model.config.audio_config.max_source_positions = positions
    extractor.nb_max_frames = extractor.nb_max_frames * seconds // extractor.chunk_length
    extractor.n_samples = extractor.n_samples * seconds // extractor.chunk_length
    extractor.chunk_length = seconds
    processor.audio_window_seconds = float(seconds)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def prepare_window(source: str = "outputs/base", folder: Path = FOLDER, seconds: int = SECONDS) -> None:
    """Write a model with a shorter window, by default outputs/tasks/base-5s, unless it is there."""
    if not (folder / "model.safetensors").is_file():
        cut_window(source, folder, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="outputs/base")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    cut_window(arguments.base, arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
