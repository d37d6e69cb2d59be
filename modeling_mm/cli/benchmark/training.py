# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Rows of training steps."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ... import MMConfig, MMForConditionalGeneration, MMForPreTraining
from ...batching import IGNORED
from ...head_loss import head_loss
from ...layers import Head
from .bench import Bench
from .models import PROMPT_TOKENS, text_config, vision_config
from .results import Result

ROWS_OF_STEP = 4
LENGTH_OF_LOSS = 1024


def lm_loss(bench: Bench) -> Iterator[Result]:
    """Compute the loss of 50k words and its gradients from the states before the head, against all logits."""
    text = text_config()
    head = Head(text.n_embd, text.vocab_size, bias=False).to(bench.device)
    shape = (ROWS_OF_STEP, min(LENGTH_OF_LOSS, text.n_positions))
    states = torch.randn(*shape, text.n_embd, device=bench.device, requires_grad=True)
    targets = torch.randint(0, text.vocab_size, shape, device=bench.device)

    def ours() -> None:
        head_loss(states, head, targets).backward()

    def peer() -> None:
        logits = nn.functional.linear(states, head.weight)
        nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()

    label, name = f"LM loss of {shape[0]} rows of {shape[1]} tokens", "all logits"
    yield from filter(None, [bench.compare_memory(label, name, ours, peer, 0.3)])
    yield bench.compare(label, name, ours, peer, 1.0)


def pretraining(bench: Bench) -> Iterator[Result]:
    """Train with all objectives of pre-training, against the next token alone, on the same weights and batch."""
    text, vision = text_config(), vision_config()
    for is_frozen in (False, True):
        config = MMConfig.from_text_vision_audio_configs(text, vision, freeze_vision=is_frozen)
        model = MMForPreTraining(config).to(bench.device).train()
        generator = MMForConditionalGeneration(config).to(bench.device).train()
        generator.model, generator.lm_head = model.model, model.lm_head
        optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
        batch = pretraining_batch(config, bench.tokens, vision.image_size, bench.device)
        shared = ("input_ids", "pixel_values", "shift_labels", "logits_to_keep")
        of_generator = {name: batch[name] for name in shared}
        runs = partial(step, model, batch, optimizer), partial(step, generator, of_generator, optimizer)
        label = f"pre-training, vision encoder {'frozen' if is_frozen else 'trained'}"
        yield bench.compare(label, "next token alone", *runs, 2.2, is_at_most=True)


def step(model: PreTrainedModel, inputs: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Run a training step."""
    model(**inputs).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def pretraining_batch(config: MMConfig, tokens: int, size: int, device: str) -> dict[str, torch.Tensor]:
    """Return rows of an image and a prompt with answers of so many tokens, of which a third are masked."""
    answers = torch.randint(0, config.text_config.vocab_size - 8, (ROWS_OF_STEP, tokens), device=device)
    prompt = torch.randint(0, config.text_config.vocab_size - 8, (ROWS_OF_STEP, PROMPT_TOKENS), device=device)
    image = torch.full_like(prompt[:, :1], config.placeholder_ids[0])
    ids = torch.cat([image, prompt, answers], dim=1)  # (B, L)
    ignored = torch.full_like(prompt, IGNORED)
    targets = torch.cat([ignored, answers, ignored[:, :1]], dim=1)  # of the next token
    is_masked = (torch.arange(ids.shape[1], device=device) % 3 == 2)[None]
    return {
        "input_ids": ids,
        "pixel_values": torch.randn(ROWS_OF_STEP, 3, size, size, device=device),
        "shift_labels": targets,
        "logits_to_keep": targets != IGNORED,
        "masked_targets": ids.masked_fill(~is_masked, IGNORED),
        "text_input_ids": answers,
        "text_attention_mask": torch.ones_like(answers),
    }
