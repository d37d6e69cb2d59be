"""Rows of `datasets` in its torch and numpy formats are the rows that they were before."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mm.data import ChatDataset, load_chats, media_parts, to_row
from modeling_mm.training import ChatCollator
from tests.fakes.processor_parts import RATE
from tests.fakes.tiny_chats import processor

TURNS = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "first"}]
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
PAIR = [{"type": kind} for kind in ("image", "image", "audio")]
PARTS = [{"role": "user", "content": [*PAIR, {"type": "text", "text": "?"}]}, ANSWER]


def image(seed: int, mode: str = "RGB", size: tuple[int, int] = (10, 12)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def waves(seconds: float = 0.5) -> dict:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)
    return {"array": samples, "sampling_rate": RATE}


def dataset(**columns) -> datasets.Dataset:
    made = datasets.Dataset.from_list([columns])
    for name, feature in (("images", datasets.List(datasets.Image())), ("image", datasets.Image())):
        if name in columns:
            made = made.cast_column(name, feature)
    return made


@pytest.mark.parametrize("layout", ["torch", "numpy"])
@pytest.mark.parametrize(
    "columns",
    [
        {"messages": TURNS, "images": [image(0), image(1)]},
        {"messages": TURNS, "images": [image(0), image(1, size=(8, 9))]},
        {"messages": TURNS, "image": image(0), "id": 7},
        {"messages": TURNS, "image": image(0, "L")},
        {"messages": TURNS, "audio": waves()},
        {"messages": TURNS, "audios": [waves(), waves(0.2)]},
        {"messages": PARTS, "images": [image(0), image(1)], "audio": waves()},
        {"messages": PARTS, "images": [image(0, "L"), image(1, "L")], "audios": [waves()]},
        {"prompt": "Which?", "completion": "first", "images": [image(0)]},
        {"prompt": TURNS[:1], "completion": TURNS[1:], "images": [image(0), image(1), image(2)]},
    ],
    ids=lambda columns: "-".join(columns),
)
def test_formatted_rows_are_the_rows(layout, columns):
    data, collate = dataset(**columns), ChatCollator(processor())
    plain, formatted = collate([data[0]]), collate([data.with_format(layout)[0]])
    assert plain.keys() == formatted.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(formatted[name], tensor, rtol=0, atol=0)
    row = ChatDataset(data.with_format(layout))[0]
    assert (row.id, row.answer) == (to_row(data[0]).id, to_row(data[0]).answer)


@pytest.mark.parametrize("layout", ["torch", "numpy"])
def test_formatted_messages_and_batches_are_taken_by_the_processor(layout):
    data = datasets.concatenate_datasets(
        [dataset(messages=PARTS, image=image(number), audio=waves()) for number in (0, 1)]
    )
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    texts = [[{"role": "user", "content": [{"type": "text", "text": "a"}]}, ANSWER]] * 2
    chats = datasets.Dataset.from_dict({"messages": texts}).with_format(layout)
    for given, expected in ((chats[0]["messages"], texts[0]), (chats[:]["messages"], texts)):
        encoded = processor().apply_chat_template(given, **options)["input_ids"]
        assert encoded.tolist() == processor().apply_chat_template(expected, **options)["input_ids"].tolist()
    batch, plain = data.with_format(layout)[:], data[:]
    made, expected = (
        processor()(text=["a", "b"], images=rows["image"], audio=rows["audio"], return_tensors="pt")
        for rows in (batch, plain)
    )
    for name in expected:
        torch.testing.assert_close(made[name], expected[name], rtol=0, atol=0)


def test_parts_may_hold_tensors_and_numbers_without_axes():
    samples = torch.tensor(waves()["array"])
    parts = [
        {"type": "image", "image": torch.tensor(np.asarray(image(0))).permute(2, 0, 1)},
        {"type": "audio", "audio": {"array": samples, "sampling_rate": torch.tensor(RATE)}},
        {"type": "audio", "audio": samples, "sampling_rate": np.int64(RATE)},
        {"type": "audio", "audio": (samples, torch.tensor(RATE))},
    ]
    plain = [
        {"type": "image", "image": image(0)},
        *[{"type": "audio", "audio": (waves()["array"], RATE)}] * 3,
    ]
    made, expected = (
        ChatCollator(processor())([{"messages": [{"role": "user", "content": content}, ANSWER]}])
        for content in (parts, plain)
    )
    for name in expected:
        torch.testing.assert_close(made[name], expected[name], rtol=0, atol=0)


def test_a_developer_is_the_system():
    assert (
        to_row({"messages": [{"role": "developer", "content": "Be brief."}, *TURNS]}).messages[0]["role"] == "system"
    )


def test_one_pair_or_list_of_samples_in_a_column_is_one_audio():
    for audio in ((waves()["array"], RATE), waves()["array"].tolist(), waves()["array"]):
        (part,) = media_parts(to_row({"messages": TURNS, "audio": audio}).messages)
        assert part["audio"] is audio


def test_a_formatted_dataset_streams(tmp_path):
    dataset(messages=TURNS, image=image(0)).with_format("torch").save_to_disk(tmp_path / "saved")
    rows = [list(load_chats(tmp_path / "saved", streaming=streaming)) for streaming in (False, True)]
    assert [row.answer for kind in rows for row in kind] == ["first", "first"]
    assert all(media_parts(row.messages)[0]["image"]["bytes"] for kind in rows for row in kind)
