# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Answers of a model to the prompts of chats, in batches."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..data.chat_row import ChatRow, Message
from ..utils.progress import show_progress

Inputs = Mapping[str, torch.Tensor]


@torch.no_grad()
def generate_answers(
    model: Any,
    processor: Any,
    prompts: Sequence[ChatRow | list[Message]],
    batch_size: int = 64,
    max_new_tokens: int = 32,
    prompt_batch: Callable[[Sequence[Any]], Inputs] | None = None,
    progress: str | None = None,
    **options: Any,
) -> list[str]:
    """
    Answer prompts without sampling, with the model's generation config. Rows with any media share a batch.

    Args:
        model: a model that generates. It is put into evaluation mode.
        processor: processor of the model.
        prompts: examples, of which the prompt is answered, or conversations that end with the user's turn.
        batch_size: prompts in a batch. Those of similar length share one, so that padding is small.
        max_new_tokens: tokens of an answer; fewer if the decoder has fewer positions left.
        prompt_batch: function from prompts to the inputs of `generate`, padded on the left, such as
            `CachedCollator.prompt_batch`. By default the processor makes the inputs.
        progress: text beside a progress bar; none without it.
        options: options of `generate`, such as `num_beams`.

    Returns:
        One answer for each prompt, in their order, without special tokens and surrounding white space.

    Example:
        >>> generate_answers(model, processor, [[{"role": "user", "content": "What is a cat?"}]])
        ['an animal']
    """
    model.eval()
    order = sorted(range(len(prompts)), key=lambda number: prompt_size(prompts[number]))
    answers = [""] * len(prompts)
    with show_progress(total=len(prompts), desc=progress, disable=progress is None) as bar:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            chosen = [prompts[number] for number in numbers]
            inputs = prompt_inputs(processor, chosen) if prompt_batch is None else prompt_batch(chosen)
            inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
            length = inputs["input_ids"].shape[1]
            limit = int(min(max_new_tokens, max(1, free_positions(model.config, length))))
            sequences = model.generate(**inputs, max_new_tokens=limit, do_sample=False, **options)
            texts = processor.batch_decode(sequences[:, length:], skip_special_tokens=True)
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = text.strip()
            bar.update(len(numbers))
    return answers


def prompt_inputs(processor: Any, prompts: Sequence[ChatRow | list[Message]]) -> Inputs:
    """Return prompts as a batch to generate from, padded on the left."""
    return processor.apply_chat_template(
        [messages_of(prompt) for prompt in prompts],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )


def messages_of(prompt: ChatRow | list[Message]) -> list[Message]:
    return prompt.prompt if isinstance(prompt, ChatRow) else prompt


def prompt_size(prompt: ChatRow | list[Message]) -> tuple[tuple[str, ...], int]:
    """Return the types of a prompt's media and the characters of its text, to sort by."""
    contents = [turn["content"] for turn in messages_of(prompt)]
    parts = [part for content in contents if not isinstance(content, str) for part in content]
    texts = [content for content in contents if isinstance(content, str)]
    texts += [part["text"] for part in parts if part.get("type") == "text"]
    return tuple(sorted(part["type"] for part in parts if part.get("type") != "text")), sum(map(len, texts))


def free_positions(config: Any, length: int) -> float:
    """Return the number of positions after `length` tokens: infinite unless positions are learned."""
    if getattr(config, "text_position_encoding", "learned") != "learned":
        return math.inf
    return max(0, config.get_text_config(decoder=True).max_position_embeddings - length)
