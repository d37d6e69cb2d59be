# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Rows of media that are used again: many questions on one image, and the cost of media tokens."""

from collections.abc import Iterator
from functools import partial

import torch

from .bench import Bench
from .models import PROMPT_TOKENS, captioner, greedy, text_config, vision_config
from .results import Result
from .work import decoding_work

QUESTIONS = 8
PREFIX_TOKENS = 256
MEDIA_TOKENS = (64, 256, 1024, 4096)
LATENTS = 64


@torch.no_grad()
def questions(bench: Bench) -> Iterator[Result]:
    """Answer eight questions on one image, against each encoded and asked by itself."""
    text, vision = text_config(), vision_config()
    model = captioner(text, vision).eval().to(bench.device)
    pixels = torch.randn(1, 1, 3, vision.image_size, vision.image_size, device=bench.device)
    words = torch.randint(0, text.vocab_size - 8, (QUESTIONS, PROMPT_TOKENS), device=bench.device)
    image = torch.full_like(words[:1, :1], model.config.placeholder_ids[0])
    length = greedy(bench.tokens)
    space = text.n_positions - PROMPT_TOKENS - bench.tokens - 1
    long = torch.randint(0, text.vocab_size - 8, (1, max(1, min(PREFIX_TOKENS, space))), device=bench.device)

    def prompts(prefix: torch.Tensor) -> torch.Tensor:
        return torch.cat([prefix.expand(QUESTIONS, -1), words], dim=1)  # (8, P + L)

    def alone(prefix: torch.Tensor) -> None:
        for prompt in prompts(prefix).split(1):
            model.generate(input_ids=prompt, pixel_values=pixels, **length)

    def in_turn() -> None:
        media = model.encode_media(pixel_values=pixels)
        for prompt in prompts(image).split(1):
            model.generate(input_ids=prompt, media=media, **length)

    def in_one_batch() -> None:
        model.generate(input_ids=prompts(image), media=model.encode_media(pixel_values=pixels), **length)

    def behind_prefix() -> None:
        prefix = model.read_prefix(torch.cat([image, long], dim=1), pixel_values=pixels)
        model.generate(**prefix.followed_by(words), **length)

    peer = "each encoded and asked alone"
    label = f"{QUESTIONS} questions on an image"
    yield bench.compare(f"{label}, in turn", peer, in_turn, partial(alone, image), 3.0)
    yield bench.compare(f"{label}, in one batch", peer, in_one_batch, partial(alone, image), 9.0)
    whole = torch.cat([image, long], dim=1)
    yield bench.compare(f"{label}, {whole.shape[1]} tokens shared", peer, behind_prefix, partial(alone, whole), 12.0)


@torch.no_grad()
def media_tokens(bench: Bench) -> Iterator[Result]:
    """Decode with more and more media tokens a row, against the fewest: as bytes grow, or with latents hardly."""
    text, vision = text_config(), vision_config(num_hidden_layers=1)
    for connector in ("mlp", "perceiver"):
        options = {"vision_latents": LATENTS} if connector == "perceiver" else {}
        model = captioner(text, vision, vision_connector=connector, **options).eval().to(bench.device)
        words = torch.randint(0, text.vocab_size - 8, (1, PROMPT_TOKENS), device=bench.device)
        words[:, 0] = model.config.placeholder_ids[0]
        runs, bytes_of = [], []
        for count in MEDIA_TOKENS:
            states = torch.randn(1, 1, count, vision.hidden_size, device=bench.device)
            media = model.encode_media(vision_states=states)
            runs.append(partial(model.generate, input_ids=words, media=media, **greedy(bench.tokens)))
            bytes_of.append(decoding_work(model, 1, PROMPT_TOKENS, bench.tokens, media.states.shape[1]).bytes)
        for count, run, size in zip(MEDIA_TOKENS[1:], runs[1:], bytes_of[1:], strict=True):
            target = 1.3 if connector == "perceiver" else round(max(1.3, 1.1 * size / bytes_of[0]), 2)
            label = f"{count} media tokens, {connector}"
            yield bench.compare(label, f"{MEDIA_TOKENS[0]} tokens", run, runs[0], target, is_at_most=True)
