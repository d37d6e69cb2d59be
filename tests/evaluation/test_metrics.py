"""Figures of answers: exact values on answers that can be scored by hand; answering in batches."""

import sys

import pytest
import torch

from modeling_mm.evaluation.metrics import METRICS, answer_batch, answer_prompts, check_metrics, prompt_inputs, score
from tests.fakes.tiny_chats import CHATS, chat_model, processor

PROMPTS = [chat["messages"][:1] for chat in CHATS]


@pytest.mark.parametrize(
    "name, answers, truths, expected",
    [
        ("exact_match", ["a cat ", "A cat", "dog"], ["a cat", "a cat", "dog"], 2 / 3),
        ("accuracy", ["animal", "plant"], ["animal", "animal"], 1 / 2),
        ("wer", ["a red cat sat", "one"], ["a red dog", "one two"], 3 / 5),
        ("cer", ["你们", "ab"], ["你好", "ab"], 1 / 4),
        ("bleu", ["the cat sat on the mat"], ["the cat sat on the mat"], 100.0),
        ("bleu", ["no word of it is right"], ["the cat sat on a mat"], 0.0),
        ("chrf", ["a small bird"], ["a small bird"], 100.0),
        ("chrf", ["xyz"], ["abc"], 0.0),
    ],
)
def test_exact_values(name, answers, truths, expected):
    if name in ("wer", "cer", "bleu", "chrf"):
        pytest.importorskip("jiwer" if name in ("wer", "cer") else "sacrebleu")
    assert score(name, answers, truths) == pytest.approx(expected, abs=1e-9)


def test_answers_and_truths_are_not_mixed_up():
    """Words by those of the truth: three missing of four is 0.75, three added to one is 3."""
    pytest.importorskip("jiwer")
    assert score("wer", ["a"], ["a b c d"]) == 0.75
    assert score("wer", ["a b c d"], ["a"]) == 3.0


def test_sentences_of_different_lengths_count_by_their_words():
    pytest.importorskip("jiwer")
    assert score("wer", ["x", "a b c d e f g h i"], ["a", "a b c d e f g h i"]) == pytest.approx(1 / 10)


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"no metric 'exact_mach'. Did you mean 'exact_match'\? Known: exact_match, acc"
    ):
        score("exact_mach", ["a"], ["a"])
    with pytest.raises(ValueError, match=r"no metric 'zzz'\. Known"):
        check_metrics(["wer", "zzz"])
    check_metrics(METRICS)


@pytest.mark.parametrize("answers, truths", [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_as_many_answers_as_truths_and_at_least_one(answers, truths):
    with pytest.raises(ValueError, match=rf"got {len(answers)} answers and {len(truths)} truths"):
        score("exact_match", answers, truths)


@pytest.mark.parametrize("name, module", [("wer", "jiwer"), ("cer", "jiwer"), ("bleu", "sacrebleu")])
def test_a_missing_library_is_named_with_the_extra_that_brings_it(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"'{name}' is computed by {module}.*pip install modeling_mm\[train\]"):
        score(name, ["a"], ["a"])
    assert score("exact_match", ["a"], ["a"]) == 1.0


# ---- Answering ------------------------------------------------------------------------------------------------------


def test_a_batch_gives_the_answers_of_single_prompts():
    model = chat_model()
    single = [answer_prompts(model, processor(), [prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    for size in (3, len(PROMPTS)):
        assert answer_prompts(model, processor(), PROMPTS, batch_size=size, max_new_tokens=6) == single
    assert len(set(single)) > 4, "answers that differ, or the test says nothing"


def test_an_answer_is_as_long_as_asked_or_as_there_are_positions():
    model = chat_model()
    model.generation_config.eos_token_id = None
    inputs = prompt_inputs(processor(), PROMPTS[2:3])
    lengths = {}
    real, told = model.generate, {}
    model.generate = lambda **options: told.update(options) or real(**options)
    for asked in (3, 500):
        answer_batch(model, processor(), inputs, asked)
        lengths[asked] = told["max_new_tokens"]
    assert lengths == {3: 3, 500: 128 - inputs["input_ids"].shape[1]}
    model.config.text_position_encoding = "sinusoidal"
    model.generate = lambda **options: told.update(options) or inputs["input_ids"]
    answer_batch(model, processor(), inputs, 500)
    assert told["max_new_tokens"] == 500, "computed positions never run out"


def test_the_models_own_generation_config_counts_but_nothing_is_drawn():
    model = chat_model()
    plain = answer_prompts(model, processor(), PROMPTS, max_new_tokens=6)
    model.generation_config.do_sample, model.generation_config.temperature = True, 5.0
    assert answer_prompts(model, processor(), PROMPTS, max_new_tokens=6) == plain
    model.generation_config.suppress_tokens = processor().tokenizer(plain[0], add_special_tokens=False).input_ids
    assert answer_prompts(model, processor(), PROMPTS[:1], max_new_tokens=6) != plain[:1]


def test_beams_are_searched_where_they_are_asked_for():
    model = chat_model()
    inputs = prompt_inputs(processor(), PROMPTS)
    beams = answer_batch(model, processor(), inputs, 6, num_beams=4)
    sequences = model.generate(**inputs, max_new_tokens=6, num_beams=4)
    expected = processor().batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert beams == [text.strip() for text in expected]
    assert beams != answer_batch(model, processor(), inputs, 6)


def test_answering_leaves_no_gradient_and_evaluates():
    model = chat_model().train()
    answer_prompts(model, processor(), PROMPTS[:1], max_new_tokens=2)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
