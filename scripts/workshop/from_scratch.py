# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
A tiny joint model with random weights and a new tokenizer, which tries the package without any download.

Its components are encoders of transformers (a ResNet, a Whisper encoder) at sizes that memorize a few hundred small
images and short recordings in minutes on two cores. It serves no other purpose.
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

IMAGE_SIZE = 64
MEL_BINS = 40
WINDOW_SECONDS = 3
HOP = 320  # samples at 16 kHz: one frame is 20 ms
FRAMES = WINDOW_SECONDS * 16_000 // HOP
ENCODER_WIDTH = 64
DECODER_WIDTH = 96
HEADS = 4
# With the usual 0.02 such small matrices pass on so little that the model uses the images late.
INITIALIZER_RANGE = 0.08
BLOCK = 128  # tokens of a row in pretraining
POSITIONS = 64  # text tokens of the longest conversation


def train_tokenizer(texts: Iterable[str], vocab_size: int = 700) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE like GPT-2's, which can write any text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=sorted(alphabet), show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe)


def pretrain_decoder(
    decoder: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], folder: str, **arguments: Any
) -> None:
    """
    Pretrain a decoder on text, so that it can write before it is joined to encoders.

    The texts are concatenated in random order, each formatted as an answer in a chat, and cut into blocks.

    Args:
        decoder: the model, which is trained in place.
        tokenizer: a tokenizer with the role tokens of a processor.
        texts: the training data.
        folder: the trainer's output folder.
        **arguments: fields of transformers' `TrainingArguments`.
    """
    rows = [{"input_ids": block, "labels": block} for block in text_blocks(list(texts), tokenizer, BLOCK)]
    decoder.resize_token_embeddings(max(len(tokenizer), decoder.config.vocab_size))
    trainer = Trainer(decoder, TrainingArguments(folder, **arguments), train_dataset=rows)
    LossProgressCallback.take_over(trainer)
    trainer.train()


def text_blocks(texts: Sequence[str], tokenizer: Any, length: int) -> torch.Tensor:
    """
    Concatenate texts, each between `<|assistant|>` and `<|end|>`, and cut them into rows (N, length).

    Raises:
        ValueError: if the texts are shorter than one row.
    """
    assistant, end = tokenizer.convert_tokens_to_ids([ASSISTANT_TOKEN, END_TOKEN])
    order = random.Random(0).sample(range(len(texts)), len(texts))
    encoded = tokenizer([texts[i] for i in order], add_special_tokens=False)["input_ids"]
    stream = torch.tensor([token for ids in encoded for token in (assistant, *ids, end)])
    rows = len(stream) // length
    if rows == 0:
        raise ValueError(f"The texts have {len(stream)} tokens, less than one block of {length}.")
    return stream[: rows * length].view(rows, length)


def small_processor(texts: Iterable[str]) -> MMProcessor:
    """Return a processor for images of 64x64 and audio windows of 3 s, with a tokenizer trained on `texts`."""
    return MMProcessor.from_text_vision_audio_pretrained(
        train_tokenizer(texts),
        ViTImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        WhisperFeatureExtractor(feature_size=MEL_BINS, chunk_length=WINDOW_SECONDS, hop_length=HOP),
    )


def small_model(processor: MMProcessor, seed: int = 0) -> MMForConditionalGeneration:
    """Join three small components with random weights, for a processor of `small_processor`."""
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
    """Return a ResNet that turns 64x64 pixels into 8x8 tokens, each of one patch and its surroundings."""
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
    """Return a Whisper that turns 150 frames of 20 ms into 75 tokens; its decoder, which joining drops, is minimal."""
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
