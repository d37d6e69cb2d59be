"""Options of an answer for one row: what samples, what is penalized, and which log-probabilities are reported."""

import pytest
import torch
from transformers import GenerationConfig

from modeling_mm.serving.sampling import AnswerPenalties, RowSampler, Sampling
from tests.fakes.tiny_chats import chat_model, processor

VOCABULARY = 6


def penalized(ids, prompt_length, frequency=0.0, presence=0.0) -> list[list[float]]:
    penalties = AnswerPenalties(frequency, presence, prompt_length)
    return penalties(torch.tensor(ids), torch.zeros(len(ids), VOCABULARY)).tolist()


def test_penalties_are_subtracted_for_the_tokens_of_the_answer_alone():
    assert penalized([[1, 1, 2]], 3, 0.5, 0.25) == [[0.0] * VOCABULARY], "the first token has no penalty"
    assert penalized([[1, 1, 4, 2, 2]], 3, frequency=0.5) == [[0, 0, -1.0, 0, 0, 0]]
    assert penalized([[1, 1, 4, 2, 2]], 3, presence=0.5) == [[0, 0, -0.5, 0, 0, 0]]
    assert penalized([[1, 1, 4, 2, 2]], 3, -1.0, -0.5) == [[0, 0, 2.5, 0, 0, 0]]


def test_penalties_of_rows_padded_on_the_left_are_those_of_each_row_alone():
    pad = 0
    rows = penalized([[1, 2, 3, 4, 4], [pad, pad, 5, 5, 1]], 3, 1.0, 0.5)
    assert rows == [*penalized([[1, 2, 3, 4, 4]], 3, 1.0, 0.5), *penalized([[5, 5, 1]], 1, 1.0, 0.5)]
    assert rows[1] == [0, -1.5, 0, 0, 0, -1.5]


@pytest.mark.parametrize(
    ("request_options", "temperature"),
    [
        ({}, None),
        ({"frequency_penalty": 1, "presence_penalty": 1, "logit_bias": {3: 1.0}, "stop": ["a"], "n": 1}, None),
        ({"logprobs": True, "top_logprobs": 2, "max_tokens": 3, "top_p": None, "seed": None}, None),
        ({"top_p": 0.5}, 1.0),
        ({"top_k": 5}, 1.0),
        ({"seed": 0}, 1.0),
        ({"n": 2}, 1.0),
        ({"top_p": 0.5, "temperature": 0}, 0.0),
        ({"n": 2, "temperature": 0.5}, 0.5),
    ],
)
def test_a_sampling_option_without_a_temperature_samples_at_one(request_options, temperature):
    sampling = Sampling.of(request_options)
    assert sampling.temperature == temperature
    assert bool(sampling.config(GenerationConfig()).do_sample) == bool(temperature)


def test_the_generation_config_of_the_model_holds_where_a_request_says_nothing():
    default = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.5, top_k=7, num_beams=4)
    plain = Sampling.of({}).config(default)
    assert (plain.do_sample, plain.temperature, plain.top_p, plain.top_k, plain.num_beams) == (True, 0.7, 0.5, 7, 1)
    asked = Sampling.of({"temperature": 2, "top_p": 1, "top_k": 3}).config(default)
    assert (asked.temperature, asked.top_p, asked.top_k) == (2.0, 1.0, 3)
    assert [type(value) for value in (asked.temperature, asked.top_p)] == [float, float], "as generate wants them"
    assert Sampling.of({"temperature": 1}).config(GenerationConfig()).top_k == 0, "all tokens, not the 50 best"
    assert default.temperature == 0.7 and default.num_beams == 4


def test_each_answer_has_its_own_seed_and_the_first_that_of_one_answer():
    assert Sampling(seed=5).seeds() == [5] and Sampling(n=3).seeds() == [None] * 3
    seeds = Sampling(seed=5, n=3).seeds()
    assert seeds[0] == 5 and len(set(seeds)) == 3 and seeds == Sampling(seed=5, n=3).seeds()


