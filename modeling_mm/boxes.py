# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Boxes and points of an image as text and back, and how they follow a crop, a flip and a resize. Pure functions.

A place is a box `(left, top, right, bottom)` or a point `(x, y)` in pixels, where the image reaches from 0 to its
width and its height. As text it is one location token `<loc_0>` to `<loc_999>` for each coordinate, in that order, x
before y, as Florence-2 writes them:

    apple<loc_51><loc_333><loc_409><loc_870>

The bin of a coordinate is `floor(coordinate * 1000 / side)`, at most 999, and a bin stands for its middle,
`(bin + 0.5) * side / 1000`. Bins do not depend on the size that an image is resized to.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .configuration_mm import LOCATION_BINS

Place = tuple[float, ...]  # (left, top, right, bottom) or (x, y), in pixels
Size = tuple[int, int]  # width and height

BOX, POINT = "box", "point"
COORDINATES = {BOX: 4, POINT: 2}
LOCATION = re.compile(r"<loc_([^<>]*)>")
# What an answer says where there is nothing of the kind that was looked for.
NOTHING = "nothing"
FIND_PROMPT, POINT_PROMPT, DETECT_PROMPT = "Find the {label}.", "Point at the {label}.", "What is where?"
# Annotations are rounded: a place may reach so many pixels beyond its image, and is clipped.
SLACK = 1.0
# An object of which a crop leaves a smaller share is not looked for any more.
LEAST_VISIBLE = 0.25
# Separators that other models write between objects.
AROUND_LABELS = " \t\r\n,;"


