# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The rows of the benchmark by name, and the run of some or all of them."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers

from ..arguments import BENCHMARKS
from .batches import cached_states, frozen_encoder, mixed_batch, packed_rows
from .bench import Bench
from .decoding import hearing, speech, text_alone, with_image
from .graphs import exported
from .loading import convert, imports, load
from .machine import Machine
from .processing import processors
from .results import Result, write_json
from .reuse import media_tokens, questions
from .training import lm_loss, pretraining

ROWS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "text": text_alone,
    "image": with_image,
    "hearing": hearing,
    "speech": speech,
    "questions": questions,
    "media": media_tokens,
    "loss": lm_loss,
    "training": frozen_encoder,
    "cached": cached_states,
    "mixed": mixed_batch,
    "packed": packed_rows,
    "processor": processors,
    "pretraining": pretraining,
    "export": exported,
    "import": imports,
    "load": load,
    "convert": convert,
}


def run(options: Namespace) -> None:
    """Print the results of the rows, by default of all, and write them with `--json`."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    machine = Machine(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    bench = Bench(machine, options.tokens, options.repeats)
    facts = machine.facts()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(
        f"{facts['machine']}, {machine.device}, {facts['threads']} threads; {versions}; "
        f"{options.tokens} tokens, {options.repeats} runs; {machine.bandwidth / 1e9:.1f} GB/s, "
        f"{machine.matrix_rate(torch.float32) / 1e9:.0f} Gop/s in float32",
        flush=True,
    )
    results: dict[str, list[Result]] = {}
    for name in options.parts or BENCHMARKS:
        torch.manual_seed(0)
        results[name] = []
        for result in ROWS[name](bench):
            print(result.line(), flush=True)
            results[name].append(result)
            if options.json:  # after each, so that an interrupted run keeps what it has measured
                settings = {"tokens": options.tokens, "repeats": options.repeats}
                write_json(Path(options.json), machine, settings, results)
