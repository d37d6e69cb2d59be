# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""`modeling-mm say`: a text as audio, by a model that writes its codes."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import MMForConditionalGeneration
from ..pipeline_codes import MMTextToAudioPipeline
from ..utils import show_progress, write_bytes
from ..utils.audio_writing import encode_audio
from .loading import load_model


def run(options: Namespace) -> None:
    """Write the audio, and show how much of it there is by then."""
    model, processor = load_model(options.model, options.device, options.dtype, heads=(MMForConditionalGeneration,))
    pipe = MMTextToAudioPipeline(model, processor, device=model.device)
    given: dict[str, Any] = {}
    if options.seed is not None:
        given = {"generator": torch.Generator(pipe.device).manual_seed(options.seed), "do_sample": True}
    chunks = []
    with show_progress(desc="saying, samples") as progress:
        for samples in pipe.stream({"text": options.text, "audio": options.voice}, **given):
            chunks.append(samples)
            progress.update(len(samples))
    samples, path = np.concatenate(chunks), Path(options.out)
    write_bytes(path, encode_audio(samples, pipe.sampling_rate, path.suffix.lower()[1:]))
    print(f"Said: {path}, {len(samples) / pipe.sampling_rate:.1f} s")
