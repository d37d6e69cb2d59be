"""Boxes and points: as text and back, checked, and following what happens to their image."""

import math
import random
import re

import numpy as np
import pytest
from PIL import Image, ImageOps

from modeling_mm.boxes import (
    NOTHING,
    ImageObject,
    bins_to_place,
    cropped,
    follow,
    mirrored,
    parse_objects,
    place_to_bins,
    read_objects,
    resized,
    write_objects,
    write_place,
)

SIZE = (200, 100)
APPLE = ImageObject("apple", (20.0, 10.0, 60.0, 50.0))


def box(*place, label="apple", **fields) -> dict:
    return {"label": label, "box": list(place), **fields}


# ---- Text -----------------------------------------------------------------------------------------------------------


def test_a_box_is_left_top_right_bottom_rounded_down():
    assert write_place((20.0, 10.0, 60.1, 50.09), SIZE) == "<loc_100><loc_100><loc_300><loc_500>"
    assert write_place((0.0, 0.0, 200.0, 100.0), SIZE) == "<loc_0><loc_0><loc_999><loc_999>"
    assert write_place((199.9, 0.05), SIZE) == "<loc_999><loc_0>"
    # Exact at the edges of bins, where dividing by the size of a bin, as Florence-2's code does, gives 199.
    assert place_to_bins((7.0, 0.0), (35, 1)) == [200, 0]


@pytest.mark.parametrize("size", [(1, 1), (17, 4000), (640, 480), (999, 1001)])
def test_places_of_bins_have_these_bins(size):
    draw = random.Random(1)
    for _ in range(300):
        x, y = (sorted(draw.choices(range(1000), k=2)) for _ in range(2))
        drawn = [x[0], y[0], x[1], y[1]] if draw.random() < 0.7 else [x[0], y[0], x[0], y[0]]
        place = bins_to_place(drawn, size)
        assert place_to_bins(place, size) == drawn and place_to_bins(bins_to_place(drawn[:2], size), size) == drawn[:2]
        assert place[0] < place[2] and place[1] < place[3], "a box has an area"
        assert all(abs(each - (b + 0.5) * size[n % 2] / 1000) < size[n % 2] / 3999 for n, (each, b) in
                   enumerate(zip(place, drawn, strict=True)))  # fmt: skip


def test_objects_stand_from_left_to_right_and_share_a_label():
    objects = [
        ImageObject("pear", (100.0, 0.0, 150.0, 50.0)),
        ImageObject("apple", (20.0, 10.0, 60.0, 50.0)),
        ImageObject("apple", (20.0, 0.0, 60.0, 50.0)),
        ImageObject("crowd", (0.0, 0.0, 60.0, 50.0), is_crowd=True),
        ImageObject("apple", (160.0, 0.0, 170.0, 50.0)),
    ]
    text = write_objects(objects, SIZE)
    assert text == (
        "apple<loc_100><loc_0><loc_300><loc_500><loc_100><loc_100><loc_300><loc_500>"
        "pear<loc_500><loc_0><loc_750><loc_500>apple<loc_800><loc_0><loc_850><loc_500>"
    )
    parsed = parse_objects(text, SIZE)
    assert [each.label for each in parsed.objects] == ["apple", "apple", "pear", "apple"] and not parsed.problems
    assert write_objects(parsed.objects, SIZE) == text
    assert write_objects(reversed(objects), SIZE) == text, "the order of the annotations means nothing"
    assert write_objects([APPLE, APPLE], SIZE).count("apple") == 1, "equal places are no error"


def test_nothing_is_said_and_read():
    assert write_objects([], SIZE) == NOTHING
    assert parse_objects(NOTHING, SIZE) == parse_objects("", SIZE)
    assert parse_objects(NOTHING, SIZE).objects == [] and parse_objects(NOTHING, SIZE).problems == []


def test_points_and_boxes_are_told_apart_by_their_number():
    objects = [ImageObject("eye", (20.0, 10.0)), ImageObject("eye", (40.0, 10.0)), ImageObject("eye", (50, 1, 60, 9))]
    text = write_objects(objects, SIZE)
    assert text == "eye<loc_100><loc_100>eye<loc_200><loc_100>eye<loc_250><loc_10><loc_300><loc_90>"
    assert [each.kind for each in parse_objects(text, SIZE).objects] == ["point", "point", "box"]
    points = parse_objects("eye<loc_1><loc_2><loc_3><loc_4>", SIZE, ("point",)).objects
    assert [each.kind for each in points] == ["point", "point"]


