"""Chat examples from files, folders, saved datasets and streams: the same rows in any form."""

import json
import zipfile
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from modeling_mm.data import ChatDataset, ChatRow, ChatStream, load_chats, media_parts, streaming, to_row
from modeling_mm.images import load_image

RED = "red.png"


def chat(answer: str = "a cat", path: str = RED) -> dict:
    question = [{"type": "image", "path": path}, {"type": "text", "text": "What is this?"}]
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_lines(path: Path, samples: list[dict]) -> Path:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (4, 3), "red").save(tmp_path / RED)
    write_lines(tmp_path / "train.jsonl", [{**chat(str(i)), "id": f"s{i}", "task": "name/en"} for i in range(5)])
    return tmp_path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


# ---- One example ----------------------------------------------------------------------------------------------------


def test_prompt_and_answer_of_a_row() -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": ["  2 ", {"type": "text", "text": "and\n"}]},
    ]
    row = to_row({"messages": turns, "id": 7})
    assert row.answer == "2 and"
    assert [turn["role"] for turn in row.prompt] == ["system", "user", "assistant", "user"]
    assert row.prompt[1] == {"role": "user", "content": [{"type": "text", "text": "One?"}]}
    assert (row.id, row.task, row.epoch) == ("7", None, 0)
    assert not isinstance(row, dict), "the Trainer strips dicts"
    with pytest.raises(ValueError, match=r"Sample '7' has no turn of the assistant, only \['user'\]"):
        _ = to_row({"messages": turns[1:2], "id": 7}).answer


def test_prompt_and_completion_as_text_and_as_messages() -> None:
    expected = [
        {"role": "user", "content": [{"type": "text", "text": "Two?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "2"}]},
    ]
    assert to_row({"prompt": "Two?", "completion": "2"}).messages == expected
    messages = {
        "prompt": [{"role": "user", "content": "Two?"}],
        "completion": [{"role": "assistant", "content": "2"}],
    }
    assert to_row(messages).messages == expected


def test_trl_examples_keep_media_in_columns() -> None:
    parts = [{"type": "image", "text": None}, {"type": "audio"}, {"type": "image"}, {"type": "text", "text": "?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": "!"}]}
    sample = {"messages": [{"role": "user", "content": parts}, answer], "images": ["a.png", "b.png"], "audio": "c.wav"}
    row = to_row(sample)
    assert media_parts(row.messages) == [
        {"type": "image", "image": "a.png"},
        {"type": "audio", "audio": "c.wav"},
        {"type": "image", "image": "b.png"},
    ]
    assert parts[2] == {"type": "image"}, "the sample is left as it was"
    with pytest.raises(ValueError, match=r"2 image parts hold no image, and the column `images` has 1"):
        to_row({**sample, "images": ["a.png"]})
    with pytest.raises(ValueError, match=r"2 image parts hold no image, and the column `images` has 0"):
        to_row({**sample, "images": None})


def test_trl_puts_media_before_a_plain_question() -> None:
    row = to_row({"prompt": "Which?", "completion": "b", "images": ["a.png", "b.png"]})
    assert row.messages[0]["content"] == [
        {"type": "image", "image": "a.png"},
        {"type": "image", "image": "b.png"},
        {"type": "text", "text": "Which?"},
    ]


def test_the_same_as_trl_makes_of_it() -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    images = ["a.png", "b.png"]
    for turns in (
        [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "b"}],
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
        ],
    ):
        expected = data_utils.prepare_multimodal_messages(turns, images)
        assert to_row({"messages": turns, "images": images}).messages == expected


def test_paths_start_at_the_folder_and_addresses_do_not(tmp_path: Path) -> None:
    (tmp_path / "b.png").touch()
    sources = [
        ({"path": "a.png"}, {"path": str(tmp_path / "a.png")}),
        ({"path": "/x/a.png"}, {"path": "/x/a.png"}),
        ({"path": "https://x.org/a.png"}, {"path": "https://x.org/a.png"}),
        ({"image": "b.png"}, {"image": str(tmp_path / "b.png")}),
        ({"image": "iVBORw0KGgo="}, {"image": "iVBORw0KGgo="}),
        ({"image": {"bytes": None, "path": "a.png"}}, {"path": str(tmp_path / "a.png")}),
        ({"image": {"bytes": b"1", "path": "a.png"}}, {"image": {"bytes": b"1", "path": "a.png"}}),
    ]
    for given, expected in sources:
        turns = [{"role": "user", "content": [{"type": "image", **given}]}]
        assert media_parts(to_row({"messages": turns}, tmp_path).messages) == [{"type": "image", **expected}]