@dataclass(frozen=True)
class ImageObject:
    """
    A thing at a place of an image.

    Args:
        label: its name; empty for a place alone.
        place: its box or its point, in pixels.
        score: of a detection, from 0 to 1.
        is_crowd: whether the box is a region of several that nobody took apart, as in COCO; it is never written.
        area: pixels that the thing itself fills; by default those of the box.
    """

    label: str
    place: Place
    score: float | None = None
    is_crowd: bool = False
    area: float | None = None

    @property
    def kind(self) -> str:
        return BOX if len(self.place) == COORDINATES[BOX] else POINT

    @property
    def box_area(self) -> float:
        """Area of the box in pixels; 0 for a point."""
        return (self.place[2] - self.place[0]) * (self.place[3] - self.place[1]) if self.kind == BOX else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the object as a chat example holds it, without the fields that have their defaults."""
        given = {"score": self.score, "is_crowd": self.is_crowd or None, "area": self.area}
        extra = {name: value for name, value in given.items() if value is not None}
        return {"label": self.label, self.kind: list(self.place), **extra}


def read_objects(values: Iterable[Any], size: Size) -> list[ImageObject]:
    """
    Return the objects of a chat example, checked.

    Args:
        values: `ImageObject`s, or dicts with `label` and `box` or `point`, and optionally `score`, `is_crowd`, `area`.
        size: width and height of their image.

    Raises:
        ValueError: for a place outside the image, upside down, without area, or not finite; with the object.
    """
    return [read_object(value, size, f"object {number}") for number, value in enumerate(values)]


def read_object(value: Any, size: Size, name: str) -> ImageObject:
    """Return an object, checked and clipped to its image; `name` is for messages."""
    if not isinstance(value, ImageObject):
        if not isinstance(value, Mapping) or (value.get(BOX) is None) == (value.get(POINT) is None):
            raise ValueError(f"{name}: expected a dict with `label` and either `box` or `point`, got {value!r:.80}")
        kind = POINT if value.get(BOX) is None else BOX
        label = value.get("label", "")
        if not isinstance(label, str):
            raise ValueError(f"{name}: expected a `label` that is text, got {label!r:.80}")
        try:
            place = tuple(map(float, value[kind]))
        except (TypeError, ValueError):
            raise ValueError(f"{name} ({label!r}): its {kind} must be numbers, got {value[kind]!r:.80}") from None
        if len(place) != COORDINATES[kind]:
            raise ValueError(
                f"{name} ({label!r}): a {kind} has {COORDINATES[kind]} coordinates, got {len(place)}: {place}"
            )
        extra = {key: value[key] for key in ("score", "area") if value.get(key) is not None}
        for key, highest in (("score", 1.0), ("area", math.inf)):
            if not isinstance(given := extra.get(key, 0), (int, float)) or not 0 <= given <= highest:
                raise ValueError(f"{name} ({label!r}): its {key} must be from 0 to {highest:g}, got {given!r:.80}")
        value = ImageObject(label, place, is_crowd=bool(value.get("is_crowd")), **extra)
    check_label(value.label, f"{name} ({value.label!r})")
    return replace(value, place=checked_place(value.place, size, f"{name} ({value.label!r})"))


def check_label(label: str, name: str) -> None:
    if LOCATION.search(label) or label.strip(AROUND_LABELS) != label or label == NOTHING:
        raise ValueError(
            f"{name}: a label must not hold location tokens, begin or end with a space, a comma or a semicolon, nor "
            f"be {NOTHING!r}, as an answer with it could not be read back. Rename it."
        )


def checked_place(place: Place, size: Size, name: str) -> Place:
    """
    Return a place clipped to its image, which it may leave by less than a pixel.

    Raises:
        ValueError: with `name`, for another place that is not finite, outside, upside down or without area.
    """
    if not all(math.isfinite(value) for value in place):
        raise ValueError(f"{name}: the coordinates {place} are not all finite. Correct or leave out the object.")
    sides = [size[number % 2] for number in range(len(place))]
    if any(not -SLACK < value < side + SLACK for value, side in zip(place, sides, strict=True)):
        raise ValueError(
            f"{name}: {place} lies outside its image of {size[0]}x{size[1]} pixels. Coordinates are left, top, right, "
            "bottom (or x, y) in pixels; clip them, or give the size of the image that they are of."
        )
    clipped = tuple(min(max(value, 0.0), float(side)) for value, side in zip(place, sides, strict=True))
    if len(clipped) == COORDINATES[BOX] and not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        raise ValueError(
            f"{name}: the box {place} is upside down or has no area; expected left < right and top < bottom. Is it "
            "(left, top, width, height)?"
        )
    return clipped


# ---- Text -----------------------------------------------------------------------------------------------------------


def place_to_bins(place: Place, size: Size) -> list[int]:
    """Return the bin of each coordinate of a place."""
    bins = (math.floor(value * LOCATION_BINS / size[number % 2]) for number, value in enumerate(place))
    return [min(max(each, 0), LOCATION_BINS - 1) for each in bins]


def bins_to_place(bins: Sequence[int], size: Size) -> Place:
    """
    Return the place that bins stand for, which has the same bins.

    Two edges in one bin lie a quarter of a bin to both sides of its middle, so that every box has an area.
    """
    middles = [each + 0.5 for each in bins]
    if len(bins) == COORDINATES[BOX]:
        for axis in (0, 1):
            if bins[axis] == bins[axis + 2]:
                middles[axis], middles[axis + 2] = bins[axis] + 0.25, bins[axis] + 0.75
    return tuple(each * size[number % 2] / LOCATION_BINS for number, each in enumerate(middles))


def write_place(place: Place, size: Size) -> str:
    """Return the location tokens of a place, as a prompt may have them: `f"What is at {write_place(...)}?"`."""
    return "".join(f"<loc_{each}>" for each in place_to_bins(place, size))


def write_objects(objects: Iterable[ImageObject], size: Size) -> str:
    """
    Return the text of objects, from left to right and from top to bottom by their first corner.

    Boxes of one label in a row share it: `apple<loc_1>...<loc_4><loc_5>...<loc_8>`. Crowds are left out.

    Args:
        objects: checked, as `read_objects` returns them.
        size: width and height of their image.

    Returns:
        The text; `"nothing"` without objects.

    Example:
        >>> write_objects([ImageObject("apple", (20.0, 10.0, 60.0, 50.0))], (100, 100))
        'apple<loc_200><loc_100><loc_600><loc_500>'
    """
    shown = [each for each in objects if not each.is_crowd]
    parts: list[str] = []
    last = None
    for each in sorted(shown, key=lambda each: (place_to_bins(each.place, size), each.label)):
        is_shared = last is not None and last.kind == each.kind == BOX and last.label == each.label
        if last is not None and not each.label and not is_shared:
            raise ValueError(f"The object without a label at {each.place} would be read as a part of {last.label!r}.")
        parts += ["" if is_shared else each.label, write_place(each.place, size)]
        last = each
    return "".join(parts) or NOTHING


@dataclass(frozen=True)
class Run:
    """A label and the location tokens behind it, with the probability of each token, if they are known."""

    label: str
    bins: list[int]
    label_probabilities: tuple[float, ...] = ()
    bin_probabilities: tuple[float, ...] = ()


@dataclass(frozen=True)
class ParsedAnswer:
    """Objects of an answer, and a message for each part of it that says none."""

    objects: list[ImageObject]
    problems: list[str]


def parse_objects(text: str, size: Size, kinds: Sequence[str] = (BOX, POINT)) -> ParsedAnswer:
    """
    Read the objects in a text.

    What cannot be read is left out and reported: an unknown bin, an edge that is missing because the answer was cut,
    a box that is upside down, a label without a place.

    Args:
        size: width and height of the image, in whose pixels the places are.
        kinds: of the places; two tokens are a point where one may stand, and else half a box.

    Example:
        >>> parse_objects("apple<loc_200><loc_100><loc_600><loc_500>pear<loc_1>", (100, 100)).problems
        ["'pear' has 1 location tokens of the 4 of a box or 2 of a point: the answer is cut"]
    """
    runs, start = [], 0
    for found in re.finditer(rf"(?:{LOCATION.pattern})+", text):
        bins = [int(each) if re.fullmatch(r"[0-9]{1,9}", each) else -1 for each in LOCATION.findall(found[0])]
        runs.append(Run(text[start : found.start()].strip(AROUND_LABELS), bins))
        start = found.end()
    rest = text[start:].strip(AROUND_LABELS)
    return objects_of_runs([*runs, Run(rest, [])] if rest else runs, size, kinds)


def objects_of_runs(runs: Iterable[Run], size: Size, kinds: Sequence[str] = (BOX, POINT)) -> ParsedAnswer:
    """Return the objects of runs of location tokens, see [`parse_objects`]; scores where probabilities are known."""
    objects, problems = [], []
    for run in runs:
        if not run.bins and run.label not in ("", NOTHING):
            problems.append(f"{run.label!r:.80} has no location tokens")
        is_point = POINT in kinds and (len(run.bins) == COORDINATES[POINT] or BOX not in kinds)
        length = COORDINATES[POINT if is_point else BOX]
        for start in range(0, len(run.bins), length):
            part = slice(start, start + length)
            bins = run.bins[part]
            if (problem := problem_of(bins, length, kinds)) is not None:
                problems.append(f"{run.label!r:.80} {problem}")
                continue
            chosen = (*run.label_probabilities, *run.bin_probabilities[part])
            objects.append(ImageObject(run.label, bins_to_place(bins, size), geometric_mean(chosen)))
    return ParsedAnswer(objects, problems)


def problem_of(bins: Sequence[int], length: int, kinds: Sequence[str]) -> str | None:
    """Return what keeps bins from being a place, or None."""
    if unknown := [each for each in bins if not 0 <= each < LOCATION_BINS]:
        named = "no number" if unknown[0] < 0 else unknown[0]
        return f"has a location token of an unknown bin ({named}); bins are 0 to {LOCATION_BINS - 1}"
    if len(bins) < length:
        expected = " or ".join(f"{COORDINATES[kind]} of a {kind}" for kind in kinds)
        return f"has {len(bins)} location tokens of the {expected}: the answer is cut"
    if length == COORDINATES[BOX] and (bins[0] > bins[2] or bins[1] > bins[3]):
        return f"has a box that is upside down, of the bins {', '.join(map(str, bins))}"
    return None


def geometric_mean(probabilities: Sequence[float]) -> float | None:
    """Return the geometric mean of the probabilities of an object's tokens, or None if they are not known."""
    if not probabilities:
        return None
    if min(probabilities) <= 0:
        return 0.0
    return math.exp(sum(map(math.log, probabilities)) / len(probabilities))


