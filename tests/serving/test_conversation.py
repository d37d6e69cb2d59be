"""Content of the page, without the page: turns, growing answers, and heatmaps of their words."""

import asyncio
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mm.evaluation import free_positions
from modeling_mm.explain import Explanation, make_target, modality_contributions
from modeling_mm.serving import conversation
from modeling_mm.serving.conversation import (
    CONTRIBUTIONS,
    SHOWN_WIDTH,
    STRIP_HEIGHT,
    VIEWS,
    View,
    check_turn,
    heatmap,
    run_in_turns,
    stream_answer,
    user_turn,
    view_steps,
)
from modeling_mm.serving.engine import Engine
from modeling_mm.serving.preparing import encode
from tests.fakes.serving_parts import endless, generated, media_files, settled
from tests.fakes.tiny_chats import processor

LENGTH = 24  # of answers, in tokens


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return media_files(tmp_path_factory.mktemp("media"))


def finish(steps) -> View:
    """Return the result of steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


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
        assert finish(view_steps(eager, processor(), turns, tokens)).heatmaps
        assert len(steps) == room + 1


def test_an_answer_that_is_left_ends(eager):
    with endless(eager, seconds=0.02) as steps:
        start = time.monotonic()
        assert len(steps_of(eager, [user_turn("hello", [])], steps=1, length=100)) == 1
        assert settled(steps) < 50 and time.monotonic() - start < 30


@pytest.mark.parametrize("method", [view for view in VIEWS if view != CONTRIBUTIONS])
def test_each_word_has_a_heatmap_by_each_method(eager, files, method):
    turns = [user_turn("Look and listen.", files.values())]
    found = finish(view_steps(eager, processor(), turns, answered(eager, turns), method)).heatmaps
    words = " ".join(word for _, word in found)
    assert words.split() == generated(turns, max_new_tokens=LENGTH).split()
    height = round(40 * SHOWN_WIDTH / 60)
    assert {image.size for image, _ in found} == {(SHOWN_WIDTH, height + STRIP_HEIGHT)}
    heard = [user_turn("What do you hear?", [files["audio"]])]
    alone = finish(view_steps(eager, processor(), heard, answered(eager, heard), method)).heatmaps
    assert {image.size for image, _ in alone} == {(SHOWN_WIDTH, STRIP_HEIGHT)}
    assert finish(view_steps(eager, processor(), [user_turn("hello", [])], [5], method)) == View()


def test_the_contributions_of_the_modalities_to_each_word_are_a_table(eager, files):
    turns = [user_turn("Look and listen.", files.values())]
    tokens = answered(eager, turns)
    view = finish(view_steps(eager, processor(), turns, tokens, CONTRIBUTIONS))
    target = make_target(eager, processor(), turns, answer_ids=tokens)
    found = modality_contributions(target)
    assert view.columns == ["word", "nothing", "+ image", "+ audio", "+ text", "all"] and view.heatmaps == []
    assert [row[0] for row in view.table] == target.words
    assert view.table[0][2] == round(found.values["image"][0].item(), 3)
    assert sum(view.table[0][1:5]) == pytest.approx(view.table[0][5], abs=0.003)


def test_an_occlusion_of_too_many_places_is_refused(eager, files, monkeypatch):
    monkeypatch.setattr(conversation, "MOST_RUNS", 10)
    turns = [user_turn("Look and listen.", files.values())]
    tokens = answered(eager, turns)
    with pytest.raises(
        ValueError, match=r"occlusion of 32 places and words takes too long here, where 10 are allowed"
    ):
        finish(view_steps(eager, processor(), turns, tokens, "occlusion"))
    assert finish(view_steps(eager, processor(), turns, tokens, "integrated-gradients")).heatmaps


def collected(engine: Engine, steps, most: int | None = None) -> list:
    """Return what work in turns yields, at most `most` times."""

    async def collect():
        found = []
        async with aclosing(run_in_turns(engine, steps)) as running:
            async for step in running:
                found.append(step)
                if len(found) == most:
                    break
        return found

    return asyncio.run(collect())


def test_work_in_turns_yields_its_progress_lets_others_in_between_and_ends_when_it_is_left(eager):
    engine, done = Engine(eager), []

    def steps(name: str):
        for share in (0.25, 0.5, 0.75):
            time.sleep(0.05)
            done.append(name)
            yield share
        return View(columns=[name])

    assert collected(engine, steps("alone")) == [0.25, 0.5, 0.75, View(columns=["alone"])]
    done.clear()
    assert collected(engine, steps("left"), most=1) == [0.25]
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(collected, engine, steps(name)) for name in ("one", "other")]
        assert [each.result()[-1].columns for each in both] == [["one"], ["other"]]
    engine.stop()
    assert done.count("left") == 1
    others = [name for name in done if name != "left"]
    assert len(others) == 6 and others not in (["one"] * 3 + ["other"] * 3, ["other"] * 3 + ["one"] * 3)


def test_an_error_of_work_in_turns_is_raised_and_the_engine_lives(eager):
    def steps():
        yield 0.5
        raise ValueError("no place to show")

    engine = Engine(eager)
    with pytest.raises(ValueError, match="no place to show"):
        collected(engine, steps())
    assert engine.call(lambda: 7).result() == 7
    engine.stop()


def test_the_place_of_the_greatest_weight_is_orange():
    patches = torch.zeros(1, 1, 2, 2)
    patches[0, 0, 1, 0] = 0.5
    attention = Explanation(["a"], patches, None, 0.0, {"image": torch.ones(1), "audio": torch.zeros(1)})
    shown = np.asarray(heatmap(attention, 0, Image.new("RGB", (100, 100), "white"))).astype(int)
    corners = [shown[10, 10], shown[10, -10], shown[-10, 10], shown[-10, -10]]
    assert [tuple(corner) == (255, 255, 255) for corner in corners] == [True, True, False, True]
    assert corners[2][0] == 255 and corners[2][2] < 80
