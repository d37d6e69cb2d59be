"""Text of an answer: pieces, stop strings and ends; without a server."""

import pytest
import torch
from transformers import GenerationConfig

from modeling_mm.serving.engine import generate_alone
from modeling_mm.serving.row import Row
from modeling_mm.serving.sampling import Sampling
from modeling_mm.serving.text_streamer import TextStreamer, split_at_stop
from tests.fakes.processor_parts import make_bpe


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("a dog", [], ("a dog", "", False)),
        ("a dog", ["cat"], ("a dog", "", False)),
        ("a dog", ["do"], ("a ", "", True)),
        ("a dog", ["g", "a"], ("", "", True)),
        ("a dog", ["gone"], ("a do", "g", False)),
        ("a dog", ["dogs", "go"], ("a ", "dog", False)),
        ("dog", ["dogs"], ("", "dog", False)),
        ("aab", ["aac", "abc"], ("a", "ab", False)),
    ],
)
def test_a_growing_text_is_split_where_a_stop_string_may_begin(text, stops, expected):
    assert split_at_stop(text, stops) == expected


def written(text: str, stops=()) -> tuple[list[str], TextStreamer]:
    """Return the pieces that a streamer pushes, given one token after the other."""
    pieces, tokenizer = [], make_bpe()
    streamer = TextStreamer(tokenizer, pieces.append, stops)
    streamer.put(torch.tensor([[1, 2, 3]]))
    for token in tokenizer(text).input_ids:
        streamer.put(torch.tensor([token]))
    streamer.end()
    return pieces, streamer


def test_words_are_pushed_as_they_come():
    """transformers' own streamer waits for a space, which Japanese has none of."""
    pieces = written("a cat, naïve ひらがな🎺")[0]
    assert "".join(pieces) == "a cat, naïve ひらがな🎺" and len(pieces) > 9 and "" not in pieces


def test_a_stop_string_ends_an_answer_and_is_left_out():
    pieces, streamer = written("a cat, a dog and a bird", ["dog an"])
    assert "".join(pieces) == "a cat, a " and streamer.is_stopped and streamer.is_over()
    assert len(streamer.tokens) < len(make_bpe()("a cat, a dog and a bird").input_ids)
    pieces, streamer = written("a cat, a dog", ["dogs"])
    assert "".join(pieces) == "a cat, a dog" and not streamer.is_stopped


def test_a_stopped_answer_is_not_begun_and_ends_generate():
    streamer = written("a")[1]
    (criterion,) = streamer.options()["stopping_criteria"]
    assert criterion(torch.zeros(2, 3), None).tolist() == [False, False]
    streamer.stop()
    assert criterion(torch.zeros(2, 3), None).tolist() == [True, True]
    row = Row([], {}, GenerationConfig(), Sampling(), None, streamer)
    generate_alone(None, row)  # no model is touched