def test_places_without_a_label():
    """As an answer to "Find the apple", where the label is known."""
    text = write_objects([ImageObject("", (20, 10, 60, 50)), ImageObject("", (80, 10, 90, 50))], SIZE)
    assert text.count("<loc_") == 8 and [each.label for each in parse_objects(text, SIZE).objects] == ["", ""]
    for other in (ImageObject("", (80.0, 10.0)), APPLE):
        with pytest.raises(ValueError, match=r"without a label at \(120, 10.* would be read as a part of"):
            write_objects([other, ImageObject("", (120, 10, 130, 50))], SIZE)


@pytest.mark.parametrize("text", ["apple <loc_1><loc_2><loc_3><loc_4> ; ", "\napple<loc_1><loc_2><loc_3><loc_4>,"])
def test_separators_of_other_models_are_read(text):
    parsed = parse_objects(text, SIZE)
    assert [each.label for each in parsed.objects] == ["apple"] and parsed.problems == []


# ---- Bad answers ----------------------------------------------------------------------------------------------------

GOOD = "fig<loc_1><loc_2><loc_3><loc_4>"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("pear<loc_5>", r"'pear' has 1 location tokens of the 4 of a box: the answer is cut"),
        ("pear<loc_5><loc_6><loc_7>", r"'pear' has 3 location tokens .* cut"),
        ("pear<loc_5><loc_6><loc_7><loc_8><loc_9", r"'<loc_9' has no location tokens"),
        ("pear", r"'pear' has no location tokens"),
        ("pear<loc_5><loc_6><loc_7><loc_1000>", r"unknown bin \(1000\); bins are 0 to 999"),
        ("pear<loc_5><loc_6><loc_7><loc_>", r"unknown bin \(no number\)"),
        ("pear<loc_5><loc_6><loc_7><loc_-3>", r"unknown bin \(no number\)"),
        ("pear<loc_5><loc_6><loc_7><loc_٣>", r"unknown bin \(no number\)"),
        ("pear<loc_5><loc_6><loc_4><loc_8>", r"'pear' has a box that is upside down, of the bins 5, 6, 4, 8"),
        ("pear<loc_5><loc_6><loc_7><loc_5>", r"upside down"),
    ],
)
def test_what_can_be_read_is_returned_and_the_rest_reported(text, problem):
    parsed = parse_objects(GOOD + text, SIZE, ("box",))
    assert parsed.objects[0] == ImageObject("fig", bins_to_place([1, 2, 3, 4], SIZE))
    assert len(parsed.objects) == 1 + ("<loc_8><loc_9" in text)
    assert len(parsed.problems) == 1 and re.search(problem, parsed.problems[0]), parsed.problems
    if text.endswith(">"):
        assert parse_objects(text + GOOD, SIZE, ("box",)) == parsed


def test_a_box_cut_in_half_is_a_point_only_where_one_may_stand():
    assert parse_objects("pear<loc_5><loc_6>", SIZE).objects[0].kind == "point"
    parsed = parse_objects("pear<loc_5><loc_6>", SIZE, ("box",))
    assert parsed.objects == [] and parsed.problems == [
        "'pear' has 2 location tokens of the 4 of a box: the answer is cut"
    ]


# ---- Bad annotations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (box(20, 10, 260, 50), r"object 1 \('apple'\): \(20.0, 10.0, 260.0, 50.0\) lies outside its image of 200x100"),
        (box(-2, 10, 60, 50), r"lies outside its image"),
        (box(20, 10, 60, 101.5), r"lies outside its image"),
        (box(60, 10, 20, 50), r"upside down or has no area; expected left < right"),
        (box(20, 50, 60, 10), r"upside down"),
        (box(20, 10, 20, 50), r"has no area"),
        (box(200, 10, 200.9, 50), r"has no area"),
        (box(math.nan, 10, 60, 50), r"not all finite"),
        (box(20, 10, math.inf, 50), r"not all finite"),
        (box(20, 10, 60), r"a box has 4 coordinates, got 3"),
        (box("a", 10, 60, 50), r"its box must be numbers"),
        ({"label": "apple", "box": 3}, r"its box must be numbers, got 3"),
        ({"label": "apple"}, r"object 1: expected a dict with `label` and either `box` or `point`"),
        ({"label": "apple", "box": [1, 2, 3, 4], "point": [1, 2]}, r"either `box` or `point`"),
        ({"label": 7, "box": [1, 2, 3, 4]}, r"expected a `label` that is text, got 7"),
        ({"label": "apple", "point": [1, 200]}, r"lies outside"),
        (box(1, 2, 3, 4, label="a<loc_3>"), r"must not hold location tokens"),
        (box(1, 2, 3, 4, label="apple,"), r"end with a space, a comma"),
        (box(1, 2, 3, 4, label=NOTHING), r"nor be 'nothing'"),
        (box(1, 2, 3, 4, score=math.nan), r"its score must be from 0 to 1, got nan"),
        (box(1, 2, 3, 4, area=-1), r"its area must be from 0 to inf"),
        ("apple", r"expected a dict"),
    ],
)
def test_a_bad_object_is_named(value, message):
    with pytest.raises(ValueError, match=message):
        read_objects([box(1, 2, 3, 4), value], SIZE)


