# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Rows of training steps with frozen encoders: against the peer, cached states, mixed batches, packed rows."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ... import MMConfig, MMForConditionalGeneration
from ...batching import IGNORED, pad_batch
from ...modalities import BUILT_IN, MODALITIES
from ...training.packing import pack_rows
from .bench import Bench
from .models import (
    PROMPT_TOKENS,
    captioner,
    open_gates,
    peer_captioner,
    peer_transcriber,
    text_config,
    transcriber,
    vision_config,
    whisper_base,
)
from .results import Result
from .training import ROWS_OF_STEP, step

MIXED_ROWS = 6  # a third each with an image, with audio, with neither
LENGTHS = (6, 8, 9, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 52, 64, 96)  # of short answers with their questions


def optimizer_of(model: PreTrainedModel) -> torch.optim.Optimizer:
    """Return the optimizer of what learns."""
    return torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])


def step_of(model: PreTrainedModel, batch: dict[str, Any]) -> Any:
    """Return a training step of a model on a batch."""
    return partial(step, model, batch, optimizer_of(model))


def frozen_encoder(bench: Bench) -> Iterator[Result]:
    """Train behind a frozen encoder of images, then of audio, against the peers: time, and memory at the peak."""
    text, vision, whisper = text_config(), vision_config(), whisper_base()
    media = random_media(vision, whisper, ROWS_OF_STEP, bench.device)
    ours = captioner(text, vision, freeze_vision=True)
    yield from behind_encoder(bench, "pixel_values", media, ours, peer_captioner(text, vision))
    ours = transcriber(text, whisper, freeze_audio=True)
    yield from behind_encoder(bench, "input_features", media, ours, peer_transcriber(text, whisper))


def behind_encoder(
    bench: Bench, name: str, media: dict[str, torch.Tensor], ours: MMForConditionalGeneration, peer: PreTrainedModel
) -> Iterator[Result]:
    """
    Train both sides on answers about media of one kind.

    Args:
        name: of their input
        media: an item for each row, (B, 1, ...), by the names of their inputs
    """
    ours, peer = ours.to(bench.device).train(), peer.to(bench.device).train()
    peer.get_encoder().requires_grad_(False)
    modality = next(each for each in MODALITIES.values() if name in each.inputs)
    vocab_size = ours.config.text_config.vocab_size
    answers = torch.randint(0, vocab_size - 8, (ROWS_OF_STEP, bench.tokens), device=bench.device)
    item = torch.full_like(answers[:, :1], getattr(ours.config, modality.token_id_field))
    batch = {
        "input_ids": torch.cat([item, answers], dim=1),
        "labels": torch.cat([torch.full_like(item, IGNORED), answers], dim=1),
        name: media[name],
        "skip_logits": True,
    }
    runs = step_of(ours, batch), step_of(peer, {name: media[name][:, 0], "labels": answers})
    label, peer_name = f"training step, frozen encoder of {modality.name}", type(peer).__name__
    yield bench.compare(label, peer_name, runs[0], runs[1], 1.5)
    yield from filter(None, [bench.compare_memory(label, peer_name, runs[0], runs[1], 0.6)])


def cached_states(bench: Bench) -> Iterator[Result]:
    """Train on the kept outputs of a frozen encoder, against the same with its inputs."""
    vision = vision_config()
    model = captioner(text_config(), vision, freeze_vision=True).to(bench.device).train()
    ids, labels = prompts(model, ROWS_OF_STEP, bench.tokens, bench.device, ["image"] * ROWS_OF_STEP)
    pixels = torch.randn(ROWS_OF_STEP, 1, 3, vision.image_size, vision.image_size, device=bench.device)
    states = model.get_image_features(pixels[:, 0]).last_hidden_state[:, None]  # (B, 1, L, W)
    batch = {"input_ids": ids, "labels": labels, "skip_logits": True}
    runs = step_of(model, batch | {"vision_states": states}), step_of(model, batch | {"pixel_values": pixels})
    yield bench.compare("training step, cached encoder outputs", "encoded in each epoch", runs[0], runs[1], 3.0)


