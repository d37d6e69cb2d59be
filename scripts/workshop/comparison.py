# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Train several systems on the same captions, frozen features and order, and measure them.

A run is one system with one seed. Its figures are appended to a file when it ends, and a run that the file holds is
not repeated, so that an interrupted comparison resumes.
"""

import json
import math
import random
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from modeling_mm.batching import IGNORED
from modeling_mm.configuration_mm import ASSISTANT_TOKEN, END_TOKEN
from modeling_mm.evaluation import score
from modeling_mm.modeling_mm import share_weights
from modeling_mm.training import EncoderCache, fingerprint

from .comparison_data import Caption, batch_of, image_states
from .comparison_settings import Settings
from .comparison_systems import CaptionModel, Components
from .corpus import read_lines
from .from_scratch import text_blocks

EVALUATION_BATCH = 64


# ---- Optimization ---------------------------------------------------------------------------------------------------


def caption_loss(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return the cross-entropy of the caption's tokens, in nats; logits (B, L, V), labels (B, L)."""
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction=reduction
    )


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the fraction of its peak that a learning rate has: a linear rise, then half a cosine."""
    return min(1.0, (step + 1) / max(1.0, warmup * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor, fraction: float) -> None:
    """Make a step with gradients clipped to norm 1, at a fraction of each group's peak learning rate."""
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    for group in optimizer.param_groups:
        group["lr"] = fraction * group["peak"]
    optimizer.step()
    optimizer.zero_grad()


def optimizer_of(system: CaptionModel, settings: Settings) -> torch.optim.Optimizer:
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in system.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((system.part_of(name) == "text", parameter.ndim > 1), []).append(parameter)
    rates = {True: settings.text_learning_rate, False: settings.new_learning_rate}
    return torch.optim.AdamW(
        [
            {"params": parameters, "peak": rates[text], "weight_decay": settings.weight_decay if matrix else 0.0}
            for (text, matrix), parameters in groups.items()
        ],
        betas=(0.9, 0.98),
    )


def order_of(count: int, settings: Settings, seed: int) -> list[list[int]]:
    """Return the rows of each step: all `count` rows in random order, again and again; the same for a seed."""
    drawn: list[int] = []
    rng = random.Random(seed)
    while len(drawn) < settings.steps * settings.batch_size:
        drawn += rng.sample(range(count), count)
    return [drawn[i * settings.batch_size : (i + 1) * settings.batch_size] for i in range(settings.steps)]


