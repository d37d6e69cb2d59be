"""Pieces of an answer with text, images and audio: in order, final, and together what `decode_media` gives."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from modeling_mm.serving.answer_message import AnswerMessage
from modeling_mm.serving.chat_request import check_chat
from modeling_mm.serving.kept_audio import KeptAudio
from modeling_mm.serving.media_streamer import CHUNKS, WHOLE, MediaStreamer
from tests.fakes.writers import speaking

RNG = np.random.default_rng(0)


def block(name: str, steps: int) -> list[int]:
    tokens = speaking()[1].written[name].tokens
    return tokens.to_ids(RNG.integers(0, tokens.codebook_size, (tokens.codebooks, steps)).tolist())


def ids(text: str) -> list[int]:
    return speaking()[1].tokenizer(text, add_special_tokens=False)["input_ids"]


ANSWER = [*ids("hello there"), *block("audio", 30), *ids(" a dog"), *block("image", 16), *block("audio", 12)]


def pieces_of(tokens: list[int], **options) -> list:
    pieces: list = []
    streamer = MediaStreamer(speaking()[1], pieces.append, **options)
    for token in tokens:
        streamer.take(token)
    streamer.end()
    assert streamer.tokens == tokens[: len(streamer.tokens)]
    return pieces


def kinds(pieces: list) -> str:
    """A letter for each piece, repeated ones once."""
    letters = ["t" if isinstance(each, str) else "i" if isinstance(each, Image.Image) else "a" for each in pieces]
    return "".join(letter for place, letter in enumerate(letters) if letters[place - 1 : place] != [letter])


def check(pieces: list, tokens: list[int]) -> None:
    """Pieces are the parts that `decode_media` gives."""
    parts = speaking()[1].decode_media(tokens)
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    assert "".join(piece for piece in pieces if isinstance(piece, str)) == text
    images = [part["image"] for part in parts if part["type"] == "image" and part["image"] is not None]
    found = [np.asarray(piece) for piece in pieces if isinstance(piece, Image.Image)]
    assert len(found) == len(images) and all(map(np.array_equal, found, map(np.asarray, images)))
    samples = [part["audio"][0] for part in parts if part["type"] == "audio" and part["audio"] is not None]
    heard = [piece for piece in pieces if isinstance(piece, np.ndarray)]
    assert len(samples) == 0 == len(heard) or np.allclose(np.concatenate(heard), np.concatenate(samples), atol=1e-5)


@pytest.mark.parametrize("options", [CHUNKS, WHOLE])
def test_pieces_are_the_parts_in_their_order(options):
    pieces = pieces_of(ANSWER, **options)
    check(pieces, ANSWER)
    assert kinds(pieces) == "tatia"
    chunks = sum(isinstance(each, np.ndarray) for each in pieces)
    assert chunks == 2 if options is WHOLE else chunks > 4


@pytest.mark.parametrize("length", [1, 2, 3, 10, 33, 36, 37, 40, 46, 47, 53, 60])
def test_of_a_block_that_is_cut_pieces_are_what_can_be_decoded(length):
    check(pieces_of(ANSWER[:length]), ANSWER[:length])


def test_a_stop_string_ends_an_answer_behind_its_media():
    pieces = pieces_of(ANSWER, stop_strings=[" dog"])
    assert kinds(pieces) == "tat" and "dog" not in "".join(piece for piece in pieces if isinstance(piece, str))


# ---- The message ----------------------------------------------------------------------------------------------------


def message_of(tokens: list[int], kept: KeptAudio, **fields) -> AnswerMessage:
    body = {"messages": [{"role": "user", "content": "x"}], "modalities": ["text", "image", "audio"], **fields}
    chat = check_chat({**body, "audio": {"voice": "default", "format": "wav"}})
    stream = SimpleNamespace(streamer=SimpleNamespace(tokens=tokens))
    return AnswerMessage(stream, chat, speaking()[1], kept)


def test_a_message_has_its_text_as_content_and_transcript():
    kept = KeptAudio()
    message = message_of(ANSWER, kept).whole(pieces_of(ANSWER))
    assert message["content"] == message["audio"]["transcript"] == "hello there a dog"
    assert len(message["images"]) == 1
    codes = kept.get(message["audio"]["id"])
    tokens = speaking()[1].written["audio"].tokens
    assert codes.count(tokens.token_strings[0]) == 2 and codes.count("<audio_code_") == 42
    assert message_of(ANSWER, kept).media_tokens() == {"image": 18, "audio": 32 + 14}


def test_deltas_have_the_same_and_tell_the_transcript_at_the_end():
    message = message_of(ANSWER, KeptAudio(), stream=True)
    deltas = [delta for piece in pieces_of(ANSWER) for delta in message.deltas(piece)]
    *rest, transcript, last = [*deltas, *message.last_deltas()]
    assert transcript == {"audio": {"transcript": "hello there a dog"}} and list(last["audio"]) == ["expires_at"]
    assert "".join(delta.get("content", "") for delta in rest) == "hello there a dog"
    assert [list(delta) for delta in rest if "images" in delta] == [["images"]]
    plain = message_of(ids("a dog"), KeptAudio(), stream=True)
    assert plain.deltas("a dog") == [{"content": "a dog"}] and plain.last_deltas() == []


def test_audio_is_kept_for_a_time_and_the_oldest_go_first(monkeypatch):
    kept, now = KeptAudio(seconds=10, most=2), 1000.0
    monkeypatch.setattr("modeling_mm.serving.kept_audio.time.time", lambda: now)
    assert kept.keep("a", "A") == 1010
    now = 1005.0
    kept.keep("b", "B")
    assert (kept.get("a"), kept.get("b"), kept.get("c")) == ("A", "B", None)
    now = 1010.0
    assert (kept.get("a"), kept.get("b")) == (None, "B")
    kept.keep("c", "C")
    kept.keep("d", "D")
    assert (kept.get("b"), kept.get("c"), kept.get("d")) == (None, "C", "D")
