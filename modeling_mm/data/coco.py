# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
COCO's annotation files as chat examples, and located examples as annotation files.

```python
rows = read_coco("annotations/instances_train2017.json", "train2017")
write_lines("train.jsonl", [{"messages": row.messages, "task": row.task, "id": row.id} for row in rows])
```
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ..boxes import DETECT_PROMPT, FIND_PROMPT, ImageObject, Size, read_objects, write_objects
from ..chat import media_source
from ..images import DAMAGED_FILE_ERRORS
from ..utils.files import write_text
from .chat_row import ChatRow

DETECT, FIND = "detect", "find"
COCO_TASKS = (DETECT, FIND)


def read_coco(
    annotations: str | os.PathLike, images: str | os.PathLike, tasks: Sequence[str] = COCO_TASKS
) -> list[ChatRow]:
    """
    Return the images of a COCO annotation file as chat examples.

    Args:
        annotations: the JSON file, with `images`, `annotations` and `categories`.
        images: the folder that its file names start from.
        tasks: `detect` asks of each image what is where, `find` for each category in it; a category of which an image
            has a crowd is not asked for, as the crowd is not taken apart. Crowds are kept among the `objects` of an
            answer, for metrics, and are not in its text.

    Raises:
        ValueError: for a box outside its image, upside down or without area, an unknown image or category, an image
            of another size, and a missing field; with the id of the annotation or the image.
    """
    if unknown := set(tasks) - set(COCO_TASKS):
        raise ValueError(f"Unknown task {', '.join(sorted(unknown))}; known are {', '.join(COCO_TASKS)}.")
    whole = json.loads(Path(annotations).read_text(encoding="utf-8"))
    for key in ("images", "annotations", "categories"):
        if not isinstance(whole, Mapping) or not isinstance(whole.get(key), list):
            raise ValueError(f"{os.fspath(annotations)} has no list `{key}`. Is it an annotation file of COCO?")
    names = {field(each, "id", "A category"): str(field(each, "name", "A category")) for each in whole["categories"]}
    sizes = {}
    for each in whole["images"]:
        name = f"Image {each.get('id')}"
        if (number := field(each, "id", name)) in sizes:
            raise ValueError(f"{name} is listed twice. Give each image its own id.")
        sizes[number] = (int(field(each, "width", name)), int(field(each, "height", name)))
    objects: dict[Any, list[ImageObject]] = {number: [] for number in sizes}
    for each in whole["annotations"]:
        name = f"Annotation {each.get('id')}"
        number = field(each, "image_id", name)
        if number not in objects:
            raise ValueError(f"{name} belongs to image {number!r}, which is not among the images.")
        objects[number].append(read_annotation(each, name, names, sizes[number]))
    rows: list[ChatRow] = []
    for each in whole["images"]:
        path = Path(images) / str(field(each, "file_name", f"Image {each['id']}"))
        check_size(path, sizes[each["id"]], f"Image {each['id']}")
        rows += located_rows(path, each["id"], objects[each["id"]], sizes[each["id"]], tasks)
    return rows


def field(values: Mapping[str, Any], key: str, name: str) -> Any:
    if values.get(key) is None:
        raise ValueError(f"{name} has no `{key}`; it has {sorted(values)}.")
    return values[key]


def read_annotation(each: Mapping[str, Any], name: str, names: Mapping[Any, str], size: Size) -> ImageObject:
    """Return the object of an annotation, whose box is left, top, width and height."""
    category, given = field(each, "category_id", name), field(each, "bbox", name)
    if category not in names:
        raise ValueError(f"{name} has the category {category!r}, which is not among the categories.")
    try:
        left, top, width, height = map(float, given)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: its `bbox` must be left, top, width and height, got {given!r:.80}") from None
    value: dict[str, Any] = {"label": names[category], "box": [left, top, left + width, top + height]}
    value |= {"is_crowd": bool(each.get("iscrowd", 0)), "area": each.get("area")}
    try:
        return read_objects([value], size)[0]
    except ValueError as error:
        raise ValueError(f"{name}, `bbox` {given!r}: {error}") from error


def check_size(path: Path, size: Size, name: str) -> None:
    """Raise a `ValueError` for an image file that is missing or has another size, upright as it is shown."""
    if not path.is_file():
        raise ValueError(f"{name}: {path} does not exist. Pass the folder that the file names start from.")
    try:
        with Image.open(path) as image:
            # Only a rotation in the file's metadata makes decoding necessary.
            found = ImageOps.exif_transpose(image).size if image.getexif().get(0x0112, 1) > 4 else image.size
    except DAMAGED_FILE_ERRORS as error:
        raise ValueError(f"{name}: {path} cannot be read ({error})") from error
    if found != size:
        raise ValueError(
            f"{name}: {path} has {found[0]}x{found[1]} pixels, but its annotations are of {size[0]}x{size[1]}. Scale "
            "the boxes, or take the images that they were made on."
        )