def test_an_example_with_writing_marks_its_images() -> None:
    assert media_parts(to_row({**chat(), "has_text": True}).messages)[0]["has_text"] is True
    assert "has_text" not in media_parts(to_row(chat()).messages)[0]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (3, "expected a mapping with `messages`, got int"),
        ({"text": "a"}, r"expected `messages`, or `prompt` and `completion`; got the columns \['text'\]"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "message 0: expected a `role` of system, user, assistant"),
        ({"messages": [{"role": "user"}]}, "message 0: its `content` must be text or a list of parts, got None"),
        (
            {"messages": [{"role": "user", "content": [{"type": "file"}]}]},
            "text .* image or audio or video, got {'type': 'file",
        ),
    ],
)
def test_examples_that_are_not_chats_are_refused(sample, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_row(sample)


# ---- Datasets -------------------------------------------------------------------------------------------------------


def test_a_jsonl_file_and_its_folder_give_the_same_rows(folder: Path) -> None:
    rows = load_chats(folder / "train.jsonl")
    assert isinstance(rows, ChatDataset) and len(rows) == 5
    assert [row.answer for row in rows] == ["0", "1", "2", "3", "4"]
    assert (rows[3].id, rows[-1].id, rows[3].task) == ("s3", "s4", "name/en")
    assert media_parts(rows[0].messages) == [{"type": "image", "path": str(folder / RED)}]
    assert list(load_chats(folder)) == list(rows)
    assert [row.id for row in load_chats(folder, limit=2)] == ["s0", "s1"]


def test_a_stream_gives_the_rows_of_the_file(folder: Path) -> None:
    stream = load_chats(folder, streaming=True)
    assert isinstance(stream, ChatStream) and isinstance(stream, torch.utils.data.IterableDataset)
    assert list(stream) == list(load_chats(folder))
    assert [row.id for row in load_chats(folder, streaming=True, limit=2)] == ["s0", "s1"]


def test_many_workers_share_a_long_file_without_repetition(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "long.jsonl", [{**chat(f"{'long ' * (i % 90)}{i}"), "id": i} for i in range(2000)])
    stream = load_chats(file, streaming=True)
    assert stream.samples.num_shards > 2
    assert [row.id for row in stream] == [str(i) for i in range(2000)], "no line is lost where pieces meet"
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2)
    assert sorted(int(row.id) for row in loader) == list(range(2000))


def test_a_line_belongs_to_one_piece_wherever_a_file_is_cut(folder: Path) -> None:
    path = write_lines(folder / "two.jsonl", [{"prompt": "?", "completion": "a"}, {"prompt": "?", "completion": "b"}])
    size = path.stat().st_size
    for cut in range(size + 1):
        rows = streaming.read_shards([(str(path), 0, cut), (str(path), cut, size)])
        answers = [streaming.unpack(row).answer for row in rows]
        assert answers == ["a", "b"], f"cut at byte {cut}"


def test_a_shuffled_stream_is_in_another_order_in_each_epoch(folder: Path) -> None:
    write_lines(folder / "many.jsonl", [{**chat(), "id": i} for i in range(50)])
    stream = load_chats(folder / "many.jsonl", streaming=True).shuffle(seed=3, buffer_size=20)
    first = [row.id for row in stream]
    assert [row.id for row in stream] == first != [str(i) for i in range(50)]
    stream.set_epoch(1)
    second = list(stream)
    assert [row.id for row in second] != first and sorted(row.id for row in second) == sorted(first)
    assert {row.epoch for row in second} == {1}