def test_rounding_of_annotations_is_clipped():
    (found,) = read_objects([box(-0.4, 10, 200.01, 100.5)], SIZE)
    assert found.place == (0.0, 10.0, 200.0, 100.0)


def test_an_object_is_as_its_dict_says():
    values = [box(1.0, 2.0, 3.0, 4.0, score=0.5, area=2.5), {"label": "eye", "point": [1.0, 2.0]},
              box(1.0, 2.0, 3.0, 4.0, is_crowd=True)]  # fmt: skip
    assert [each.to_dict() for each in read_objects(values, SIZE)] == values
    assert read_objects(read_objects(values, SIZE), SIZE) == read_objects(values, SIZE)


# ---- Changed images -------------------------------------------------------------------------------------------------


def marked(place, size=SIZE) -> Image.Image:
    """A black image with a white box."""
    pixels = np.zeros((size[1], size[0]), np.uint8)
    left, top, right, bottom = map(int, place)
    pixels[top:bottom, left:right] = 255
    return Image.fromarray(pixels)


def found(image: Image.Image) -> tuple[float, ...]:
    """The box of what is white, by its edges at half of the brightness."""
    pixels = np.asarray(image) > 127
    x, y = np.flatnonzero(pixels.any(0)), np.flatnonzero(pixels.any(1))
    return x[0], y[0], x[-1] + 1, y[-1] + 1


def test_a_box_is_where_the_pixels_are():
    """After each change and after all of them, to half a pixel."""
    size, part = (80, 60), (5.5, 3.25, 70.5, 60.0)
    image = marked((20, 10, 60, 50))
    steps = [
        (lambda each: each.resize(size, Image.Resampling.BICUBIC, box=part), cropped(part, size)),
        (ImageOps.mirror, mirrored(size)),
        (lambda each: each.resize((333, 111), Image.Resampling.BICUBIC), resized(size, (333, 111))),
    ]
    total = resized(SIZE, SIZE)
    for change, view in steps:
        image, total = change(image), total.then(view)
        (moved,) = follow([APPLE], total)
        # A pixel of the smallest image is up to 333 / 80 of the last.
        assert np.allclose(moved.place, found(image), atol=0.5 * max(image.width / 80, 1)), (moved.place, found(image))
        assert total.size == image.size


def test_changes_are_exact():
    assert follow([APPLE], mirrored(SIZE))[0].place == (140.0, 10.0, 180.0, 50.0)
    assert follow(follow([APPLE], mirrored(SIZE)), mirrored(SIZE)) == [APPLE]
    assert follow([APPLE], cropped((0, 0, 100, 50), SIZE))[0].place == (40.0, 20.0, 120.0, 100.0)
    assert write_objects(follow([APPLE], resized(SIZE, (17, 400))), (17, 400)) == write_objects([APPLE], SIZE)
    assert follow([ImageObject("eye", (20.0, 10.0))], mirrored(SIZE))[0].place == (180.0, 10.0)


def test_objects_are_clipped_and_left_out_where_little_is_seen():
    def kept(left: float) -> list[ImageObject]:
        return follow([APPLE], cropped((left, 0, left + 100, 100), (100, 100)))

    assert kept(40)[0].place == (0.0, 10.0, 20.0, 50.0)
    assert len(kept(50)) == 1, "a fourth is seen"
    assert kept(50.1) == [] and kept(60) == [] and kept(90) == []
    eyes = [ImageObject("eye", (20.0, 10.0)), ImageObject("eye", (80.0, 10.0))]
    assert [each.place for each in follow(eyes, cropped((40, 0, 140, 100), (100, 100)))] == [(40.0, 10.0)]
    (part,) = follow([ImageObject("apple", APPLE.place, area=1000.0)], cropped((40, 0, 140, 100), (200, 200)))
    assert part.area == 1000.0 / 2 * 4