def located_rows(
    path: str | os.PathLike, number: Any, objects: Iterable[Any], size: Size, tasks: Sequence[str] = COCO_TASKS
) -> Iterator[ChatRow]:
    """
    Yield the examples of an image.

    Args:
        path: of the image.
        number: a name or number of the image, for the ids of the examples.
        objects: in the image, as `read_objects` takes them.
        size: width and height of the image.
        tasks: see [`read_coco`].
    """
    objects = read_objects(objects, size)
    if DETECT in tasks:
        yield located_row(path, DETECT_PROMPT, objects, size, DETECT, f"{DETECT}/{number}")
    crowds = {each.label for each in objects if each.is_crowd}
    for label in sorted({each.label for each in objects} - crowds) if FIND in tasks else ():
        found = [each for each in objects if each.label == label]
        yield located_row(path, FIND_PROMPT.format(label=label), found, size, FIND, f"{FIND}/{number}/{label}")


def located_row(
    path: str | os.PathLike, question: str, objects: Sequence[ImageObject], size: Size, task: str, name: str
) -> ChatRow:
    """Return a question about an image whose answer is the places of objects."""
    answer = {
        "type": "text",
        "text": write_objects(objects, size),
        "objects": [each.to_dict() for each in objects],
    }
    content = [{"type": "image", "path": os.fspath(path)}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": [answer]}]
    return ChatRow(messages, task, name)


# ---- Writing --------------------------------------------------------------------------------------------------------


def to_coco(items: Iterable[tuple[str, Size, Sequence[ImageObject]]]) -> dict[str, Any]:
    """
    Return annotations in COCO's form.

    Ids count from 1, as evaluators take an annotation 0 for none, and every annotation has its `area`, without which
    evaluators by size take it for small.

    Args:
        items: file name, size and boxes of each image.

    Raises:
        ValueError: for points, boxes that are not of their image, and a file name twice; with the file name.
    """
    items = list(items)
    if twice := [name for name, count in Counter(name for name, _, _ in items).items() if count > 1]:
        raise ValueError(f"{len(twice)} file names are given twice, such as {twice[0]}. Put all boxes of it together.")
    checked = []
    for name, size, objects in items:
        try:
            checked.append((name, size, read_objects(objects, size)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if any(each.kind != "box" for each in checked[-1][2]):
            raise ValueError(f"{name}: COCO's annotations are boxes, but it has a point. Leave it out.")
    labels = sorted({each.label for _, _, objects in checked for each in objects})
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, size, objects) in enumerate(checked, 1):
        images.append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
        for each in objects:
            annotation = coco_annotation(each, number, labels.index(each.label) + 1)
            annotations.append({"id": len(annotations) + 1, **annotation})
    categories = [{"id": number, "name": label} for number, label in enumerate(labels, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_annotation(item: ImageObject, image_id: int, category_id: int) -> dict[str, Any]:
    """Return a box in COCO's form, without an id of it."""
    left, top, right, bottom = item.place
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [left, top, right - left, bottom - top],
        "area": item.box_area if item.area is None else item.area,
        "iscrowd": int(item.is_crowd),
    }


def write_coco(path: str | os.PathLike, items: Iterable[tuple[str, Size, Sequence[ImageObject]]]) -> None:
    """Write annotations in COCO's form, see [`to_coco`]."""
    write_text(Path(path), json.dumps(to_coco(items), ensure_ascii=False) + "\n")


def rows_to_coco(rows: Iterable[ChatRow], folder: str | os.PathLike | None = None) -> dict[str, Any]:
    """
    Return the objects of located examples in COCO's form; of several examples of an image all that they name.

    Args:
        rows: examples with one image that is a file, whose answer has `objects`.
        folder: start of the paths, which the file names leave out.

    Raises:
        ValueError: for an example without, with its id.
    """
    found: dict[str, tuple[Size, dict[str, ImageObject]]] = {}
    for row in rows:
        images = [part for turn in row.messages for part in turn["content"] if part["type"] == "image"]
        objects = [each for turn in row.messages for part in turn["content"] for each in part.get("objects", ())]
        source = media_source(images[0]) if len(images) == 1 else None
        if not isinstance(source, (str, os.PathLike)) or not any("objects" in p for p in row.messages[-1]["content"]):
            raise ValueError(f"Example {row.id!r} is not of one image file with the `objects` of an answer.")
        name = os.path.relpath(source, folder) if folder is not None else os.fspath(source)
        if name not in found:
            with Image.open(source) as image:
                found[name] = ((image.width, image.height), {})
        size, known = found[name]
        known |= {json.dumps(each.to_dict()): each for each in read_objects(objects, size)}
    return to_coco((name, size, list(known.values())) for name, (size, known) in found.items())