def pretrained_decoder(
    folder: Path, texts: Callable[[], Sequence[str]], processor: Any, size: dict[str, Any], steps: int, rate: float
) -> GPT2LMHeadModel:
    """
    Load a small GPT-2 that is pretrained on text, or pretrain and save it.

    Args:
        folder: the folder of the decoder.
        texts: a function that returns the training data, called only if the folder has no decoder.
        processor: the processor with the tokenizer.
        size: fields of `GPT2Config`.
        steps: the number of steps, each on 16 blocks of 64 tokens.
        rate: the peak learning rate.
    """
    if (folder / "config.json").is_file():
        return GPT2LMHeadModel.from_pretrained(folder)
    torch.manual_seed(0)
    blocks = text_blocks(texts(), processor.tokenizer, 64)
    assistant, end = processor.tokenizer.convert_tokens_to_ids([ASSISTANT_TOKEN, END_TOKEN])
    tokens = {"bos_token_id": assistant, "eos_token_id": end, "pad_token_id": processor.tokenizer.pad_token_id}
    dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.0}
    decoder = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(processor.tokenizer), n_positions=128, **size, **tokens, **dropout)
    )
    decoder.train()
    groups = [{"params": list(decoder.parameters()), "peak": rate, "weight_decay": 0.01}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    with tqdm(range(steps), desc="pretraining the decoder") as bar:
        for step in bar:
            rows = blocks[(torch.arange(16) + 16 * step) % len(blocks)]
            loss = caption_loss(decoder(rows, use_cache=False).logits, rows)
            update(optimizer, loss, schedule(step, steps, 0.1))
            bar.set_postfix(loss=f"{loss.item():.2f}")
    decoder.eval().save_pretrained(folder)
    share_weights(folder)
    return decoder


# ---- One run --------------------------------------------------------------------------------------------------------


def run_system(
    build: Callable[[Components], CaptionModel],
    components: Components,
    cache: EncoderCache,
    train: Sequence[Caption],
    test: Sequence[Caption],
    settings: Settings,
    seed: int,
    label: str = "training",
) -> dict[str, Any]:
    """
    Train one system and measure it.

    Returns:
        `loss` (held out, in nats per token) and `exact_match`; `curve` as (step, mean training loss since the last
        point, held-out loss); `new_parameters` and `parameters` (without the encoder); `seconds` of training and
        `seconds_answering`, both of processor time, so that other programs do not count.
    """
    torch.manual_seed(seed)
    system = build(components)
    optimizer = optimizer_of(system, settings)
    pad = components.token_ids()[3]
    curve, losses, seconds = [], [], 0.0
    marks = {round(settings.steps * (i + 1) / settings.evaluations) for i in range(settings.evaluations)}
    with tqdm(order_of(len(train), settings, seed), desc=label, leave=False) as bar:
        for step, rows in enumerate(bar):
            start = processor_seconds()
            states, input_ids, attention_mask, labels = batch_of([train[i] for i in rows], cache, pad)
            system.train()
            loss = caption_loss(system.logits(states, input_ids, attention_mask), labels)
            update(optimizer, loss, schedule(step, settings.steps, settings.warmup))
            losses.append(loss.item())
            seconds += processor_seconds() - start
            if step + 1 in marks:
                curve.append((step + 1, sum(losses) / len(losses), held_out_loss(system, cache, test, pad)))
                bar.set_postfix(train=f"{curve[-1][1]:.2f}", held_out=f"{curve[-1][2]:.2f}")
                losses = []
    start = processor_seconds()
    answers = generate_captions(system, cache, test, components, settings.max_new_tokens)
    trained = {name: p for name, p in system.named_parameters() if system.part_of(name) != "vision"}
    return {
        "loss": curve[-1][2],
        "exact_match": score("exact_match", answers, [caption.text for caption in test]),
        "curve": curve,
        "parameters": sum(p.numel() for p in trained.values()),
        "new_parameters": sum(p.numel() for name, p in trained.items() if system.part_of(name) != "text"),
        "seconds": seconds,
        "seconds_answering": processor_seconds() - start,
    }


def processor_seconds() -> float:
    """Return the time that all threads of this process have computed."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@torch.inference_mode()
def held_out_loss(system: CaptionModel, cache: EncoderCache, captions: Sequence[Caption], pad: int) -> float:
    """Return the cross-entropy of all captions' tokens, in nats per token."""
    system.eval()
    total = tokens = 0.0
    for start in range(0, len(captions), EVALUATION_BATCH):
        states, input_ids, attention_mask, labels = batch_of(captions[start : start + EVALUATION_BATCH], cache, pad)
        total += caption_loss(system.logits(states, input_ids, attention_mask), labels, "sum").item()
        tokens += (labels != IGNORED).sum().item()
    return total / tokens


@torch.inference_mode()
def generate_captions(
    system: CaptionModel, cache: EncoderCache, captions: Sequence[Caption], components: Components, max_new_tokens: int
) -> list[str]:
    """Generate the system's own caption of each image, greedily."""
    system.eval()
    answers: list[str] = []
    for start in range(0, len(captions), EVALUATION_BATCH):
        states = image_states(captions[start : start + EVALUATION_BATCH], cache)
        output = system.captions(states, max_new_tokens)
        answers += [text.strip() for text in components.processor.batch_decode(output, skip_special_tokens=True)]
    return answers


# ---- All runs -------------------------------------------------------------------------------------------------------


def compare(
    systems: dict[str, Callable[[Components], CaptionModel]],
    seeds: Sequence[int],
    components: Components,
    cache: EncoderCache,
    train: Sequence[Caption],
    test: Sequence[Caption],
    settings: Settings,
    results: Path,
) -> list[dict[str, Any]]:
    """
    Make every run that the file `results` does not hold yet, seed by seed, and append it.

    Returns:
        The lines of all requested runs.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    drop_truncated_line(results)
    alike = conditions(components, train, test, settings)
    lines = read_lines(results) if results.is_file() else []
    done = {(line["system"], line["seed"]): line for line in lines if line["conditions"] == alike}
    wanted = [(name, seed) for seed in seeds for name in systems]
    for name, seed in wanted:
        if (name, seed) in done:
            continue
        start = time.time()
        figures = run_system(systems[name], components, cache, train, test, settings, seed, f"{name}, seed {seed}")
        line = {"system": name, "seed": seed, **figures, "wall": time.time() - start, "conditions": alike}
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        done[name, seed] = line
        tqdm.write(f"{name}, seed {seed}: loss {line['loss']:.3f}, exact match {line['exact_match']:.3f}")
    return [done[key] for key in wanted]


def conditions(
    components: Components, train: Sequence[Caption], test: Sequence[Caption], settings: Settings
) -> dict[str, Any]:
    """Return, as JSON, what two comparable runs have in common."""
    texts = [[caption.path.rsplit("/", 2)[-2:], caption.text] for caption in (*train, *test)]
    prints = {"decoder": fingerprint(components.decoder), "captions": fingerprint(nn.Module(), texts)}
    return {**asdict(settings), **prints}


def drop_truncated_line(results: Path) -> None:
    """Remove the rest of a line that an interruption left at the end of a file."""
    if not results.is_file():
        return
    whole = results.read_bytes()
    with open(results, "r+b") as lines:
        lines.truncate(whole.rfind(b"\n") + 1)
