# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Metrics of boxes: COCO's average precision by faster-coco-eval, and referring accuracy."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

from ..boxes import BOX, ImageObject
from ..data.coco import coco_annotation
from .libraries import library

ANY_LABEL = "object"
# COCO's: small is below 32x32 pixels, large from 96x96 on; at most 100 boxes of an image count.
MOST_BOXES = (1, 10, 100)


@dataclass(frozen=True)
class DetectionFigures:
    """
    Average precision of boxes, from 0 to 1; None where no object of that size is there to be found.

    Args:
        ap: mean over the intersections over union (IoU) 0.5 to 0.95 and over the labels.
        ap50: at IoU 0.5.
        small, medium, large: `ap` of objects below 32x32 pixels, below 96x96, and from there on, by their area.
        images, objects: how many were measured.
    """

    ap: float | None
    ap50: float | None
    small: float | None
    medium: float | None
    large: float | None
    images: int
    objects: int


def detection_figures(
    predictions: Sequence[Sequence[ImageObject]],
    truths: Sequence[Sequence[ImageObject]],
    ignore_labels: bool = False,
) -> DetectionFigures:
    """
    Measure boxes against the truth, image by image.

    The order of boxes of equal scores decides their precision, so that scores should be real. Only labels of the
    truths count, as in COCO; a box of another label costs nothing. Boxes in crowds count neither way.

    Args:
        predictions: boxes with scores, for each image; a box without one has the score 1.
        truths: boxes of each image, crowds among them.
        ignore_labels: measure the places alone, as of things whose names were never learned.

    Raises:
        ValueError: for points, and if there is not one truth for each prediction, or no object at all.
        ImportError: if faster-coco-eval is not installed.
    """
    if len(predictions) != len(truths):
        raise ValueError(
            f"{len(predictions)} predictions were given for {len(truths)} truths. Give one for each image."
        )
    if not any(not each.is_crowd for objects in truths for each in objects):
        raise ValueError("The truths have no objects, so that there is nothing to find.")
    for where, images in (("prediction", predictions), ("truth", truths)):
        for number, objects in enumerate(images):
            if points := [each for each in objects if each.kind != BOX]:
                raise ValueError(f"Image {number}: its {where} has the point {points[0]}; only boxes have an IoU.")
    if ignore_labels:
        predictions, truths = (
            [[replace(each, label=ANY_LABEL) for each in objects] for objects in images]
            for images in (predictions, truths)
        )
    evaluator = library("faster_coco_eval", "ap", "detection")
    labels = {each.label for objects in truths for each in objects}
    ids = {label: number for number, label in enumerate(sorted(labels), 1)}
    with redirect_stdout(StringIO()):
        truth = evaluator.COCO(truth_dataset(truths, ids))
        found = prediction_list(predictions, ids)
        run = evaluator.COCOeval_faster(
            truth, truth.loadRes(found) if found else empty(evaluator, truths, ids), "bbox"
        )
        run.params.maxDets = list(MOST_BOXES)
        run.evaluate()
        run.accumulate()
        run.summarize()
    values = [None if value < 0 else float(value) for value in run.stats[:6]]
    ap, ap50, _, small, medium, large = values
    count = sum(not each.is_crowd for objects in truths for each in objects)
    return DetectionFigures(ap, ap50, small, medium, large, len(truths), count)


def truth_dataset(truths: Sequence[Sequence[ImageObject]], ids: dict[str, int]) -> dict[str, Any]:
    """Return truths in COCO's form. Ids count from 1: an annotation 0 counts as none."""
    annotations: list[dict[str, Any]] = []
    for image, objects in enumerate(truths, 1):
        for each in objects:
            annotations.append({"id": len(annotations) + 1, **coco_annotation(each, image, ids[each.label])})
    images = [{"id": number} for number in range(1, len(truths) + 1)]
    categories = [{"id": number, "name": label} for label, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def prediction_list(predictions: Sequence[Sequence[ImageObject]], ids: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {**coco_annotation(each, image, ids[each.label]), "score": 1.0 if each.score is None else each.score}
        for image, objects in enumerate(predictions, 1)
        for each in objects
        if each.label in ids
    ]


def empty(evaluator: Any, truths: Sequence[Sequence[ImageObject]], ids: dict[str, int]) -> Any:
    """Return a set without boxes, which `loadRes` does not take."""
    return evaluator.COCO({**truth_dataset(truths, ids), "annotations": []})


def iou(one: ImageObject, other: ImageObject) -> float:
    """Return the intersection over union of two boxes."""
    width = min(one.place[2], other.place[2]) - max(one.place[0], other.place[0])
    height = min(one.place[3], other.place[3]) - max(one.place[1], other.place[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / (one.box_area + other.box_area - common)


def referring_accuracy(
    predictions: Sequence[Sequence[ImageObject]], truths: Sequence[ImageObject], least_iou: float = 0.5
) -> float:
    """
    Return the share of prompts whose box was found: the likeliest box of the answer has at least this IoU.

    Args:
        predictions: boxes of each answer, whose labels do not count; an answer without a box is wrong.
        truths: the box that each prompt asks for.

    Raises:
        ValueError: if there is not one truth for each answer, or none at all.

    Example:
        >>> box = ImageObject("apple", (0.0, 0.0, 10.0, 10.0))
        >>> referring_accuracy([[box], []], [box, box])
        0.5
    """
    if len(predictions) != len(truths) or not truths:
        raise ValueError(
            f"Referring accuracy compares each answer with its truth and needs at least one, got {len(predictions)} "
            f"answers and {len(truths)} truths."
        )
    right = 0
    for objects, truth in zip(predictions, truths, strict=True):
        boxes = [each for each in objects if each.kind == BOX]
        best = max(boxes, key=lambda each: 1.0 if each.score is None else each.score, default=None)
        right += best is not None and iou(best, truth) >= least_iou
    return right / len(truths)
