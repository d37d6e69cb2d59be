# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""The work of `build_studio`: a small decoder with a new tokenizer and two codecs."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.codecs import load_codec
from modeling_mm.data import load_chats

from .from_scratch import train_tokenizer
from .studio_chats import NAME

VOCABULARY = 1500  # tokens of text; words are spelled in parts, of which speech follows
WIDTH, LAYERS, HEADS = 256, 6, 4
POSITIONS = 320  # a prompt and 4.5 s of speech
TEMPERATURE = 0.5  # at 1.0 more drawings fall apart


def prompts_of(corpora: Path) -> Iterator[str]:
    """Yield the prompts of training."""
    for path in sorted((corpora / NAME / "train").glob("*.jsonl")):
        for row in load_chats(path):
            for turn in row.messages:
                yield from (part["text"] for part in turn["content"] if part["type"] == "text")


def small_decoder(vocab_size: int) -> GPT2LMHeadModel:
    """Return a decoder of 5 million weights and its embedding, without dropout, which learns its examples by heart."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_positions=POSITIONS,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,  # an answer ends with the end-of-turn token
        )
    )


def build_studio(arguments: argparse.Namespace) -> None:
    """Write model and processor into a folder."""
    tokenizer = train_tokenizer(prompts_of(arguments.corpora), VOCABULARY)
    processor = MMProcessor.from_text_vision_audio_pretrained(tokenizer)
    torch.manual_seed(0)
    model = MMForConditionalGeneration.from_text_vision_audio_pretrained(
        small_decoder(tokenizer.vocab_size), tokenizer=processor
    )
    for folder in (arguments.image_codec, arguments.audio_codec):
        codec = load_codec(folder)
        processor.add_codec(codec)
        model.add_codec(codec, processor)
    model.generation_config.update(do_sample=True, temperature=TEMPERATURE)
    model.generation_config._from_model_config = False  # else it is made again, without them
    model.save_pretrained(arguments.folder)
    processor.save_pretrained(arguments.folder)
