# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Trains several systems on the same captions, the same frozen features and in the same order, and measures them.

A run is one system with one seed. Its line is appended to a file when it ends, and a run whose line is there is not
made again, so that an interrupted comparison goes on where it was.
"""

import json
import math
import random
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from modeling_mm.configuration_mm import ASSISTANT_TOKEN, END_TOKEN
from modeling_mm.data import ChatRow
from modeling_mm.evaluation import score
from modeling_mm.training import IGNORED, EncoderCache, fingerprint

from .comparison_systems import CaptionModel, Parts
from .corpus import read_rows
from .from_scratch import text_blocks
from .packages import fetch_package
from .sources import read_definitions

# Shape legend: B rows, L text tokens, S encoder tokens of a picture, W the encoder's width, V tokens.


DICTIONARY = "debian:wordnet-base"


@dataclass(frozen=True)
class Settings:
    """
    What all systems have in common.

    Args:
        steps: optimizer steps
        batch_size: captions a step
        text_learning_rate: of the pretrained decoder, at its peak
        new_learning_rate: of all that starts fresh, at its peak
        warmup: fraction of the steps in which the rates rise; after it they fall as a cosine to zero
        weight_decay: of matrices; vectors have none
        evaluations: how often the held-out loss is taken, at equal distances, the last time at the end
        max_new_tokens: of a caption
    """

    steps: int = 400
    batch_size: int = 64
    text_learning_rate: float = 2e-3
    new_learning_rate: float = 2e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    evaluations: int = 4
    max_new_tokens: int = 16

    def __post_init__(self):
        if not 1 <= self.evaluations <= self.steps:
            raise ValueError(f"evaluations must be from 1 to steps ({self.steps}), got {self.evaluations}.")


@dataclass(frozen=True)
class Caption:
    """A picture, what it shows, and that as tokens `<|image|><|assistant|> caption <|end|>`."""

    path: str
    text: str
    input_ids: list[int]

    @property
    def part(self) -> dict[str, str]:
        return {"type": "image", "path": self.path}


def read_captions(corpus: Path, split: str, column: str, parts: Parts, longest: int) -> tuple[list[Caption], int]:
    """
    The captions of a split of at most `longest` tokens, and how many longer ones are left out.

    Raises:
        ValueError: where none is left.
    """
    image, assistant, end, _ = parts.token_ids()
    captions = []
    rows = read_rows(corpus, split)
    for row in rows:
        words = parts.processor.tokenizer(row[column], add_special_tokens=False)["input_ids"]
        if len(words) <= longest:
            ids = [image, assistant, *words, end]
            captions.append(Caption(str(corpus / row["file_name"]), row[column].strip(), ids))
    if not captions:
        raise ValueError(f"No caption of {corpus / split} in the column {column} has at most {longest} tokens.")
    return captions, len(rows) - len(captions)


def fill_cache(cache: EncoderCache, captions: Iterable[Caption]) -> None:
    """Encodes each picture that is not there yet, as it is."""
    rows = [ChatRow(messages=[{"role": "user", "content": [caption.part]}]) for caption in captions]
    cache.fill(rows, views=False)


def batch_of(captions: Sequence[Caption], cache: EncoderCache, pad: int) -> tuple[torch.Tensor, ...]:
    """States (B, S, W), ids, mask and labels (B, L); of the text only the caption and its end are learned."""
    states = torch.stack([cache.states(caption.part)[0] for caption in captions])
    length = max(len(caption.input_ids) for caption in captions)
    input_ids = torch.tensor([c.input_ids + [pad] * (length - len(c.input_ids)) for c in captions])
    attention_mask = torch.tensor([[1] * len(c.input_ids) + [0] * (length - len(c.input_ids)) for c in captions])
    labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
    labels[:, :2] = IGNORED
    return states, input_ids, attention_mask, labels


def caption_loss(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy of the caption's tokens, in nats; logits (B, L, V), labels (B, L)."""
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction=reduction
    )


# ---- A pretrained decoder -------------------------------------------------------------------------------------------


def pretrained_decoder(
    folder: Path, texts: Callable[[], Sequence[str]], processor: Any, size: dict[str, Any], steps: int, rate: float
) -> GPT2LMHeadModel:
    """
    A small GPT-2 that has read some text, from `folder`, where it is made when it is not there.

    Args:
        texts: what it reads, shuffled, each between `<|assistant|>` and `<|end|>`; asked for only where needed
        size: fields of `GPT2Config`
        steps: of 16 blocks of 64 tokens
        rate: the learning rate at its peak
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
            update(optimizer, loss, at(step, steps, 0.1))
            bar.set_postfix(loss=f"{loss.item():.2f}")
    decoder.eval().save_pretrained(folder)
    return decoder


def dictionary_texts(packages: Path, corpus: Path, column: str) -> list[str]:
    """Half of WordNet's definitions of nouns, and each caption of the training split four times."""
    captions = sorted({row[column] for row in read_rows(corpus, "train")})
    return [*read_definitions(fetch_package(DICTIONARY, packages))[::2], *captions * 4]


# ---- One run --------------------------------------------------------------------------------------------------------


def at(step: int, steps: int, warmup: float) -> float:
    """The fraction of its peak that a learning rate has at a step: a linear rise, then half a cosine."""
    return min(1.0, (step + 1) / max(1.0, warmup * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))


