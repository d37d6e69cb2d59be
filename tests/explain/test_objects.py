"""Boxes, points and names of an answer, drawn where they are."""

from PIL import Image, ImageColor

from modeling_mm.boxes import ImageObject
from modeling_mm.explain import draw_objects
from modeling_mm.explain.objects import COLORS, LEAST_SIDE


def test_points_and_objects_without_names():
    objects = [ImageObject("", (100.0, 100.0)), ImageObject("a", (10.0, 10.0, 390.0, 390.0))]
    image = draw_objects(Image.new("L", (400, 400)), objects)
    assert image.size == (400, 400)
    assert image.getpixel((100, 100)) == ImageColor.getrgb(COLORS[0])
    assert image.getpixel((390, 200)) == ImageColor.getrgb(COLORS[1]) and image.getpixel((200, 200)) == (0, 0, 0)


def test_a_small_image_is_enlarged_with_its_boxes():
    image = draw_objects(Image.new("RGB", (40, 20)), [ImageObject("", (10.0, 5.0, 30.0, 15.0))])
    assert image.size == (LEAST_SIDE, LEAST_SIDE // 2)
    assert image.getpixel((10 * 8, 80)) == ImageColor.getrgb(COLORS[0]) and image.getpixel((20 * 8, 80)) == (0, 0, 0)
