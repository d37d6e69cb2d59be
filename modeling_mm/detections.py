# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Detections in the forms of the ecosystem: from generated tokens with scores, for torchvision, supervision, pipelines.

The score of an object is the geometric mean of the probabilities of its tokens: those of its label, which boxes that
share a label have in common, and those of its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import AddedToken
from transformers.utils import logging

from .boxes import AROUND_LABELS, BOX, POINT, ImageObject, ParsedAnswer, Run, Size, objects_of_runs
from .configuration_mm import LOCATION_BINS, LOCATION_TOKENS, first_location_id

logger = logging.get_logger(__name__)

# Shape legend: B rows, L tokens of a prompt, T generated tokens, V vocabulary, N objects.


def add_location_tokens(tokenizer: Any) -> int:
    """
    Give a tokenizer the location tokens `<loc_0>` to `<loc_999>`, in place, and return the id of the first.

    They are no special tokens: people may write them in a prompt, and decoding keeps them.

    Raises:
        ValueError: if the tokenizer has some of them already, in another order.
    """
    if first_location_id(tokenizer.get_vocab()) is None:
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in LOCATION_TOKENS])
    first = first_location_id(tokenizer.get_vocab())
    assert first is not None
    return first


# ---- Generated tokens -----------------------------------------------------------------------------------------------