def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor, fraction: float) -> None:
    """One step along the gradient of `loss`, clipped to norm 1, at a fraction of each group's `peak`."""
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
    """The rows of each step: pass after pass over `count` rows, each in an order of its own, the same for a seed."""
    drawn: list[int] = []
    passes = random.Random(seed)
    while len(drawn) < settings.steps * settings.batch_size:
        drawn += passes.sample(range(count), count)
    return [drawn[i * settings.batch_size : (i + 1) * settings.batch_size] for i in range(settings.steps)]


def run_system(
    build: Callable[[Parts], CaptionModel],
    parts: Parts,
    cache: EncoderCache,
    train: Sequence[Caption],
    test: Sequence[Caption],
    settings: Settings,
    seed: int,
    label: str = "training",
) -> dict[str, Any]:
    """
    Trains one system and measures it.

    Returns:
        `loss` (held out, in nats a token) and `exact_match`, `curve` as (step, loss on the training captions since
        the last point, held-out loss), `new_parameters` and `parameters` (without the encoder), `seconds` of training
        (of the processor, so that other programs do not count) and `seconds_answering`.
    """
    torch.manual_seed(seed)
    system = build(parts)
    optimizer = optimizer_of(system, settings)
    pad = parts.token_ids()[3]
    curve, losses, seconds = [], [], 0.0
    marks = {round(settings.steps * (i + 1) / settings.evaluations) for i in range(settings.evaluations)}
    with tqdm(order_of(len(train), settings, seed), desc=label, leave=False) as bar:
        for step, rows in enumerate(bar):
            start = processor_seconds()
            states, input_ids, attention_mask, labels = batch_of([train[i] for i in rows], cache, pad)
            system.train()
            loss = caption_loss(system.logits(states, input_ids, attention_mask), labels)
            update(optimizer, loss, at(step, settings.steps, settings.warmup))
            losses.append(loss.item())
            seconds += processor_seconds() - start
            if step + 1 in marks:
                curve.append((step + 1, sum(losses) / len(losses), held_out_loss(system, cache, test, pad)))
                bar.set_postfix(train=f"{curve[-1][1]:.2f}", held_out=f"{curve[-1][2]:.2f}")
                losses = []
    start = processor_seconds()
    answers = answer(system, cache, test, parts, settings.max_new_tokens)
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
    """Time that this process has computed, in all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@torch.inference_mode()
def held_out_loss(system: CaptionModel, cache: EncoderCache, captions: Sequence[Caption], pad: int) -> float:
    """Cross-entropy of all captions' tokens, in nats a token."""
    system.eval()
    total = tokens = 0.0
    for start in range(0, len(captions), 64):
        states, input_ids, attention_mask, labels = batch_of(captions[start : start + 64], cache, pad)
        total += caption_loss(system.logits(states, input_ids, attention_mask), labels, "sum").item()
        tokens += (labels != IGNORED).sum().item()
    return total / tokens


@torch.inference_mode()
def answer(
    system: CaptionModel, cache: EncoderCache, captions: Sequence[Caption], parts: Parts, max_new_tokens: int
) -> list[str]:
    """The system's own caption of each picture, found greedily."""
    system.eval()
    answers: list[str] = []
    for start in range(0, len(captions), 64):
        states = torch.stack([cache.states(caption.part)[0] for caption in captions[start : start + 64]])
        output = system.captions(states, max_new_tokens)
        answers += [text.strip() for text in parts.processor.batch_decode(output, skip_special_tokens=True)]
    return answers


# ---- All runs -------------------------------------------------------------------------------------------------------


def compare(
    systems: dict[str, Callable[[Parts], CaptionModel]],
    seeds: Sequence[int],
    parts: Parts,
    cache: EncoderCache,
    train: Sequence[Caption],
    test: Sequence[Caption],
    settings: Settings,
    results: Path,
) -> list[dict[str, Any]]:
    """
    Makes every run that `results` does not have yet, seed by seed, and appends it.

    Returns:
        the lines of the runs that were asked for, old and new.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    drop_cut_off_line(results)
    alike = conditions(parts, train, test, settings)
    done = {(line["system"], line["seed"]): line for line in read_results(results) if line["conditions"] == alike}
    wanted = [(name, seed) for seed in seeds for name in systems]
    for name, seed in wanted:
        if (name, seed) in done:
            continue
        began = time.time()
        figures = run_system(systems[name], parts, cache, train, test, settings, seed, f"{name}, seed {seed}")
        line = {"system": name, "seed": seed, **figures, "wall": time.time() - began, "conditions": alike}
        with open(results, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")
        done[name, seed] = line
        tqdm.write(f"{name}, seed {seed}: loss {line['loss']:.3f}, exact match {line['exact_match']:.3f}")
    return [done[key] for key in wanted]


def conditions(parts: Parts, train: Sequence[Caption], test: Sequence[Caption], settings: Settings) -> dict[str, Any]:
    """What two runs must share to be compared; JSON gives it back as it is."""
    texts = [[caption.path.rsplit("/", 2)[-2:], caption.text] for caption in (*train, *test)]
    return {**asdict(settings), "decoder": fingerprint(parts.decoder), "captions": fingerprint(nn.Module(), texts)}


def read_results(results: Path) -> list[dict[str, Any]]:
    """All runs of a file, none where it is not there."""
    return [json.loads(line) for line in results.read_text("utf-8").splitlines()] if results.is_file() else []


def drop_cut_off_line(results: Path) -> None:
    """Removes what an interruption left of a line, so that the next one starts where a line starts."""
    if not results.is_file():
        return
    whole = results.read_bytes()
    with open(results, "r+b") as lines:
        lines.truncate(whole.rfind(b"\n") + 1)
