"""Texts with places follow the crops and flips of their images, exactly, or are refused."""

import copy

import numpy as np
import pytest
from PIL import Image

from modeling_mm.boxes import parse_objects, read_objects, write_objects, write_place
from modeling_mm.data import ChatRow, to_row
from modeling_mm.training import Augmentation, EncoderCache, ImageAugmentation

SIZE = (120, 90)
BOXES = {"apple": (10, 20, 40, 60), "pear": (70, 5, 110, 45)}
CHANNELS = {"apple": 0, "pear": 1}


def scene() -> Image.Image:
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    for name, (left, top, right, bottom) in BOXES.items():
        pixels[top:bottom, left:right, CHANNELS[name]] = 255
    return Image.fromarray(pixels)


def located(names=("apple", "pear"), **more) -> dict:
    objects = [{"label": name, "box": list(map(float, BOXES[name]))} for name in names]
    text = write_objects(read_objects(objects, SIZE), SIZE)
    return {"type": "text", "text": text, "objects": objects, **more}


def row(answer, question="What is where?", images=1, name="a") -> ChatRow:
    question = {"type": "text", "text": question} if isinstance(question, str) else question
    user = [*({"type": "image", "image": scene()} for _ in range(images)), question]
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": [answer]}]
    return to_row({"messages": messages, "task": "detect", "id": name})


def answer_of(changed: ChatRow) -> dict:
    return changed.messages[1]["content"][0]


def pixels_of(changed: ChatRow, number: int = 0) -> np.ndarray:
    return np.asarray(changed.messages[0]["content"][number]["image"])


def seen(pixels: np.ndarray, name: str) -> tuple[int, ...]:
    found = pixels[..., CHANNELS[name]] > 127
    x, y = np.flatnonzero(found.any(0)), np.flatnonzero(found.any(1))
    return x[0], y[0], x[-1] + 1, y[-1] + 1


AUGMENTATION = Augmentation(ImageAugmentation(crop=0.6, flip=0.5))


def test_boxes_are_where_the_pixels_are_in_every_draw():
    lost = 0
    for draw in range(60):
        changed = AUGMENTATION.change_media(row(located(), name=str(draw)), None)
        answer, pixels = answer_of(changed), pixels_of(changed)
        by_name = {each["label"]: each["box"] for each in answer["objects"]}
        for name in BOXES:
            if name in by_name:
                assert np.allclose(by_name[name], seen(pixels, name), atol=2.0), (draw, name)
            else:
                lost += 1
        objects = read_objects(answer["objects"], SIZE)
        assert answer["text"] == write_objects(objects, SIZE)
        assert [each.label for each in parse_objects(answer["text"], SIZE).objects] == [
            each.label for each in sorted(objects, key=lambda each: each.place)
        ], "from left to right again, also where it is mirrored"
        assert set(changed.messages[0]["content"][0]) == {"type", "image"}
    assert 0 < lost < 40, "what a crop cuts away is not named any more"


def test_a_flip_is_exact():
    flip = Augmentation(ImageAugmentation(flip=1.0))
    answer = answer_of(flip.change_media(row(located()), None))
    assert [each["box"] for each in answer["objects"]] == [[80.0, 20.0, 110.0, 60.0], [10.0, 5.0, 50.0, 45.0]]
    assert answer["text"].startswith("pear") and located()["text"].startswith("apple")


def test_an_answer_of_which_nothing_is_left_says_so():
    texts = {
        answer_of(AUGMENTATION.change_media(row(located(["pear"]), name=str(i)), None))["text"] for i in range(90)
    }
    assert "nothing" in texts and len(texts) > 50


def test_pixels_are_drawn_as_without_places():
    plain = row({"type": "text", "text": "pear"})
    with_places = copy.deepcopy(plain)
    with_places.messages[1]["content"][0] |= {"text": located()["text"], "objects": located()["objects"]}
    image = ImageAugmentation(crop=0.5, color=0.3)
    draws = [image.apply(scene(), np.random.default_rng(5))[0] for _ in range(2)]
    assert np.array_equal(*map(np.asarray, draws))
    generator = np.random.default_rng(5)
    part = image.change({"type": "image", "image": scene()}, generator, False, None)
    assert np.array_equal(np.asarray(part["image"]), np.asarray(draws[0]))


def test_colors_and_rows_without_places_are_left_as_they_are():
    plain = row({"type": "text", "text": f"at{write_place((1, 2, 3, 4), SIZE)}"})
    changed = Augmentation(ImageAugmentation(color=0.5)).change_media(plain, None)
    assert answer_of(changed) == answer_of(plain)
    assert answer_of(Augmentation(ImageAugmentation(color=0.5)).change_media(row(located()), None)) == located()
    assert Augmentation().change_media(row(located()), None).messages[1] == row(located()).messages[1]


def test_each_text_follows_its_image():
    flip = Augmentation(ImageAugmentation(crop=0.6))
    changed = flip.change_media(row(located(["apple"], image_index=1), images=2), None)
    boxes = [each["box"] for each in answer_of(changed)["objects"]]
    assert np.allclose(boxes[0], seen(pixels_of(changed, 1), "apple"), atol=2.0)
    assert not np.allclose(boxes[0], seen(pixels_of(changed, 0), "apple"), atol=2.0)


def test_what_a_prompt_points_at_stays_in_the_image():
    question = located(["pear"])
    for draw in range(30):
        changed = AUGMENTATION.change_media(row({"type": "text", "text": "a pear"}, question, name=str(draw)), None)
        asked = changed.messages[0]["content"][1]
        assert len(asked["objects"]) == 1 and asked["objects"][0]["box"][2] - asked["objects"][0]["box"][0] == 40


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"type": "text", "text": located()["text"]}, r"has location tokens, but no `objects` beside it"),
        (
            {**located(), "text": located(["pear"])["text"]},
            r"does not have the places of its `objects`.*120x90 pixels",
        ),
        ({**located(), "objects": [{"label": "apple", "box": [0, 0, 500, 10]}]}, r"lies outside its image"),
        (located(image_index=1), r"is about image 1, but the conversation has 1"),
        (located(image_index=-1), r"is about image -1"),
    ],
)
def test_texts_that_cannot_follow_are_refused(answer, message):
    with pytest.raises(ValueError, match=message):
        AUGMENTATION.change_media(row(answer), None)


def test_cached_views_of_places_are_refused():
    """The cache has their states, cropped elsewhere than the text says."""
    cache = EncoderCache.__new__(EncoderCache)
    cache.views, cache.stores = {"image": 2, "audio": 1}, {}
    for answer in (located(), {"type": "text", "text": located()["text"]}):
        with pytest.raises(ValueError, match=r"Example 'a' has the places of objects.*Set `image_views` to 1"):
            cache.fill([row(answer)])
