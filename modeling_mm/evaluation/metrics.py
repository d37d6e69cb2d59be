# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""How a model answers, in batches, and how good its answers are."""

import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch

from ..utils.spelling import suggestion

# Of these less is better; of the other metrics more.
ERROR_RATES = ("wer", "cer", "spoken_wer")


# ---- Answering ------------------------------------------------------------------------------------------------------


def answer_prompts(
    model: Any,
    processor: Any,
    prompts: Sequence[list[dict[str, Any]]],
    batch_size: int = 64,
    max_new_tokens: int = 32,
    progress: bool = False,
) -> list[str]:
    """
    Answers conversations that end with the user's turn, greedily.

    Rows with pictures, with sounds, with both and with neither mix freely in a batch.

    Returns:
        one answer a prompt, in their order, without special tokens and surrounding white space.
    """
    from tqdm import tqdm  # only here, as the package does without it

    model.eval()
    answers: list[str] = []
    for start in tqdm(range(0, len(prompts), batch_size), desc="answering", disable=not progress):
        inputs = prompt_inputs(processor, prompts[start : start + batch_size])
        answers += answer_batch(model, processor, inputs, max_new_tokens)
    return answers


def prompt_inputs(processor: Any, prompts: Sequence[list[dict[str, Any]]]) -> Mapping[str, torch.Tensor]:
    """Conversations that end with the user's turn, as a batch to generate from: padded on the left."""
    return processor.apply_chat_template(
        list(prompts), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )


@torch.no_grad()
def answer_batch(
    model: Any, processor: Any, inputs: Mapping[str, torch.Tensor], max_new_tokens: int, **options: Any
) -> list[str]:
    """
    Answers one batch with the model's own generation config, without sampling.

    Args:
        model: in evaluation mode
        inputs: what `prompt_inputs` gives, or a collator's `prompt_batch`
        max_new_tokens: of an answer; fewer where the decoder has fewer positions left
        options: of `generate`, such as `num_beams`

    Returns:
        one answer a row, without special tokens and surrounding white space.
    """
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    length = inputs["input_ids"].shape[1]
    new_tokens = int(min(max_new_tokens, room_for_answer(model.config, length)))
    sequences = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, **options)
    return [answer.strip() for answer in processor.batch_decode(sequences[:, length:], skip_special_tokens=True)]


def room_for_answer(config: Any, length: int) -> float:
    """How many tokens a decoder with learned positions has room for after `length`; one where it has none left."""
    if getattr(config, "text_position_encoding", "learned") != "learned":
        return math.inf
    return max(1, config.get_text_config(decoder=True).max_position_embeddings - length)


# ---- Scoring --------------------------------------------------------------------------------------------------------


def score(name: str, answers: Sequence[str], truths: Sequence[str]) -> float:
    """
    One figure for all answers together.

    | name          | what it is                                                                  | range    | better |
    |---------------|-----------------------------------------------------------------------------|----------|--------|
    | `exact_match` | share of answers that equal the truth but for surrounding white space       | 0 to 1   | high   |
    | `accuracy`    | another name of `exact_match`, for answers that are classes                 | 0 to 1   | high   |
    | `wer`         | wrong, missing and added words, by words of the truths (jiwer)              | 0 up     | low    |
    | `cer`         | the same by characters, as Chinese needs it (jiwer)                         | 0 up     | low    |
    | `spoken_wer`  | `wer` without case and punctuation, which are not heard                     | 0 up     | low    |
    | `last_word`   | share of answers with the truth's last word: yes or no after a reason       | 0 to 1   | high   |
    | `bleu`        | BLEU of the corpus, tokens as in WMT's 13a (sacrebleu)                      | 0 to 100 | high   |
    | `chrf`        | chrF of the corpus, which suits languages without spaces too (sacrebleu)    | 0 to 100 | high   |

    Case and punctuation count as they are, unless it says otherwise.

    Raises:
        ValueError: for an unknown name, with the nearest known one; for no answers; for other numbers of answers than
            of truths.
        ImportError: where the library that computes it is not installed.
    """
    check_metrics([name])
    if len(answers) != len(truths) or not answers:
        raise ValueError(
            f"{name} compares each answer with its truth, and needs at least one; got {len(answers)} answers and "
            f"{len(truths)} truths."
        )
    return float(METRICS[name](list(answers), list(truths)))


def check_metrics(names: Iterable[str]) -> None:
    """
    Raises:
        ValueError: for a metric that `score` does not know, with the nearest that it knows.
    """
    for name in names:
        if name not in METRICS:
            hint = suggestion(str(name), METRICS)
            raise ValueError(f"There is no metric {name!r}.{hint} Known: {', '.join(METRICS)}.")


def exact_match(answers: list[str], truths: list[str]) -> float:
    equal = (answer.strip() == truth.strip() for answer, truth in zip(answers, truths, strict=True))
    return sum(equal) / len(answers)


def word_error_rate(answers: list[str], truths: list[str]) -> float:
    return library("jiwer", "wer").wer(truths, answers)


def character_error_rate(answers: list[str], truths: list[str]) -> float:
    return library("jiwer", "cer").cer(truths, answers)


def spoken_word_error_rate(answers: list[str], truths: list[str]) -> float:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    normalize = BasicTextNormalizer()
    pairs = [(normalize(answer), normalize(truth)) for answer, truth in zip(answers, truths, strict=True)]
    heard = [(answer, truth) for answer, truth in pairs if truth.strip()]
    return word_error_rate([answer for answer, _ in heard], [truth for _, truth in heard])


def last_word(answers: list[str], truths: list[str]) -> float:
    def end(text: str) -> str:
        return text.split()[-1] if text.split() else ""

    return exact_match([end(answer) for answer in answers], [end(truth) for truth in truths])


def bleu(answers: list[str], truths: list[str]) -> float:
    return library("sacrebleu", "bleu").corpus_bleu(answers, [truths]).score


def chrf(answers: list[str], truths: list[str]) -> float:
    return library("sacrebleu", "chrf").corpus_chrf(answers, [truths]).score


def library(module: str, metric: str) -> ModuleType:
    """A library that only some metrics need, imported when one of them is computed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The metric {metric!r} is computed by {module}, which is not installed: pip install modeling_mm[train]"
        ) from error


METRICS: dict[str, Callable[[list[str], list[str]], float]] = {
    "exact_match": exact_match,
    "accuracy": exact_match,
    "wer": word_error_rate,
    "cer": character_error_rate,
    "spoken_wer": spoken_word_error_rate,
    "last_word": last_word,
    "bleu": bleu,
    "chrf": chrf,
}


# ---- Counting by kinds of questions ---------------------------------------------------------------------------------


def exact_counts(kinds: Iterable[str], answers: Iterable[str], truths: Iterable[str]) -> dict[str, tuple[int, int]]:
    """For each kind of question, in the order in which they come: how many were answered exactly, of how many."""
    counts: dict[str, tuple[int, int]] = {}
    for kind, answer, truth in zip(kinds, answers, truths, strict=True):
        right, total = counts.get(kind, (0, 0))
        counts[kind] = (right + (answer == truth), total + 1)
    return counts


def add_up(counts: Iterable[tuple[int, int]]) -> tuple[int, int]:
    """Right answers and questions of all kinds together."""
    counts = list(counts)
    return sum(right for right, _ in counts), sum(total for _, total in counts)
