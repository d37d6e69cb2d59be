# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Rows of greedy decoding: text alone, with an image, with audio."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from transformers import GenerationMixin, GPT2LMHeadModel, PreTrainedModel, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from ... import MMForConditionalGeneration
from ...deploy import Int8Config, quantize
from ...layers import has_half_kernels
from .bench import Bench, kind_of
from .models import (
    PROMPT_TOKENS,
    captioner,
    greedy,
    peer_captioner,
    peer_transcriber,
    text_config,
    transcriber,
    vision_config,
    whisper_base,
    whisper_config,
)
from .results import Result
from .work import decoding_work

INT8 = torch.int8
DTYPES = (torch.float32, torch.bfloat16)
BATCHES = (1, 8)


def prepare(
    ours: MMForConditionalGeneration, peer: PreTrainedModel, kind: torch.dtype, device: str
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return both in a type of numbers; the peer of int8 has the quicker of float32 and bfloat16 on this device."""
    dtype = kind
    if kind == INT8:
        dtype = torch.bfloat16 if device != "cpu" or has_half_kernels(torch.bfloat16) else torch.float32
        ours = quantize(ours, Int8Config())
    else:
        ours = ours.to(dtype)
    return ours.eval().to(device), peer.eval().to(device, dtype)


def kinds(device: str) -> tuple[torch.dtype, ...]:
    """Return the types of numbers of the rows; int8 is for CPUs."""
    return (*DTYPES, INT8) if device == "cpu" else DTYPES


def text_alone(bench: Bench) -> Iterator[Result]:
    """Decode text without media, against GPT2LMHeadModel."""
    text = text_config()
    targets = {torch.float32: 1.15, torch.bfloat16: 4.0}
    for dtype in DTYPES:
        ours = captioner(text, vision_config(num_hidden_layers=1)).eval().to(bench.device, dtype)
        peer = GPT2LMHeadModel(text).eval().to(bench.device, dtype)
        for batch in BATCHES:
            ids = torch.randint(0, text.vocab_size, (batch, PROMPT_TOKENS), device=bench.device)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            label = f"text only, {kind_of(dtype)}, batch {batch}"
            work = decoding_work(ours, batch, PROMPT_TOKENS, bench.tokens)
            runs = [partial(model.generate, **inputs, **greedy(bench.tokens)) for model in (ours, peer)]
            yield bench.compare(
                label,
                type(peer).__name__,
                runs[0],
                runs[1],
                targets[dtype],
                batch * bench.tokens,
                "tokens/s",
                work=work,
            )


def with_image(bench: Bench) -> Iterator[Result]:
    """Decode with one image a row, which is encoded, too, against VisionEncoderDecoderModel."""
    text, vision = text_config(), vision_config()
    targets = {(torch.float32, 1): 1.5, (torch.float32, 8): 1.5, (INT8, 1): 2.5, (INT8, 8): 5.0}
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    shape = (3, vision.image_size, vision.image_size)

    def sides() -> tuple[MMForConditionalGeneration, PreTrainedModel]:
        return captioner(text, vision), peer_captioner(text, vision)

    yield from with_media(bench, sides, "an image", "pixel_values", shape, patches, targets)


def hearing(bench: Bench) -> Iterator[Result]:
    """Decode with 30 s of audio a row, which is encoded, too, against SpeechEncoderDecoderModel."""
    text, audio = text_config(), whisper_base()
    targets = dict.fromkeys(product(kinds(bench.device), BATCHES), 2.0)
    frames = 2 * audio.max_source_positions
    shape = (audio.num_mel_bins, frames)

    def sides() -> tuple[MMForConditionalGeneration, PreTrainedModel]:
        return transcriber(text, audio), peer_transcriber(text, audio)

    yield from with_media(bench, sides, "audio", "input_features", shape, audio.max_source_positions, targets)


def with_media(
    bench: Bench,
    sides: Callable[[], tuple[MMForConditionalGeneration, PreTrainedModel]],
    label: str,
    name: str,
    shape: tuple[int, ...],
    media_tokens: int,
    targets: dict[tuple[torch.dtype, int], float],
) -> Iterator[Result]:
    """
    Decode with one item a row in each type of numbers.

    Args:
        sides: makes ours and the peer
        label, name, shape: of an item, and of the input that holds it
        media_tokens: of an item
        targets: by type and batch; 4 for those that are not there
    """
    for dtype in kinds(bench.device):
        ours, peer = prepare(*sides(), dtype, bench.device)
        for batch in BATCHES:
            inputs = {name: torch.randn((batch, *shape), device=bench.device, dtype=peer.dtype)}
            work = decoding_work(ours, batch, 1, bench.tokens, media_tokens, media_tokens)
            runs = [partial(model.generate, **inputs, **greedy(bench.tokens)) for model in (ours, peer)]
            yield bench.compare(
                f"with {label}, {kind_of(dtype)}, batch {batch}",
                type(peer).__name__,
                runs[0],
                runs[1],
                targets.get((dtype, batch), 4.0),
                batch * bench.tokens,
                "tokens/s",
                work=work,
            )


def speech(bench: Bench) -> Iterator[Result]:
    """Decode from the states of one window of audio a row, against Whisper of tiny.en's size and weights."""
    sizes = {"d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "vocab_size": 51864}
    heads = {"encoder_attention_heads": 6, "decoder_attention_heads": 6}
    config = whisper_config(**sizes, **heads, encoder_ffn_dim=1536, decoder_ffn_dim=1536, begin_suppress_tokens=None)
    peer = WhisperForConditionalGeneration(config).eval()
    ours = MMForConditionalGeneration.from_encoder_decoder(peer).eval()
    for dtype in kinds(bench.device):
        prepare(ours, peer, dtype, bench.device)
        for batch in BATCHES:
            shape = (batch, config.max_source_positions, config.d_model)
            states = torch.randn(shape, device=bench.device, dtype=peer.dtype)
            label = f"speech, {kind_of(dtype)}, batch {batch}"
            work = decoding_work(ours, batch, 2, bench.tokens, config.max_source_positions)
            runs = speech_runs(ours, peer, states, bench.tokens)
            target = 4.0 if dtype == INT8 else 2.0
            yield bench.compare(label, type(peer).__name__, *runs, target, batch * bench.tokens, "tokens/s", work=work)


def speech_runs(
    ours: MMForConditionalGeneration, peer: PreTrainedModel, states: torch.Tensor, tokens: int
) -> tuple[Any, Any]:
    """Return the calls of both sides that decode from an encoder's states (B, L, W)."""
    media = ours.encode_media(audio_states=states[:, None])
    start = peer.config.decoder_start_token_id
    prompt = torch.tensor([[ours.config.audio_token_id, start]] * len(states), device=states.device)
    length = {name: value for name, value in greedy(tokens).items() if name != "pad_token_id"}

    def run_peer() -> Any:
        encoded = BaseModelOutput(states)  # a new one each time, as `generate` changes it
        return GenerationMixin.generate(peer, encoder_outputs=encoded, decoder_input_ids=prompt[:, 1:], **length)

    return partial(ours.generate, input_ids=prompt, media=media, **length), run_peer