def mixed_batch(bench: Bench) -> Iterator[Result]:
    """Train on rows with an image, with audio or with neither, against the same rows padded with blank media."""
    towers = vision_config(), whisper_base()
    frozen = {MODALITIES[name].freeze_field: True for name in BUILT_IN}
    config = MMConfig.from_text_vision_audio_configs(text_config(), *towers, **frozen)
    model = open_gates(MMForConditionalGeneration(config)).to(bench.device).train()
    kinds = [(*BUILT_IN, "")[row % 3] for row in range(MIXED_ROWS)]
    media = random_media(*towers, MIXED_ROWS, bench.device)
    ids, labels = prompts(model, MIXED_ROWS, bench.tokens, bench.device, kinds)
    masks = {}
    for name, values in zip(BUILT_IN, media.values(), strict=True):
        present = torch.tensor([[kind == name] for kind in kinds], device=bench.device)  # (B, 1)
        modality = MODALITIES[name]
        is_long = modality.has_frames
        masks[modality.mask] = present[..., None].expand(-1, -1, values.shape[-1]).long() if is_long else present
    batch = {"input_ids": ids, "labels": labels, "skip_logits": True}
    ours = step_of(model, batch | media | masks)
    ids, labels = prompts(model, MIXED_ROWS, bench.tokens, bench.device, ["both"] * MIXED_ROWS)
    blank = step_of(model, {"input_ids": ids, "labels": labels, "skip_logits": True} | media)
    yield bench.compare("training step, a third each of media", "blank media in every row", ours, blank, 1.8)


def packed_rows(bench: Bench) -> Iterator[Result]:
    """Train on short answers about images whose states are cached, packed, against padded rows."""
    text, vision = text_config(), vision_config()
    model = captioner(text, vision, freeze_vision=True).to(bench.device).train()
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    longest = min(max(LENGTHS), text.n_positions)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(0, text.vocab_size - 8, (min(length, longest),))
        ids[0] = model.config.placeholder_ids[0]
        labels = ids.clone()
        labels[: len(ids) // 2] = IGNORED
        states = torch.randn(1, patches, vision.hidden_size)
        rows.append(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "vision_states": states}
        )
    batches = [
        {name: value.to(bench.device) for name, value in pad_batch(each, 0).items()} | {"skip_logits": True}
        for each in (pack_rows(rows, longest), rows)
    ]
    runs = [step_of(model, batch) for batch in batches]
    yield bench.compare(f"training step, {len(rows)} short answers", "padded rows", runs[0], runs[1], 1.5)


def random_media(vision: Any, whisper: Any, rows: int, device: str) -> dict[str, torch.Tensor]:
    """Return an image and a window of audio for each row, by the names of their inputs."""
    media = {"pixel_values": torch.randn(rows, 1, 3, vision.image_size, vision.image_size, device=device)}
    frames = 2 * whisper.max_source_positions
    media["input_features"] = torch.randn(rows, 1, whisper.num_mel_bins, frames, device=device)
    return media


def prompts(
    model: MMForConditionalGeneration, rows: int, tokens: int, device: str, kinds: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels (B, L) of rows that begin with a placeholder of their kind: image, audio, both or none."""
    words = torch.randint(0, model.config.text_config.vocab_size - 8, (rows, PROMPT_TOKENS + tokens), device=device)
    labels = words.clone()
    labels[:, :PROMPT_TOKENS] = IGNORED
    places = dict(zip(BUILT_IN, model.config.placeholder_ids, strict=False))
    for row, kind in enumerate(kinds):
        for place, token_id in enumerate(token for name, token in places.items() if token and kind in (name, "both")):
            words[row, place] = token_id
    return words, labels
