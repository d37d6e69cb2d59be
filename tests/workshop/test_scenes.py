"""Scenes: boxes are those of what is seen, splits hold their things alone, the same seed gives the same."""

import json
import random
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from modeling_mm.boxes import parse_objects, read_objects
from modeling_mm.data import load_chats, read_coco
from scripts.workshop import composing
from scripts.workshop.composing import Thing, compose, cut_out
from scripts.workshop.corpus import UnusableError, read_description, read_rows
from scripts.workshop.scenes import build_scenes, draw_thing, things_of
from scripts.workshop.sources import NamedImage

COLORS = {"apple": (255, 0, 0), "pear": (0, 255, 0), "fig": (0, 0, 255), "plum": (255, 0, 255)}
SETTINGS = {**read_description("scenes").settings, "sides": [90, 120], "clutter": [0, 0], "things": [3, 5]}


def write_discs(folder) -> list[NamedImage]:
    """Write discs of one color, of which the last is by an unseen hand."""
    found = []
    for name, color in COLORS.items():
        image = Image.new("RGBA", (50, 40))
        ImageDraw.Draw(image).ellipse((5, 5, 44, 34), fill=color)
        image.save(folder / f"{name}.png")
        hand = "unseen" if name == "plum" else "seen"
        found.append(NamedImage(folder / f"{name}.png", hand, "food", {"en": f"A {name}."}, name))
    return found


@pytest.fixture
def images(tmp_path) -> list[NamedImage]:
    """Discs of one color, a picture that is not cut out, and one with a long name."""
    found = write_discs(tmp_path)
    Image.new("RGB", (50, 40), "white").save(tmp_path / "whole.png")
    found.append(NamedImage(tmp_path / "whole.png", "seen", "food", {"en": "whole"}, "whole"))
    found.append(NamedImage(tmp_path / "fig.png", "seen", "food", {"en": "a fig that has a long name"}, "long"))
    found.append(NamedImage(tmp_path / "fig.png", "seen", "flags", {"en": "flag"}, "flag"))
    return found


def builder_of(images: list[NamedImage]) -> SimpleNamespace:
    def split(image: NamedImage) -> str:
        return "test_hand" if image.hand == "unseen" else "validation" if image.key == "fig" else "train"

    return SimpleNamespace(
        images=images,
        image_split=split,
        concept=lambda image: f"en:{image.key}",
        description=SimpleNamespace(settings={"unseen_hand": "unseen"}),
    )


def scene_of(images, seed: int, **settings) -> composing.Scene:
    things = [Thing(each.path, each.key, each.key, each.hand) for each in images[:4]]
    rng = random.Random(seed)
    return compose(rng, partial(draw_thing, rng, things, 0.2), {**SETTINGS, **settings})


def test_boxes_are_those_of_the_pixels_that_are_seen(images):
    """Of things that have their color for themselves, to the soft edge of a pixel."""
    checked = 0
    for seed in range(30):
        scene = scene_of(images, seed)
        labels = [each["label"] for each in scene.objects]
        pixels = np.asarray(scene.image).astype(int)
        for each in scene.objects:
            if labels.count(each["label"]) == 1:
                color = np.array(COLORS[each["label"]])
                seen = (abs(pixels - color).sum(-1) < 60) & (np.ptp(pixels, axis=-1) > 200)
                left, top, right, bottom = each["box"]
                inside = np.zeros_like(seen)
                inside[top:bottom, left:right] = True
                if (seen & ~inside).any():
                    continue  # a background of this color
                assert np.allclose(composing.box_of(seen & inside), each["box"], atol=2), (seed, each)
                assert abs(seen.sum() - each["area"]) < 0.2 * each["area"] + 30
                checked += 1
        assert read_objects(scene.objects, scene.image.size)
    assert checked > 40


def test_half_of_each_thing_is_seen_and_some_overlap(images):
    crowded = {"things": [6, 6], "scale": [0.4, 0.55]}
    overlapping = 0
    for seed in range(15):
        objects = scene_of(images, seed, **crowded).objects
        whole = scene_of(images, seed, **crowded, least_visible=1.0).objects
        assert len(objects) > 1 and len(whole) >= 1
        boxes = [each["box"] for each in objects]
        overlapping += any(
            a is not b and min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
            for a in boxes
            for b in boxes
        )
    assert overlapping > 5


def test_the_same_seed_gives_the_same_scene(images):
    one, other, next_one = scene_of(images, 1), scene_of(images, 1), scene_of(images, 2)
    assert one.objects == other.objects and one.image.tobytes() == other.image.tobytes()
    assert one.image.tobytes() != next_one.image.tobytes()


def test_what_is_not_cut_out_is_no_thing(images, tmp_path):
    with pytest.raises(UnusableError, match=r"not cut out"):
        cut_out(tmp_path / "whole.png")
    Image.new("RGBA", (5, 5)).save(tmp_path / "empty.png")
    with pytest.raises(UnusableError, match=r"not cut out"):
        cut_out(tmp_path / "empty.png")
    assert cut_out(images[0].path).size == (40, 30), "without its margin"
    found = things_of(builder_of(images), "train", ["food"], 4)
    assert [(each.label, each.hand) for each in found] == [("apple", "seen"), ("pear", "seen")]


def test_a_built_corpus_is_split_chats_and_annotations(images, tmp_path):
    folder = tmp_path / "scenes"
    counts = {"train": 12, "validation": 3, "test_concepts": 0, "test_hand": 2}
    description = read_description("scenes")
    description = replace(description, settings={**SETTINGS, "counts": counts})
    assert dict(build_scenes(builder_of(images), folder, description)) == counts
    names = {split: {e["label"] for row in read_rows(folder, split) for e in row["objects"]} for split in counts}
    assert names == {"train": {"apple", "pear"}, "validation": {"fig"}, "test_concepts": set(), "test_hand": {"plum"}}
    detect = load_chats(folder / "chats" / "train" / "detect.jsonl")
    assert len(detect) == 12
    for row, image in zip(detect, read_rows(folder, "train"), strict=True):
        size = (image["width"], image["height"])
        with Image.open(row.messages[0]["content"][0]["path"]) as opened:
            assert opened.size == size
        parsed = parse_objects(row.answer, size)
        assert len(parsed.objects) == len(image["objects"]) and not parsed.problems
    find = load_chats(folder / "chats" / "train" / "find.jsonl")
    assert "nothing" in {row.answer for row in find}, "things that are not there are asked for too"
    assert {row.messages[0]["content"][1]["text"] for row in find} == {"Find the apple.", "Find the pear."}
    coco = read_coco(folder / "instances_train.json", folder)
    assert [row.answer for row in coco if row.task == "detect"] == [row.answer for row in detect]
    assert json.loads((folder / "instances_train.json").read_text())["annotations"][0]["id"] == 1
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert dict(build_scenes(builder_of(images), folder, description)) == counts
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