@pytest.mark.parametrize("line", ["{", "[1]", '"text"'])
def test_a_broken_line_is_named(folder: Path, line: str) -> None:
    with (folder / "train.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=r"train\.jsonl, line 7: expected a JSON object, got"):
        load_chats(folder)
    with pytest.raises(ValueError, match=r"train\.jsonl, the line at byte \d+: "):
        list(load_chats(folder, streaming=True))
    assert len(load_chats(folder, limit=5)) == 5, "what lies behind the limit is not read"


def test_an_example_that_is_not_a_chat_is_named(folder: Path) -> None:
    rows = ChatDataset([chat(), {"messages": []}])
    with pytest.raises(ValueError, match="Example 1: expected a list with at least one message"):
        rows[1]


def test_missing_files_splits_and_wrong_options_are_refused(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"The file .*gone\.jsonl does not exist"):
        load_chats(folder / "gone.jsonl")
    with pytest.raises(FileNotFoundError, match="is neither a file nor a folder"):
        load_chats(folder / "gone")
    with pytest.raises(ValueError, match=r"has no split 'test'. It has train"):
        load_chats(folder, split="test")
    with pytest.raises(ValueError, match=r"`name` \('en'\) chooses a configuration"):
        load_chats(folder, name="en")
    with pytest.raises(ValueError, match="`limit` must be at least 1, or None for all examples, got 0"):
        load_chats(folder, limit=0)
    (folder / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes\.txt is a file of another kind"):
        load_chats(folder / "notes.txt")
    (folder / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="holds no examples"):
        load_chats(folder, split="empty")


@pytest.mark.parametrize("as_stream", [False, True])
def test_a_folder_of_images_with_metadata(tmp_path: Path, as_stream: bool) -> None:
    colors = ["red", "green", "blue"]
    for kind in ("train", "test"):
        (tmp_path / kind).mkdir()
        for color in colors:
            Image.new("RGB", (2, 2), color).save(tmp_path / kind / f"{color}.png")
        question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Color?"}]}
        lines = [
            {
                "file_name": f"{color}.png",
                "messages": [question, {"role": "assistant", "content": [{"type": "text", "text": color}]}],
            }
            for color in colors
        ]
        write_lines(tmp_path / kind / "metadata.jsonl", lines[: 2 if kind == "test" else 3])
        if kind == "test":
            (tmp_path / kind / "blue.png").unlink()
    rows = list(load_chats(tmp_path, streaming=as_stream))
    assert [row.answer for row in rows] == colors
    for row in rows:
        part = media_parts(row.messages)[0]
        picture = load_image(part.get("path") or part["image"])
        assert picture.getpixel((0, 0)) == Image.new("RGB", (1, 1), row.answer).getpixel((0, 0))
    assert len(list(load_chats(tmp_path, split="test", streaming=as_stream))) == 2


@pytest.mark.parametrize("as_stream", [False, True])
def test_a_saved_dataset_with_images_and_splits(tmp_path: Path, folder: Path, as_stream: bool) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
    ]
    dataset = datasets.Dataset.from_dict({"messages": [messages] * 3, "images": [[str(folder / RED)]] * 3})
    dataset = dataset.cast_column("images", datasets.List(datasets.Image()))
    datasets.DatasetDict({"train": dataset, "dev": dataset.select([0])}).save_to_disk(tmp_path / "saved")
    rows = list(load_chats(tmp_path / "saved", streaming=as_stream, limit=2))
    assert len(rows) == 2 and rows[0].answer == "red"
    source = media_parts(rows[0].messages)[0]["image"]
    assert load_image(source).size == (4, 3), "the picture is a file, not decoded on the way"
    assert isinstance(source["bytes"], bytes)
    assert len(list(load_chats(tmp_path / "saved", "dev", streaming=as_stream))) == 1
    with pytest.raises(ValueError, match=r"has no split 'test'. It has train, dev"):
        load_chats(tmp_path / "saved", "test", streaming=as_stream)


def test_a_hub_id_goes_to_datasets_with_all_options(monkeypatch) -> None:
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        rows = datasets.Dataset.from_list([{"prompt": "One?", "completion": str(i)} for i in range(3)])
        return rows.to_iterable_dataset() if options["streaming"] else rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [row.answer for row in load_chats("someone/chats", "dev", name="fr", limit=2)] == ["0", "1"]
    assert [row.answer for row in load_chats("someone/chats", streaming=True, limit=2)] == ["0", "1"]
    assert asked == [
        (("someone/chats", "fr"), {"split": "dev", "streaming": False}),
        (("someone/chats", None), {"split": "train", "streaming": True}),
    ]


def test_a_stream_fetches_images_from_archives(folder: Path) -> None:
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        archive.write(folder / RED, RED)
    path = f"zip://{RED}::{folder / 'all.zip'}"
    rows = datasets.IterableDataset.from_generator(lambda: iter([chat(path=path)]))
    (row,) = ChatStream(streaming.to_stream(rows))
    assert media_parts(row.messages)[0]["image"]["bytes"] == (folder / RED).read_bytes()


def test_an_example_of_a_stream_that_is_not_a_chat_is_named() -> None:
    rows = datasets.Dataset.from_dict({"prompt": ["?", None], "completion": ["a", "b"]}).to_iterable_dataset()
    with pytest.raises(
        ValueError, match="Example 1 of the dataset: expected `messages`, or `prompt` and `completion`"
    ):
        list(ChatStream(streaming.to_stream(rows)))
    rows = datasets.IterableDataset.from_generator(lambda: iter([chat(path=None) | {"images": [3.5j]}]))
    with pytest.raises(ValueError, match="Example 0 of the dataset: its media are neither files, nor bytes"):
        list(ChatStream(streaming.to_stream(rows)))


def test_rows_carry_the_epoch_also_in_workers_that_live_on() -> None:
    rows = ChatDataset([chat()])
    loader = torch.utils.data.DataLoader(rows, batch_size=None, num_workers=1, persistent_workers=True)
    assert [row.epoch for row in loader] == [0]
    rows.set_epoch(4)
    assert [row.epoch for row in loader] == [4]
    assert rows[0] == ChatRow(to_row(chat()).messages)