# ---- One row --------------------------------------------------------------------------------------------------------


def sampler(seed=None, prompt=(10, 11, 12), **options) -> RowSampler:
    sampling = Sampling.of({"seed": seed, **options})
    return RowSampler(chat_model(), sampling, torch.tensor(prompt), seed)


def logits(**values) -> torch.Tensor:
    """Return logits (V,) of about 0, but for tokens by name: `t20=3.0`."""
    scores = torch.linspace(0, 1e-3, chat_model().config.text_config.vocab_size)
    for name, value in values.items():
        scores[int(name[1:])] = value
    return scores


def test_without_options_the_best_token_is_chosen():
    assert sampler().choose(logits(t20=3.0, t21=2.0)).token == 20


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-8, 1e-5, 0.005])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_temperatures_next_to_zero_choose_the_best_token(temperature, dtype):
    scores = logits(t20=900.0, t21=899.0).to(dtype)
    if dtype is torch.bfloat16:
        scores[21] = 890.0  # the nearest below 900 are 4 apart
    row = sampler(temperature=temperature, seed=1)
    assert [row.choose(scores).token for _ in range(5)] == [20] * 5


def test_a_penalty_lets_another_token_win_after_the_first():
    row = sampler(prompt=(20, 20, 20), frequency_penalty=2.0)
    assert [row.choose(logits(t20=3.0, t21=2.0)).token for _ in range(3)] == [20, 21, 20]


def test_draws_depend_on_the_seed_alone():
    flat = logits()

    def drawn(seed):
        row = sampler(seed=seed, temperature=1.0)
        torch.rand(7)  # what others draw meanwhile
        return [row.choose(flat).token for _ in range(8)]

    assert drawn(3) == drawn(3) != drawn(4)
    assert drawn(None) != drawn(None)
    row, before = sampler(seed=3, temperature=1.0), torch.random.get_rng_state()
    row.choose(flat)
    assert torch.equal(before, torch.random.get_rng_state()), "others draw from torch's generator"


def test_all_tokens_are_candidates_unless_the_request_says_otherwise():
    flat = torch.zeros(chat_model().config.text_config.vocab_size)
    row, few = sampler(seed=1, temperature=2.0), sampler(seed=1, temperature=2.0, top_k=2)
    assert len({row.choose(flat).token for _ in range(200)}) > 50
    scores = logits(t20=3.0, t21=3.0)
    assert {few.choose(scores).token for _ in range(40)} == {20, 21}


def test_log_probabilities_are_those_of_the_model():
    scores = logits(t20=3.0, t21=2.0)
    expected = scores.log_softmax(-1)
    row = sampler(frequency_penalty=2.0, logprobs=True, top_logprobs=2, logit_bias={22: 100.0})
    choice = row.choose(scores)
    assert choice.token == 22 and choice.logprob == pytest.approx(float(expected[22]))
    assert choice.top == [(20, pytest.approx(float(expected[20]))), (21, pytest.approx(float(expected[21])))]
    assert sampler(logprobs=True).choose(scores).top == [] and sampler().choose(scores).logprob is None


def test_placeholders_are_never_chosen():
    placeholder = chat_model().config.placeholder_ids[0]
    for options in ({}, {"temperature": 1.0, "seed": 1, "top_k": 1}):
        assert sampler(**options).choose(logits(**{f"t{placeholder}": 90.0, "t20": 30.0})).token == 20


def test_rows_are_chosen_as_generate_chooses_them():
    model, inputs = chat_model().eval(), processor()(text="a dog", return_tensors="pt")
    ids, row = inputs["input_ids"], RowSampler(model, Sampling(), inputs["input_ids"][0])
    expected = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None)[0, ids.shape[1] :]
    with torch.no_grad():
        for _ in range(5):
            row.choose(model(input_ids=row.ids).logits[0, -1])
    assert row.ids[0, ids.shape[1] :].tolist() == expected.tolist()
