"""Lengths of answers, and the config of a request."""

import types

import pytest
from transformers import GenerationConfig, GPT2Config

from modeling_mm.serving.answering import BadRequest, make_config
from modeling_mm.serving.sampling import Sampling


def model(kind="learned", **config):
    text = GPT2Config(n_positions=10, vocab_size=50)
    joint = types.SimpleNamespace(text_config=text, text_position_encoding=kind, get_text_config=lambda **_: text)
    return types.SimpleNamespace(config=joint, generation_config=GenerationConfig(**config))


def lengths(prompt, asked=None, kind="learned", most=None) -> int:
    return make_config(Sampling(max_tokens=asked), model(kind), prompt, most).max_new_tokens


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
    config = make_config(Sampling.of({**asked, "max_completion_tokens": 3}), default, 1, None)
    assert (config.temperature, config.do_sample, config.top_p) == (0.5, True, 0.9)
    assert (config.repetition_penalty, config.sequence_bias, config.max_new_tokens) == (None, {(3,): 2.0}, 3)
    assert (config.num_beams, default.generation_config.num_beams, default.generation_config.top_p) == (1, 4, 0.5)
    assert not make_config(Sampling(temperature=0.0), default, 1, None).do_sample
    with pytest.raises(BadRequest, match="expected token ids below 50, got 50"):
        make_config(Sampling(logit_bias={50: 1.0}), default, 1, None)
    with pytest.raises(BadRequest, match=r"`logprobs`: not with .* \(prompt_lookup_num_tokens\); leave it out"):
        make_config(Sampling(top_logprobs=0), model(prompt_lookup_num_tokens=2), 1, None)
