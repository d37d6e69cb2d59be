# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
A tiny joint model with random weights and a tokenizer of its own, to try the machinery without any download.

Its parts are real encoders of transformers (a ResNet, a Whisper encoder) at sizes that learn a few hundred small
pictures and short sounds by heart in minutes on two cores. Nothing about it is good for anything else.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetModel,
    Trainer,
    TrainingArguments,
    ViTImageProcessorPil,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from modeling_mm.configuration_mm import ASSISTANT_TOKEN, END_TOKEN
from modeling_mm.modeling_mm import MMForConditionalGeneration
from modeling_mm.processing_mm import MMProcessor
from modeling_mm.training import LossProgressCallback

PICTURE_SIZE = 64
MEL_BINS = 40
WINDOW_SECONDS = 3
HOP = 320  # samples at 16 kHz: one frame is 20 ms
FRAMES = WINDOW_SECONDS * 16_000 // HOP
ENCODER_WIDTH = 64
DECODER_WIDTH = 96
HEADS = 4
# Matrices this small pass too little on at the usual 0.02: the pictures would be noticed late.
INITIALIZER_RANGE = 0.08
BLOCK = 128  # tokens of a row in pretraining
POSITIONS = 64  # text tokens a conversation may have


def train_tokenizer(texts: Iterable[str], vocab_size: int = 700) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's, which can write any text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=sorted(alphabet), show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def pretrain_decoder(
    decoder: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], folder: str, **arguments
) -> None:
    """
    Teaches a decoder text, before it is joined to anything: what it can already write it need not learn from media.

    Texts stand in random order one behind the other, each as an answer stands in a chat, cut into blocks.

    Args:
        tokenizer: with the role tokens of a processor
        folder: the trainer's own
        arguments: of transformers' TrainingArguments
    """
    rows = [{"input_ids": block, "labels": block} for block in text_blocks(list(texts), tokenizer, BLOCK)]
    decoder.resize_token_embeddings(max(len(tokenizer), decoder.config.vocab_size))
    trainer = Trainer(decoder, TrainingArguments(folder, **arguments), train_dataset=rows)
    LossProgressCallback.take_over(trainer)
    trainer.train()


def text_blocks(texts: Sequence[str], tokenizer: Any, length: int) -> torch.Tensor:
    """Texts, each between `<|assistant|>` and `<|end|>`, one behind the other, cut into rows (N, length)."""
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT_TOKEN, END_TOKEN])
    order = random.Random(0).sample(range(len(texts)), len(texts))
    encoded = tokenizer([texts[i] for i in order], add_special_tokens=False)["input_ids"]
    stream = torch.tensor([token for ids in encoded for token in (assistant, *ids, end)])
    rows = len(stream) // length
    if rows == 0:
        raise ValueError(f"The texts have {len(stream)} tokens in all, less than one block of {length}.")
    return stream[: rows * length].view(rows, length)


def small_processor(texts: Iterable[str]) -> MMProcessor:
    """A processor for pictures of 64x64 and sounds in windows of 3 s, with a tokenizer learned from `texts`."""
    return MMProcessor.from_text_vision_audio_pretrained(
        train_tokenizer(texts),
        ViTImageProcessorPil(size={"height": PICTURE_SIZE, "width": PICTURE_SIZE}),
        WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=WINDOW_SECONDS, hop_length=HOP),
    )


def small_model(processor: MMProcessor, seed: int = 0) -> MMForConditionalGeneration:
    """Three small parts with random weights, joined as pretrained ones are, for a processor of `small_processor`."""
    torch.manual_seed(seed)
    return MMForConditionalGeneration.from_text_vision_audio_pretrained(
        small_decoder(processor.tokenizer.vocab_size),
        small_vision_encoder(),
        small_audio_encoder(),
        tokenizer=processor,
        cross_attention_layers=[1],
        cross_attention_gated=False,
        media_position_encoding="learned",
        max_media_positions=128,
    )


def small_decoder(vocab_size: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_positions=POSITIONS,
            n_embd=DECODER_WIDTH,
            n_layer=2,
            n_head=HEADS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=INITIALIZER_RANGE,
            bos_token_id=None,
            eos_token_id=None,  # an answer ends with the end-of-turn token
        )
    )


def small_vision_encoder() -> ResNetModel:
    """64x64 pixels -> 8x8 patches; convolutions, so that a patch's token tells of that patch and what is near it."""
    return ResNetModel(
        ResNetConfig(
            embedding_size=24,
            hidden_sizes=[ENCODER_WIDTH],
            depths=[1],
            layer_type="basic",
            downsample_in_first_stage=True,
        )
    )


def small_audio_encoder() -> WhisperModel:
    """150 frames of 20 ms -> 75 tokens of 40 ms. Its decoder, which joining leaves out, is as small as can be."""
    return WhisperModel(
        WhisperConfig(
            vocab_size=4,
            num_mel_bins=MEL_BINS,
            d_model=ENCODER_WIDTH,
            encoder_layers=1,
            encoder_attention_heads=HEADS,
            encoder_ffn_dim=2 * ENCODER_WIDTH,
            decoder_layers=1,
            decoder_attention_heads=HEADS,
            decoder_ffn_dim=1,
            max_source_positions=FRAMES // 2,
            init_std=INITIALIZER_RANGE,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )
