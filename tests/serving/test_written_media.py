"""Files of the page's answers: what the model writes is shown and heard, and what it points at has a box."""

import asyncio
from contextlib import aclosing
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageColor

from modeling_mm.serving.conversation import stream_answer, user_turn
from modeling_mm.serving.engine import Engine
from modeling_mm.serving.text_streamer import MixedStreamer
from modeling_mm.serving.written_media import places_file, save_media, written_files
from tests.fakes.processor_parts import picture
from tests.fakes.writers import PLACES, SAID, speaking

FIRST_COLOR = "#D55E00"  # of the first thing that an answer names


def answer(turns, folder) -> tuple[str, list[int], list[str]]:
    """The text, the tokens and the files of an answer."""

    async def collect():
        model, processor = speaking()
        engine, text, tokens = Engine(model), "", []
        async with aclosing(stream_answer(engine, processor, turns, 12)) as steps:
            async for step in steps:
                text, tokens = step
        files = await written_files(engine, processor, tokens, str(folder))
        engine.stop()
        return text, tokens, files

    return asyncio.run(collect())


def test_what_is_said_and_drawn_are_files_that_have_room(tmp_path):
    processor = speaking()[1]
    text, tokens, (heard,) = answer([user_turn("Say: hello", [])], tmp_path)
    samples, rate = soundfile.read(heard)
    assert text == "" and (len(samples), rate) == (SAID["hello"] * 40, 800), "more tokens than the page's limit of 12"
    expected = processor.decode_media(tokens)[0]["audio"][0]
    assert np.abs(samples - np.clip(expected, -1, 1)).max() < 1e-4
    text, _, (seen,) = answer([user_turn("Draw a dog", [])], tmp_path)
    assert text == "" and Image.open(seen).size == (16, 16) and Image.open(seen).format == "PNG"


def test_an_answer_in_text_has_no_files_and_follows_from_media_that_were_written(tmp_path):
    text, _, files = answer([user_turn("hello", [])], tmp_path)
    assert text == "hello there, you are brief" and files == []
    seen = answer([user_turn("Draw a dog", [])], tmp_path)[2]
    turns = [user_turn("Draw a dog", []), {**user_turn("", seen), "role": "assistant"}, user_turn("hello", [])]
    inputs = speaking()[1].apply_chat_template(turns, tokenize=False)
    assert "<|image_start|><image_code_" in inputs
    answer(turns, tmp_path)


def test_codes_have_no_text_and_the_text_around_them_is_whole():
    processor = speaking()[1]
    tokens = processor.written["audio"].tokens
    before, behind = (processor.tokenizer(text).input_ids for text in ("a cat é", " and a dog"))
    ids = [*before, *tokens.to_ids([[1, 2, 3]]), *behind]
    pieces = []
    streamer = MixedStreamer(processor.tokenizer, pieces.append, [tokens])
    for token in ids:
        streamer.take(token)
    streamer.end()
    assert "".join(pieces) == "a cat é and a dog" and streamer.tokens == ids


def test_places_in_an_answer_are_drawn_on_the_last_image(tmp_path):
    for name, color in (("first", "blue"), ("last", "red")):
        picture(color, (60, 40)).save(tmp_path / f"{name}.png")
    turns = [user_turn("hello", [str(tmp_path / "first.png")]), user_turn("Find", [str(tmp_path / "last.png")])]
    image = Image.open(places_file(turns, PLACES, str(tmp_path)))
    assert image.size == (320, 213)
    scale = 320 / 60
    edge = ImageColor.getrgb(FIRST_COLOR)
    left, top, right, bottom = (0.2005 * 60, 0.1005 * 40, 0.6005 * 60, 0.5005 * 40)
    for x, y, inside in ((right, 30 * 0.4, (-1, 0)), (30 * 0.6, bottom, (0, -1)), (left, bottom * 0.9, (1, 0))):
        assert image.getpixel((int(x * scale) + inside[0], int(y * scale) + inside[1])) == edge
    assert image.getpixel((round((left + right) / 2 * scale), round((top + bottom) / 2 * scale))) == (255, 0, 0)
    assert places_file(turns, "a dog", str(tmp_path)) is None
    assert places_file(turns, "dog<loc_200>", str(tmp_path)) is None, "a place that cannot be read"
    assert places_file([user_turn("hello", [])], PLACES, str(tmp_path)) is None


def test_a_model_finds_what_it_has_learned_to_find(tmp_path):
    picture("red", (60, 40)).save(tmp_path / "red.png")
    text, _, files = answer([user_turn("Find the dog.", [str(tmp_path / "red.png")])], tmp_path)
    assert text == PLACES and files == []


def test_saved_files_have_names_of_their_own(tmp_path):
    part = {"type": "image", "image": picture()}
    assert save_media(part, str(tmp_path)) != save_media(part, str(tmp_path))


@pytest.mark.parametrize("tokens", [[], [3, 4]])
def test_without_codecs_there_are_no_files(tokens, tmp_path):
    assert asyncio.run(written_files(None, SimpleNamespace(written={}), tokens, str(tmp_path))) == []
