# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Answers in evaluation: the rows of each process, and the figures of all."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset

from ..data.chat_row import ChatRow, to_row
from ..evaluation.metrics import score
from ..utils.spelling import suggestion


@dataclass(frozen=True)
class AnsweredRow:
    """A row of a dataset, by its number, with the model's answer and the truth."""

    row: int
    task: str | None
    answer: str
    truth: str


def check_can_answer(model: Any, processor: Any) -> None:
    """Raise a ValueError if a processor that writes prompts, or a model that generates, is missing."""
    if not hasattr(processor, "apply_chat_template") or not hasattr(processor, "batch_decode"):
        raise ValueError(
            "predict_with_generate needs the processor, to write prompts and to read answers: pass "
            f"processing_class=processor to MMTrainer (got {type(processor).__name__})."
        )
    if not hasattr(model, "can_generate") or not model.can_generate():
        raise ValueError(
            f"predict_with_generate needs a model that generates, such as MMForConditionalGeneration, but "
            f"{type(model).__name__} does not. Set predict_with_generate=False."
        )


def check_best_metric(args: Any, given: Iterable[str] | None) -> None:
    """
    Check before training that evaluation gives the metric that chooses the best state.

    Args:
        given: metrics beside the loss and those of answers; None if they are unknown

    Raises:
        ValueError: if it does not, with the nearest name.
    """
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    if not name or given is None or args.eval_strategy == "no":
        return
    answered = args.metrics if args.predict_with_generate else ()
    known = ["loss", *given, *answered, "runtime", "samples_per_second", "steps_per_second"]
    # Metrics of one task, and of one of several evaluation sets, end with the name of one.
    if name not in known and not name.endswith(tuple(f"_{each}" for each in known)):
        raise ValueError(
            f"metric_for_best_model: evaluation gives no {name!r}.{suggestion(name, known)} It gives "
            f"{', '.join(known[:-3])}."
        )


def as_chat(item: Any, number: int) -> ChatRow:
    """Return a row of an evaluation set as a chat, or raise a ValueError with its number."""
    if not isinstance(item, ChatRow) and not (isinstance(item, Mapping) and {"messages", "prompt"} & item.keys()):
        found = f"a row with {', '.join(map(str, item))}" if isinstance(item, Mapping) else type(item).__name__
        raise ValueError(
            "predict_with_generate answers the prompts of chats, so the evaluation set must hold chats: a ChatDataset "
            f"(see load_chats), or rows with `messages`. Row {number} is {found}, which does not separate prompt and "
            "answer. Pass the chats with ChatCollator, or set predict_with_generate=False."
        )
    return to_row(item)


def is_numbered(dataset: Any) -> bool:
    """Return if a dataset has rows at random access. A stream inherits a `__getitem__` that only raises."""
    return hasattr(dataset, "__getitem__") and isinstance(dataset, Sized) and not isinstance(dataset, IterableDataset)


def share_of(dataset: Any, process: int, processes: int) -> Iterator[tuple[int, Any]]:
    """
    Yield the rows of one process, with their numbers.

    Every process gets equally many, as sharded weights need it; the last row fills up and may occur more than once.
    """
    numbered = is_numbered(dataset)
    for start, group in enumerate(in_groups(range(len(dataset)) if numbered else dataset, processes)):
        place = min(process, len(group) - 1)
        yield start * processes + place, dataset[group[place]] if numbered else group[place]


def in_groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of `size` items, the last of the rest."""
    iterator = iter(items)
    return iter(lambda: list(islice(iterator, size)), [])


def score_answers(answers: Sequence[AnsweredRow], metrics: Iterable[str], prefix: str) -> dict[str, float]:
    """Return `{prefix}_{metric}` of all answers, and `{prefix}_{task}_{metric}` of those of each task."""
    groups: dict[str, list[AnsweredRow]] = {"": list(answers)}
    for answer in answers:
        if answer.task is not None:
            groups.setdefault(f"{answer.task}_", []).append(answer)
    return {
        f"{prefix}_{task}{metric}": score(metric, [row.answer for row in rows], [row.truth for row in rows])
        for metric in metrics
        for task, rows in groups.items()
    }