# ---- Changed images -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageView:
    """
    Change of an image by axis: a coordinate becomes `scale * coordinate + shift`.

    Args:
        scale, shift: of x and of y; the scale of a mirrored axis is negative.
        size: width and height of the changed image.
    """

    scale: tuple[float, float]
    shift: tuple[float, float]
    size: Size

    def then(self, other: "ImageView") -> "ImageView":
        """Return this change followed by another."""
        pairs = list(zip(self.scale, self.shift, other.scale, other.shift, strict=True))
        scale = tuple(theirs * ours for ours, _, theirs, _ in pairs)
        shift = tuple(theirs * moved + further for _, moved, theirs, further in pairs)
        return ImageView((scale[0], scale[1]), (shift[0], shift[1]), other.size)

    def move(self, place: Place) -> Place:
        """Return where a place is in the changed image, or outside of it."""
        moved = [value * self.scale[n % 2] + self.shift[n % 2] for n, value in enumerate(place)]
        if len(moved) == COORDINATES[BOX]:
            (left, right), (top, bottom) = sorted(moved[::2]), sorted(moved[1::2])
            moved = [left, top, right, bottom]
        return tuple(moved)


def cropped(box: Place, size: Size) -> ImageView:
    """Return the change of an image whose part `box` is resized to `size`, as `Image.resize(size, box=box)` does."""
    scale = (size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1]))
    return ImageView(scale, (-box[0] * scale[0], -box[1] * scale[1]), size)


def resized(size: Size, new_size: Size) -> ImageView:
    """Return the change of an image that is resized as a whole."""
    return cropped((0, 0, *size), new_size)


def mirrored(size: Size) -> ImageView:
    """Return the change of an image whose left side becomes its right."""
    return ImageView((-1.0, 1.0), (float(size[0]), 0.0), size)


def follow(objects: Iterable[ImageObject], view: ImageView) -> list[ImageObject]:
    """
    Return the objects that a changed image shows, with their places in it.

    Boxes are clipped to the image. Objects of whose box less than a fourth is left, and points outside, are left out.
    """
    moved = (follow_object(each, view) for each in objects)
    return [each for each in moved if each is not None]


def follow_object(item: ImageObject, view: ImageView) -> ImageObject | None:
    width, height = view.size
    place = view.move(item.place)
    if item.kind == POINT:
        return replace(item, place=place) if 0 <= place[0] <= width and 0 <= place[1] <= height else None
    left, top, right, bottom = place
    kept = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    if kept[0] >= kept[2] or kept[1] >= kept[3]:
        return None
    visible = (kept[2] - kept[0]) * (kept[3] - kept[1]) / ((right - left) * (bottom - top))
    if visible < LEAST_VISIBLE:
        return None
    area = item.area and item.area * visible * abs(view.scale[0] * view.scale[1])
    return replace(item, place=kept, area=area)
