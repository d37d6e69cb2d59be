"""Answers while they are generated: pieces, stop strings, ends and lengths; without a server."""

import time
import types

import pytest
import torch
from transformers import GenerationConfig

from modeling_mm.serving.answering import Answer, divide, generate, make_config
from modeling_mm.serving.conversation import stream_answer, user_turn
from modeling_mm.serving.sources import BadRequest
from tests.fakes.processor_parts import make_bpe
from tests.fakes.tiny_chats import chat_model, processor


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
def test_a_growing_text_is_told_up_to_where_a_stop_string_may_begin(text, stops, expected):
    assert divide(text, stops) == expected


def written(text: str, stops=()) -> tuple[list[str], Answer]:
    """What an answer pushes, given one token after the other."""
    pieces, tokenizer = [], make_bpe()
    answer = Answer(tokenizer, pieces.append, stops)
    answer.put(torch.tensor([[1, 2, 3]]))
    for token in tokenizer(text).input_ids:
        answer.put(torch.tensor([token]))
    answer.end()
    return pieces, answer


def test_pieces_make_up_the_text_also_where_letters_have_several_tokens():
    for text in ("a cat, a dog", "naïve 東京 🎺", ""):
        assert "".join(written(text)[0]) == text
    tokenizer = make_bpe()
    cut = tokenizer("🎺").input_ids[:-1]
    pieces = []
    answer = Answer(tokenizer, pieces.append)
    for token in ([[1]], *([token] for token in cut)):
        answer.put(torch.tensor(token))
    answer.end()
    assert "".join(pieces) == tokenizer.decode(cut) and len(pieces) == 1


def test_what_is_no_text_does_not_end_an_answer():
    """Bytes in any order, as a model that samples may say them."""
    tokenizer, pieces = make_bpe(), []
    tokens = torch.randint(len(tokenizer), (300, 1), generator=torch.Generator().manual_seed(0))
    answer = Answer(tokenizer, pieces.append)
    for token in (torch.tensor([[1]]), *tokens):
        answer.put(token)
    answer.end()
    assert "".join(pieces) == tokenizer.decode(tokens[:, 0], skip_special_tokens=True) and len(pieces) > 50


def test_a_stop_string_ends_an_answer_and_is_no_part_of_it():
    pieces, answer = written("a cat, a dog and a bird", ["dog an"])
    assert "".join(pieces) == "a cat, a " and answer.is_stopped and answer.is_over()
    assert len(answer.tokens) < len(make_bpe()("a cat, a dog and a bird").input_ids)
    pieces, answer = written("a cat, a dog", ["dogs"])
    assert "".join(pieces) == "a cat, a dog" and not answer.is_stopped


def test_what_is_stopped_is_not_begun_and_says_so_to_generate():
    _, answer = written("a")
    (ended,) = answer.options()["stopping_criteria"]
    assert ended(torch.zeros(2, 3), None).tolist() == [False, False]
    answer.stop()
    assert ended(torch.zeros(2, 3), None).tolist() == [True, True]
    generate(None, {}, GenerationConfig(), None, answer)  # no model is touched


def test_a_conversation_that_is_left_ends_its_answer():
    endless = chat_model(text_position_encoding="sinusoidal").eval()
    endless.generation_config.eos_token_id = None
    answer = stream_answer(endless, processor(), [user_turn("hello", None, None)], 200_000)
    assert next(answer)
    start = time.monotonic()
    answer.close()
    assert time.monotonic() - start < 30


def model(kind="learned", **config):
    text = types.SimpleNamespace(n_positions=10, vocab_size=50)
    generation = GenerationConfig(**config)
    return types.SimpleNamespace(
        config=types.SimpleNamespace(text_config=text, text_position_encoding=kind), generation_config=generation
    )


def lengths(prompt, asked=None, kind="learned", most=None) -> int:
    return make_config({"max_tokens": asked}, model(kind), prompt, most).max_new_tokens


def test_lengths_follow_the_positions_and_the_limit_of_the_server():
    assert [lengths(4), lengths(4, 6), lengths(4, 2), lengths(4, most=3), lengths(4, most=30)] == [6, 6, 2, 3, 6]
    endless = [lengths(40, asked, "sinusoidal", most) for asked, most in ((None, None), (None, 20), (15, 20))]
    assert endless == [10, 20, 15]
    for arguments, reason in (
        ((4, 7), "ask for 6 at most"),
        ((10,), "takes 10 tokens, and the model has 10 positions"),
        ((4, 4, "learned", 3), "this server generates 3 at most"),
        ((4, 11, "sinusoidal"), "this server generates 10 at most"),
    ):
        with pytest.raises(BadRequest, match=reason):
            lengths(*arguments)


def test_a_request_changes_the_config_of_its_answer_alone():
    default = model(num_beams=4, top_p=0.5)
    asked = {"temperature": 0.5, "top_p": 0.9, "frequency_penalty": 0.5, "logit_bias": {3: 2.0}, "max_tokens": 2}
    config = make_config({**asked, "max_completion_tokens": 3}, default, 1, None)
    assert (config.temperature, config.do_sample, config.top_p) == (0.5, True, 0.9)
    assert (config.repetition_penalty, config.sequence_bias, config.max_new_tokens) == (1.5, {(3,): 2.0}, 3)
    assert (config.num_beams, default.generation_config.num_beams, default.generation_config.top_p) == (1, 4, 0.5)
    whole = make_config({"temperature": 2, "top_p": 1}, default, 1, None)  # as JSON has them; generate wants floats
    assert [type(value) for value in (whole.temperature, whole.top_p)] == [float, float]
    assert not make_config({"temperature": 0}, default, 1, None).do_sample
    with pytest.raises(BadRequest, match="expected token ids below 50, got 50"):
        make_config({"logit_bias": {50: 1.0}}, default, 1, None)
