"""COCO's annotation files: read into chats, written back, and refused where they would teach something wrong."""

import copy
import json

import pytest
from PIL import Image

from modeling_mm.boxes import ImageObject
from modeling_mm.data import load_chats, read_coco, rows_to_coco, to_coco, write_coco
from modeling_mm.utils import write_lines

WHOLE = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 100, "height": 50},
        {"id": 9, "file_name": "b.png", "width": 20, "height": 20},
    ],
    "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 5, 20, 10], "area": 120.5, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [50, 5, 20, 10.004], "iscrowd": 0},
        {"id": 3, "image_id": 7, "category_id": 3, "bbox": [0, 0, 100, 50], "area": 900, "iscrowd": 1},
        {"id": 4, "image_id": 7, "category_id": 3, "bbox": [40, 0, 20, 25]},
    ],
}


@pytest.fixture
def folder(tmp_path):
    for name, size in (("a.png", (100, 50)), ("b.png", (20, 20))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    return tmp_path


def annotations(folder, **changes):
    """The file with changed fields of annotation 2, or of what is named."""
    whole = copy.deepcopy(WHOLE)
    for key, value in changes.items():
        target, _, name = key.rpartition("__")
        {"": whole["annotations"][1], "image": whole["images"][0]}[target][name] = value
    path = folder / "instances.json"
    path.write_text(json.dumps(whole))
    return path


def test_images_become_questions(folder):
    rows = read_coco(annotations(folder), folder)
    assert [(row.task, row.id) for row in rows] == [
        ("detect", "detect/7"),
        ("find", "find/7/cat"),
        ("detect", "detect/9"),
    ]
    both, cats, none = (row.answer for row in rows)
    assert both == (
        "cat<loc_100><loc_100><loc_300><loc_300>dog<loc_400><loc_0><loc_600><loc_500>"
        "cat<loc_500><loc_100><loc_700><loc_300>"
    )
    assert cats == "cat<loc_100><loc_100><loc_300><loc_300><loc_500><loc_100><loc_700><loc_300>"
    assert none == "nothing"
    assert [row.messages[0]["content"][1]["text"] for row in rows] == [
        "What is where?",
        "Find the cat.",
        "What is where?",
    ]
    assert rows[0].messages[0]["content"][0]["path"] == str(folder / "a.png")
    crowds = [each for each in rows[0].messages[1]["content"][0]["objects"] if each.get("is_crowd")]
    assert len(crowds) == 1, "a crowd is known, is not in the text, and is not asked for"
    assert [row.task for row in read_coco(annotations(folder), folder, ["find"])] == ["find"]


def test_chats_on_disk_are_the_same(folder):
    rows = read_coco(annotations(folder), folder)
    write_lines(folder / "train.jsonl", [{"messages": r.messages, "task": r.task, "id": r.id} for r in rows])
    for streaming in (False, True):
        assert list(load_chats(folder / "train.jsonl", streaming=streaming)) == rows


def test_what_is_written_is_read_again(folder):
    rows = read_coco(annotations(folder), folder)
    whole = rows_to_coco(rows, folder)
    assert [each["id"] for each in whole["annotations"]] == [1, 2, 3, 4], "0 would count as none"
    assert [each["area"] for each in whole["annotations"]] == pytest.approx([120.5, 200.08, 900, 500])
    assert [each["iscrowd"] for each in whole["annotations"]] == [0, 0, 1, 0]
    assert whole["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert whole["images"][1] == {"id": 2, "file_name": "b.png", "width": 20, "height": 20}
    (folder / "again.json").write_text(json.dumps(whole))
    again = read_coco(folder / "again.json", folder)
    assert [row.answer for row in again] == [row.answer for row in rows]
    write_coco(folder / "third.json", [("a.png", (100, 50), [ImageObject("cat", (1.0, 2.0, 3.0, 4.0))])])
    (written,) = json.loads((folder / "third.json").read_text())["annotations"]
    assert written == {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 2, 2], "area": 4, "iscrowd": 0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [50, 5, 0, 10]}, r"Annotation 2, `bbox` \[50, 5, 0, 10\]: object 0 \('cat'\): .*has no area"),
        ({"bbox": [50, 5, -20, 10]}, r"Annotation 2.* upside down"),
        ({"bbox": [90, 5, 20, 10]}, r"Annotation 2.* lies outside its image of 100x50"),
        ({"bbox": [90, 5, float("nan"), 10]}, r"Annotation 2.* not all finite"),
        ({"bbox": [90, 5, 20]}, r"Annotation 2: its `bbox` must be left, top, width and height"),
        ({"bbox": None}, r"Annotation 2 has no `bbox`"),
        ({"category_id": 8}, r"Annotation 2 has the category 8, which is not among"),
        ({"image_id": 8}, r"Annotation 2 belongs to image 8, which is not among"),
        ({"area": -3}, r"Annotation 2.* area must be from 0"),
        ({"image__width": 200}, r"Image 7: .*a.png has 100x50 pixels, but its annotations are of 200x50"),
        ({"image__file_name": "c.png"}, r"Image 7: .*c.png does not exist"),
        ({"image__id": 9}, r"Image 9 is listed twice"),
    ],
)
def test_bad_annotations_are_named(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        read_coco(annotations(folder, **changes), folder)


def test_other_files_and_tasks_are_refused(folder):
    (folder / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list.json has no list `images`. Is it an annotation file of COCO\?"):
        read_coco(folder / "list.json", folder)
    with pytest.raises(ValueError, match=r"Unknown task segment; known are detect, find"):
        read_coco(annotations(folder), folder, ["segment"])
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"Image 7: .*a.png cannot be read"):
        read_coco(annotations(folder), folder)


def test_a_turned_photograph_has_its_upright_size(folder):
    turned = Image.new("RGB", (50, 100), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "a.png", exif=exif)
    assert len(read_coco(annotations(folder), folder)) == 3


def test_what_cannot_be_written_is_refused(folder):
    with pytest.raises(ValueError, match=r"a.png: COCO's annotations are boxes, but it has a point"):
        to_coco([("a.png", (10, 10), [ImageObject("cat", (1.0, 2.0))])])
    with pytest.raises(ValueError, match=r"a.png: object 0 \('cat'\): .*lies outside"):
        to_coco([("a.png", (10, 10), [ImageObject("cat", (1.0, 2.0, 30.0, 40.0))])])
    with pytest.raises(ValueError, match=r"1 file names are given twice, such as a.png"):
        to_coco([("a.png", (10, 10), []), ("a.png", (10, 10), [])])
    (row, *_) = read_coco(annotations(folder), folder)
    row.messages[1]["content"][0].pop("objects")
    with pytest.raises(ValueError, match=r"Example 'detect/7' is not of one image file with the `objects`"):
        rows_to_coco([row])
