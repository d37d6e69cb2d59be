"""Content of the page, without the page: turns, growing answers, and heatmaps of their words."""

import asyncio
import itertools
import time
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mm.evaluation import free_positions
from modeling_mm.explain import Explanation
from modeling_mm.serving.conversation import (
    SHOWN_WIDTH,
    STRIP_HEIGHT,
    attention_gallery,
    check_turn,
    heatmap,
    stream_answer,
    user_turn,
)
from modeling_mm.serving.engine import Engine
from modeling_mm.serving.preparing import encode
from tests.fakes.serving_parts import endless, generated, media_files, settled
from tests.fakes.tiny_chats import processor

LENGTH = 24  # of answers, in tokens


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return media_files(tmp_path_factory.mktemp("media"))


def steps_of(model, turns, steps=None, length=LENGTH) -> list[tuple[str, list[int]]]:
    """Return what an answer yields, at most `steps` times; the tokens are one list, complete at the end."""

    async def collect():
        engine = Engine(model)
        async with aclosing(stream_answer(engine, processor(), turns, length)) as stream:
            seen = []
            async for text, tokens in stream:
                seen.append((text, tokens))
                if len(seen) == steps:
                    break
        engine.stop()
        return seen

    return asyncio.run(collect())


def answered(model, turns) -> list[int]:
    """Return the tokens of the whole answer."""
    return steps_of(model, turns)[-1][1]


def test_a_turn_has_its_files_then_its_text(files):
    turn = user_turn(" Look and listen. ", [files["image"], files["audio"]])
    check_turn(turn)
    assert turn["content"] == [
        {"type": "image", "path": files["image"]},
        {"type": "audio", "path": files["audio"]},
        {"type": "text", "text": "Look and listen."},
    ]
    assert [part["type"] for part in user_turn("", [files["image"]])["content"]] == ["image"]


def test_a_file_is_known_by_its_content_if_its_name_tells_nothing(files, tmp_path):
    types = []
    for number, name in enumerate(("image", "audio", "image")):
        path = tmp_path / f"{number}{'.bin' if number == 2 else ''}"
        path.write_bytes(Path(files[name]).read_bytes())
        types.append(user_turn("", [str(path)])["content"][0]["type"])
    assert types == ["image", "audio", "image"]
    assert user_turn("", ["a.webm"])["content"] == [{"type": "audio", "path": "a.webm"}]  # a recording


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (None, "nothing to answer: write a question"),
        ("broken.png", r"^broken\.png: .*no format that Pillow knows"),
        ("broken.wav", r"^broken\.wav: .*cannot be decoded"),
        ("notes.txt", r"^notes\.txt: expected a file of type image or audio"),
    ],
)
def test_empty_turns_and_broken_files_are_refused_by_their_name(tmp_path, name, reason):
    if name:
        (tmp_path / name).write_bytes(b"neither image nor audio")
    with pytest.raises(ValueError, match=reason):
        check_turn(user_turn("  ", [str(tmp_path / name)] if name else []))


def test_an_answer_grows_to_the_text_of_generate(eager, files):
    turns = [user_turn("Look and listen.", files.values())]
    texts = [text for text, _ in steps_of(eager, turns)]
    assert texts[-1] == generated(turns, max_new_tokens=LENGTH) and len(texts[-1]) > 0
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))


def test_a_conversation_that_is_too_long_is_refused(eager):
    reason = r"takes \d+ tokens, and the model has 128 positions; shorten it, or start over"
    with pytest.raises(ValueError, match=reason):
        steps_of(eager, [user_turn("a dog " * 500, [])])


def test_an_answer_ends_where_the_positions_do(eager, files):
    """More tokens are allowed than fit. The view of the answer takes one step, no second answer."""
    turns = [user_turn("Look and listen." + " dog" * 100, files.values())]
    room = free_positions(eager.config, encode(processor(), turns)["input_ids"].shape[1])
    assert 0 < room < LENGTH
    with endless(eager) as steps:
        tokens = answered(eager, turns)
        assert len(steps) == len(tokens) == room
        assert attention_gallery(eager, processor(), turns, tokens)
        assert len(steps) == room + 1


def test_an_answer_that_is_left_ends(eager):
    with endless(eager, seconds=0.02) as steps:
        start = time.monotonic()
        assert len(steps_of(eager, [user_turn("hello", [])], steps=1, length=100)) == 1
        assert settled(steps) < 50 and time.monotonic() - start < 30


def test_each_word_has_a_heatmap(eager, files):
    turns = [user_turn("Look and listen.", files.values())]
    found = attention_gallery(eager, processor(), turns, answered(eager, turns))
    words = " ".join(word for _, word in found)
    assert words.split() == generated(turns, max_new_tokens=LENGTH).split()
    height = round(40 * SHOWN_WIDTH / 60)
    assert {image.size for image, _ in found} == {(SHOWN_WIDTH, height + STRIP_HEIGHT)}
    heard = [user_turn("What do you hear?", [files["audio"]])]
    alone = attention_gallery(eager, processor(), heard, answered(eager, heard))
    assert {image.size for image, _ in alone} == {(SHOWN_WIDTH, STRIP_HEIGHT)}
    assert attention_gallery(eager, processor(), [user_turn("hello", [])], [5]) == []


def test_the_place_of_the_greatest_weight_is_orange():
    patches = torch.zeros(1, 1, 2, 2)
    patches[0, 0, 1, 0] = 0.5
    attention = Explanation(["a"], patches, None, 0.0, {"image": torch.ones(1), "audio": torch.zeros(1)})
    shown = np.asarray(heatmap(attention, 0, Image.new("RGB", (100, 100), "white"))).astype(int)
    corners = [shown[10, 10], shown[10, -10], shown[-10, 10], shown[-10, -10]]
    assert [tuple(corner) == (255, 255, 255) for corner in corners] == [True, True, False, True]
    assert corners[2][0] == 255 and corners[2][2] < 80
