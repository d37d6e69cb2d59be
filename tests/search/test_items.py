"""items.py: folders, JSON lines, chats and datasets as items."""

from collections import Counter
from pathlib import Path

import pytest

from modeling_mm.search import Item, open_items
from tests.search.conftest import save_stripes, write_rows

ROOT = Path(__file__).resolve().parents[2]


def read(source, **options):
    opened = open_items(source, **options)
    return opened, list(opened.read(0, 1))


def test_a_folder_is_its_images_audio_and_texts_by_path(files):
    opened, items = read(files)
    assert [(item.id, item.kind) for item in items] == [
        ("a.png", "image"),
        ("b.png", "image"),
        ("hello.txt", "text"),
        ("low.wav", "audio"),
        ("more/c.jpg", "image"),
        ("more/high.flac", "audio"),
    ]
    assert items[2].text == "hello there" and items[0].media == {"image": [str(files / "a.png")]}
    assert (opened.total, opened.columns, opened.left_out, opened.is_whole) == (6, {}, Counter(), True)
    assert opened.name == str(files)


def test_files_of_other_kinds_are_counted_and_hidden_ones_passed_over(files):
    for name in ("list.csv", "clip.mp4", ".hidden.png", "more/other.csv", "noname"):
        (files / name).write_text("x")
    opened, items = read(files)
    assert len(items) == 6
    assert opened.left_out == {"files of type .csv": 2, "files of type .mp4": 1, "files of type unknown": 1}


def test_metadata_beside_files_belong_to_them(files):
    write_rows(files / "metadata.jsonl", [{"file_name": "a.png", "year": 1999, "tags": ["x"]}])
    write_rows(files / "more" / "metadata.jsonl", [{"file_name": "c.jpg", "text": "a car", "year": 2001}])
    opened, items = read(files)
    by_id = {item.id: item for item in items}
    assert by_id["a.png"].metadata == {"year": 1999} and by_id["b.png"].metadata == {}
    assert (by_id["more/c.jpg"].kind, by_id["more/c.jpg"].text) == ("image+text", "a car")
    assert opened.columns == {"year": "int"} and opened.left_out == {"column 'tags'": 1}
    write_rows(files / "metadata.jsonl", [{"year": 1}])
    with pytest.raises(ValueError, match=r"metadata.jsonl, row 0: expected a 'file_name', got the columns year."):
        open_items(files)


ROWS = [
    {"id": 1, "text": "a shoe", "image": "a.png", "price": 3.5},
    {"text": "words alone", "price": 2},
    {"images": ["a.png", {"path": "b.png"}], "audio": "low.wav"},
]


def test_rows_have_text_media_and_metadata(files):
    opened, items = read(write_rows(files / "rows.jsonl", ROWS))
    assert [item.kind for item in items] == ["image+text", "text", "image+audio"]
    assert [item.id for item in items] == ["1", None, None]
    assert items[2].media["image"] == [str(files / "a.png"), str(files / "b.png")]
    assert [item.metadata for item in items] == [{"price": 3.5}, {"price": 2}, {}]
    assert opened.columns == {"price": "float"} and items[1].where.endswith("rows.jsonl, row 1")
    assert items[0] == Item("a shoe", {"image": [str(files / "a.png")]}, "1", {"price": 3.5}, items[0].where)


def test_processes_share_the_items(files):
    opened = open_items(write_rows(files / "rows.jsonl", ROWS))
    shares = [list(opened.read(rank, 2)) for rank in range(2)]
    assert [len(share) for share in shares] == [2, 1]
    assert [shares[0][0], shares[1][0], shares[0][1]] == list(opened.read(0, 1))


def test_a_limit_takes_the_first_and_says_so(files):
    opened, items = read(write_rows(files / "rows.jsonl", ROWS), limit=2)
    assert (len(items), opened.total, opened.is_whole) == (2, 2, False)
    opened, items = read(files / "rows.jsonl", limit=4)
    assert (len(items), opened.is_whole) == (3, True)


def test_chats_are_their_media_with_the_answer_as_metadata():
    opened, items = read(ROOT / "processing/corpora/sample/train.jsonl", limit=3)
    assert items[0].kind == "image" and items[0].metadata == {"answer": "cat", "task": "image/name"}
    assert items[0].id == "image/name/images/cat.png" and items[1].kind == "image+audio"
    assert opened.columns == {"answer": "str", "task": "str"}


def test_a_saved_dataset_is_streamed_with_names_of_labels(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageColumn

    features = Features({"image": ImageColumn(), "label": ClassLabel(names=["cat", "dog"]), "id": Value("string")})
    paths = [str(save_stripes(tmp_path / f"{number}.png", number)) for number in range(4)]
    rows = {"image": paths, "label": [0, 1, 1, 0], "id": list("abcd")}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved", num_shards=2)
    opened, items = read(tmp_path / "saved")
    assert [item.metadata for item in items] == [{"label": name} for name in ("cat", "dog", "dog", "cat")]
    assert (opened.columns, opened.total, items[0].id, items[0].kind) == ({"label": "str"}, None, "a", "image")
    assert open_items(tmp_path / "saved", limit=2).is_whole is False
    assert len(read(tmp_path / "saved", limit=2)[1]) == 2
    shares = [[item.id for item in opened.read(rank, 2)] for rank in range(2)]
    assert sorted([*shares[0], *shares[1]]) == list("abcd") and all(shares)


def test_rows_of_a_dataset_without_a_label_have_no_value(tmp_path):
    """datasets gives -1 to a row whose label is hidden, as of a test split."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["cat", "dog"])})
    rows = Dataset.from_dict({"text": list("abc"), "label": [1, -1, None]}, features=features)
    rows.save_to_disk(tmp_path / "saved")
    _, items = read(tmp_path / "saved")
    assert [item.metadata for item in items] == [{"label": "dog"}, {"label": None}, {"label": None}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 3}, "rows.jsonl, row 0: expected a text in the column 'text', got 3."),
        ({"messages": [{"role": "user", "content": "?"}]}, "rows.jsonl, row 0: The sample has no turn"),
        ({"text": "a", "b c": 1}, "The column 'b c' of the metadata is not a word"),
    ],
)
def test_rows_of_another_form_are_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=r"row|column") as error:
        open_items(write_rows(tmp_path / "rows.jsonl", [row]))
    assert message in str(error.value)


def test_what_holds_nothing_is_named(tmp_path):
    (tmp_path / "list.csv").write_text("x")
    with pytest.raises(ValueError, match=r"holds no items. Expected images, audio, or .txt files."):
        open_items(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing.jsonl does not exist"):
        open_items(tmp_path / "nothing.jsonl")
