"""Answers in batches."""

import torch

from modeling_mm.data import to_row
from modeling_mm.evaluation import free_positions, generate_answers, prompt_inputs
from tests.fakes.tiny_chats import CHATS, chat_model, processor

PROMPTS = [chat["messages"][:1] for chat in CHATS]


def test_a_batch_gives_the_answers_of_single_prompts_in_their_order():
    model = chat_model()
    single = [generate_answers(model, processor(), [prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    for size in (3, len(PROMPTS)):
        assert generate_answers(model, processor(), PROMPTS, batch_size=size, max_new_tokens=6) == single
    assert len(set(single)) > 4, "answers that differ, or the test says nothing"
    rows = [to_row(chat) for chat in CHATS]
    assert generate_answers(model, processor(), rows, max_new_tokens=6) == single, "their answers are not shown"


def test_prompts_of_similar_length_share_a_batch():
    def user(text):
        return [{"role": "user", "content": text}]

    batches = []

    def prompt_batch(prompts):
        batches.append([len(prompt[0]["content"]) for prompt in prompts])
        return prompt_inputs(processor(), prompts)

    prompts = [user("a " * count) for count in (9, 1, 8, 2)]
    generate_answers(chat_model(), processor(), prompts, 2, max_new_tokens=1, prompt_batch=prompt_batch)
    assert batches == [[2, 4], [16, 18]]


def test_an_answer_is_as_long_as_asked_or_as_there_are_positions():
    model = chat_model()
    model.generation_config.eos_token_id = None
    inputs = prompt_inputs(processor(), PROMPTS[2:3])
    limits, generate = [], model.generate
    model.generate = lambda **options: limits.append(options["max_new_tokens"]) or generate(**options)
    for asked in (3, 500):
        generate_answers(model, processor(), PROMPTS[2:3], max_new_tokens=asked)
    assert limits == [3, 128 - inputs["input_ids"].shape[1]]
    assert (free_positions(model.config, 100), free_positions(model.config, 200)) == (28, 0)
    model.config.text_position_encoding = "sinusoidal"
    assert free_positions(model.config, 200) == float("inf"), "computed positions never run out"


def test_the_models_own_generation_config_counts_but_nothing_is_drawn():
    model = chat_model()
    plain = generate_answers(model, processor(), PROMPTS, max_new_tokens=6)
    model.generation_config.do_sample, model.generation_config.temperature = True, 5.0
    assert generate_answers(model, processor(), PROMPTS, max_new_tokens=6) == plain
    model.generation_config.suppress_tokens = processor().tokenizer(plain[0], add_special_tokens=False).input_ids
    assert generate_answers(model, processor(), PROMPTS[:1], max_new_tokens=6) != plain[:1]


def test_beams_are_searched_where_they_are_asked_for():
    model = chat_model()
    inputs = prompt_inputs(processor(), PROMPTS)
    beams = generate_answers(model, processor(), PROMPTS, max_new_tokens=6, num_beams=4)
    sequences = model.generate(**inputs, max_new_tokens=6, num_beams=4)
    expected = processor().batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert beams == [text.strip() for text in expected]
    assert beams != generate_answers(model, processor(), PROMPTS, max_new_tokens=6)


def test_answering_leaves_no_gradient_and_evaluates():
    model = chat_model().train()
    generate_answers(model, processor(), PROMPTS[:1], max_new_tokens=2)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