def generated_tokens(outputs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Return generated tokens (B, T) without the prompt, and their probabilities (B, T), if they are known.

    Args:
        outputs: what `generate` returns with `return_dict_in_generate=True`, with `output_scores=True` or
            `output_logits=True` for probabilities: those of the model itself if there are logits, else those that it
            chose by; or a tensor (B, T) of generated tokens alone.

    Raises:
        ValueError: for outputs without scores or logits, in which prompt and answer are one.
    """
    if isinstance(outputs, torch.Tensor):
        return outputs, None
    beams = getattr(outputs, "beam_indices", None)
    logits = outputs.logits if getattr(outputs, "logits", None) is not None else outputs.scores
    if logits is None:
        raise ValueError(
            "The outputs of `generate` have neither scores nor logits. Pass output_scores=True or output_logits=True, "
            "or give the generated tokens alone: outputs.sequences[:, inputs['input_ids'].shape[1]:]."
        )
    steps = len(logits) if beams is None else min(len(logits), beams.shape[1])
    tokens = outputs.sequences[:, outputs.sequences.shape[1] - steps :]
    chosen = []
    for step in range(steps):
        rows = torch.arange(len(tokens), device=tokens.device) if beams is None else beams[:, step].clamp(min=0)
        probabilities = logits[step].float().softmax(-1)[rows]  # (B, V); of beams, their rows of (B * beams, V)
        chosen.append(probabilities.gather(-1, tokens[:, step : step + 1]))
    return tokens, torch.cat(chosen, -1) if chosen else tokens.float()


def runs_of_tokens(tokenizer: Any, ids: Sequence[int], probabilities: Sequence[float] | None) -> list[Run]:
    """Return the labels and location tokens of an answer (T,), up to its first special token."""
    first = first_location_id(tokenizer.get_vocab())
    if first is None:
        raise ValueError(
            f"The tokenizer lacks {LOCATION_TOKENS[0]}, so that nothing in an answer is a place. Call "
            "`add_location_tokens` of processor and model, and train it to write them."
        )
    special = set(tokenizer.all_special_ids)
    runs, label, bins = [], list[int](), list[int]()  # places of tokens in the answer

    def close() -> None:
        text = tokenizer.decode([ids[i] for i in label]).strip(AROUND_LABELS)
        if bins or text:
            chances = [tuple(probabilities[i] for i in each) if probabilities else () for each in (label, bins)]
            runs.append(Run(text, [ids[i] - first for i in bins], *chances))
        label.clear()
        bins.clear()

    for place, token in enumerate(ids):
        if token in special:
            break
        is_location = first <= token < first + LOCATION_BINS
        if bins and not is_location:
            close()
        (bins if is_location else label).append(place)
    close()
    return runs


def parse_tokens(
    tokenizer: Any,
    ids: Sequence[int],
    size: Size,
    probabilities: Sequence[float] | None = None,
    kinds: Sequence[str] = (BOX, POINT),
) -> ParsedAnswer:
    """
    Read the objects of generated tokens (T,), with their scores if `probabilities` are given.

    Returns:
        The objects, the likeliest first, and what could not be read, as `parse_objects` reports it; also an answer
        without an end, as it was cut by `max_new_tokens`.
    """
    parsed = objects_of_runs(runs_of_tokens(tokenizer, ids, probabilities), size, kinds)
    problems = list(parsed.problems)
    if not set(tokenizer.all_special_ids).intersection(ids):
        problems.append("the answer has no end: it was cut, raise `max_new_tokens`")
    return ParsedAnswer(sorted(parsed.objects, key=lambda each: -(each.score or 0.0)), problems)


# ---- Forms of others ------------------------------------------------------------------------------------------------


def to_torchvision(objects: Sequence[ImageObject], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """
    Return boxes as torchvision's detectors do, and as torchmetrics takes them.

    Args:
        names: of the classes, in order; a label's class is its index there.

    Returns:
        `boxes` (N, 4) as left, top, right, bottom; `labels` (N,); `scores` (N,), 1 where there is none.

    Raises:
        ValueError: for points, and for a label that is not among `names`.
    """
    for each in objects:
        if each.kind != BOX or each.label not in names:
            what = f"not among the {len(names)} names" if each.kind == BOX else "a point, not a box"
            raise ValueError(f"{each.label!r} at {each.place} is {what}. Leave it out.")
    return {
        "boxes": torch.tensor([each.place for each in objects], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([names.index(each.label) for each in objects], dtype=torch.int64),
        "scores": torch.tensor([score_of(each) for each in objects], dtype=torch.float32),
    }


def to_supervision(objects: Sequence[ImageObject], names: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of supervision's class: `sv.Detections(**to_supervision(objects, names))`."""
    arrays = {name: tensor.numpy() for name, tensor in to_torchvision(objects, names).items()}
    labels = torch.tensor([]).numpy().astype(str) if not objects else [each.label for each in objects]
    return {
        "xyxy": arrays["boxes"],
        "confidence": arrays["scores"],
        "class_id": arrays["labels"],
        "data": {"class_name": labels},
    }


def to_pipeline(
    objects: Sequence[ImageObject], threshold: float = 0.0, top_k: int | None = None
) -> list[dict[str, Any]]:
    """
    Return boxes as the pipelines "object-detection" and "zero-shot-object-detection" do: whole pixels, best first.

    Example:
        >>> to_pipeline([ImageObject("apple", (20.0, 10.0, 60.9, 50.0), 0.75)])
        [{'score': 0.75, 'label': 'apple', 'box': {'xmin': 20, 'ymin': 10, 'xmax': 60, 'ymax': 50}}]
    """
    found = sorted((e for e in objects if e.kind == BOX and score_of(e) >= threshold), key=lambda e: -score_of(e))
    sides = ("xmin", "ymin", "xmax", "ymax")
    return [
        {
            "score": score_of(each),
            "label": each.label,
            "box": dict(zip(sides, map(int, each.place), strict=True)),
        }
        for each in found[:top_k]
    ]


def score_of(item: ImageObject) -> float:
    return 1.0 if item.score is None else item.score


class DetectionPostprocessing:
    """Methods of [`MMProcessor`] that read places, under the names of transformers."""

    tokenizer: Any

    def add_location_tokens(self) -> int:
        """
        Give the tokenizer the tokens of boxes and points, in place; the model's method of this name is its twin.

        ```python
        processor.add_location_tokens()
        model.add_location_tokens(processor)
        ```

        Returns:
            the id of `<loc_0>`; the others follow.
        """
        return add_location_tokens(self.tokenizer)

    def parse_answers(
        self, outputs: Any, target_sizes: Sequence[Size] | torch.Tensor, kinds: Sequence[str] = (BOX, POINT)
    ) -> list[ParsedAnswer]:
        """
        Read the objects of each answer.

        Args:
            outputs: of `generate`, see [`detections.generated_tokens`].
            target_sizes: height and width of each image, as transformers' methods take them.
            kinds: of places that the answers may have.

        Raises:
            ValueError: if there is not one size for each answer.
        """
        tokens, probabilities = generated_tokens(outputs)
        sizes = target_sizes.tolist() if isinstance(target_sizes, torch.Tensor) else list(target_sizes)
        if len(sizes) != len(tokens):
            raise ValueError(f"{len(sizes)} target_sizes were given for {len(tokens)} answers. Give one for each.")
        chances = [None] * len(tokens) if probabilities is None else probabilities.tolist()
        answers = []
        for row, (ids, known, (height, width)) in enumerate(zip(tokens.tolist(), chances, sizes, strict=True)):
            answers.append(parse_tokens(self.tokenizer, ids, (int(width), int(height)), known, kinds))
            for problem in answers[-1].problems:
                logger.warning(f"Answer {row}: {problem}.")
        return answers

    def post_process_grounded_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.0,
        target_sizes: Sequence[Size] | torch.Tensor = (),
        label: str | Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """
        Turn answers into boxes with their names.

        Args:
            outputs: of `generate` with `return_dict_in_generate=True, output_scores=True`.
            threshold: the lowest score of a box that is kept.
            target_sizes: height and width of each image.
            label: name of boxes without one, for all answers or for each; such as what the prompt asked for.

        Returns:
            For each image `scores` (N,), `boxes` (N, 4) in pixels, `text_labels`, and `problems`: what could not be
            read, which is also logged.
        """
        labels = [label] * len(target_sizes) if label is None or isinstance(label, str) else list(label)
        found = []
        for answer, name in zip(self.parse_answers(outputs, target_sizes, (BOX,)), labels, strict=True):
            objects = [replace(each, label=each.label or name or "") for each in answer.objects]
            objects = [each for each in objects if score_of(each) >= threshold]
            names = [each.label for each in objects]
            tensors = to_torchvision(objects, names)
            del tensors["labels"]
            found.append({**tensors, "text_labels": names, "problems": answer.problems})
        return found

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.0,
        target_sizes: Sequence[Size] | torch.Tensor = (),
        names: Sequence[str] | Mapping[int, str] = (),
    ) -> list[dict[str, Any]]:
        """
        Turn answers into boxes of known classes.

        Args:
            outputs, threshold, target_sizes: see [`~MMProcessor.post_process_grounded_object_detection`].
            names: of the classes, in order, or a model's `id2label`.

        Returns:
            For each image `scores` (N,), `labels` (N,), `boxes` (N, 4) in pixels, and `problems`, among them boxes of
            other names, which are left out.
        """
        ids = {name: number for number, name in (names.items() if isinstance(names, Mapping) else enumerate(names))}
        found = []
        for each in self.post_process_grounded_object_detection(outputs, threshold, target_sizes):
            kept = [i for i, name in enumerate(each["text_labels"]) if name in ids]
            others = sorted(set(each["text_labels"]) - set(ids))
            found.append(
                {
                    "scores": each["scores"][kept],
                    "labels": torch.tensor([ids[each["text_labels"][i]] for i in kept], dtype=torch.int64),
                    "boxes": each["boxes"][kept],
                    "problems": [*each["problems"], *(f"{name!r} is not among the names" for name in others)],
                }
            )
        return found
