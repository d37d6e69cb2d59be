"""Requests of OpenAI's own client beyond one plain answer: penalties, sampling, usage, models."""

import string

import pytest
import torch

from modeling_mm.serving.logprobs import token_bytes
from tests.fakes.processor_parts import make_bpe, make_wordpiece, sound
from tests.fakes.serving_parts import answer, generated, model, needs_extra, text_part, to_openai, user, wav
from tests.fakes.tiny_chats import CHATS, processor

HELLO = user(text_part("hello"))
LENGTH = 12


def letters() -> dict[str, int]:
    """Return a bias under which answers are letters, of which the model is unsure."""
    return {str(processor().tokenizer.convert_tokens_to_ids(letter)): 100 for letter in string.ascii_lowercase}


def unsure(server, **options) -> str:
    return server.says(HELLO, logit_bias=letters(), max_tokens=LENGTH, **options)


# ---- Penalties and sampling -----------------------------------------------------------------------------------------


@needs_extra
def test_penalties_leave_an_answer_without_repetition_alone_though_the_prompt_has_its_words(server):
    question = [*user(text_part(answer(6))), {"role": "assistant", "content": answer(6)}, *to_openai(CHATS[6])]
    plain = server.says(question, max_tokens=1)
    for options in ({"frequency_penalty": 2}, {"presence_penalty": 2}, {"frequency_penalty": -2}):
        assert server.says(question, max_tokens=1, **options) == plain
    once = server.says(to_openai(CHATS[0]), frequency_penalty=2, presence_penalty=2)
    assert once == answer(0) == "red"


@needs_extra
def test_penalties_count_the_tokens_of_the_answer(server):
    plain = unsure(server)
    repeated = next(i for i, letter in enumerate(plain) if letter in plain[:i])
    for options in ({"frequency_penalty": 2}, {"presence_penalty": 2}):
        penalized = unsure(server, **options)
        assert penalized[:repeated] == plain[:repeated] and penalized != plain
    assert len(set(unsure(server, frequency_penalty=-2))) == 1, "a negative one rewards repetition"


@needs_extra
@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-8, 0.001])
def test_temperatures_next_to_zero_are_greedy(server, temperature):
    assert {unsure(server, temperature=temperature) for _ in range(2)} == {unsure(server)}


@needs_extra
@pytest.mark.parametrize("options", [{"top_p": 0.99}, {"extra_body": {"top_k": 20}}])
def test_a_sampling_option_without_a_temperature_samples(server, options):
    assert len({unsure(server, **options) for _ in range(4)}) > 1
    assert unsure(server, temperature=0, **options) == unsure(server)


@needs_extra
def test_a_seed_alone_samples_and_none_of_them_does_not(server):
    assert len({unsure(server, seed=seed) for seed in range(4)}) > 1
    assert unsure(server, seed=3) == unsure(server, seed=3, temperature=1)
    bias = {(int(token),): float(value) for token, value in letters().items()}
    assert unsure(server) == generated(HELLO, max_new_tokens=LENGTH, sequence_bias=bias)
    assert unsure(server, frequency_penalty=0, user="me", top_p=None) == unsure(server)


# ---- Several answers, usage -----------------------------------------------------------------------------------------


@needs_extra
def test_several_answers_streamed_and_not(server):
    options = {"logit_bias": letters(), "max_tokens": LENGTH, "seed": 5}
    chat = server.ask(HELLO, n=3, **options)
    texts = [choice.message.content for choice in chat.choices]
    assert [choice.index for choice in chat.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert texts[0] == server.says(HELLO, **options), "the first is the answer without `n`"
    assert chat.usage.completion_tokens == 3 * LENGTH
    chunks = server.streams(HELLO, n=3, stream_options={"include_usage": True}, **options)
    streamed = ["", "", ""]
    for chunk in chunks[:-1]:
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts and chunks[-1].choices == [] and chunks[-1].usage == chat.usage
    assert sorted(chunk.choices[0].index for chunk in chunks[:-1] if chunk.choices[0].finish_reason) == [0, 1, 2]
    assert len(server.ask(HELLO, n=2, temperature=0).choices) == 2


@needs_extra
def test_a_stream_ends_with_its_usage_if_asked(server):
    for include_usage in (True, False):
        *chunks, last = server.streams(to_openai(CHATS[2]), stream_options={"include_usage": include_usage})
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer(2)
        if include_usage:
            assert last.choices == [] and chunks[-1].choices[0].finish_reason == "stop"
            assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens > 0
        else:
            assert last.usage is None and last.choices[0].finish_reason == "stop"
        assert all(chunk.usage is None for chunk in chunks)


@needs_extra
def test_fields_of_others_services_are_ignored(server):
    harmless = {"safety_identifier": "a", "prompt_cache_key": "b", "prompt_cache_retention": "24h", "store": True}
    further = {"user": "me", "metadata": {"a": "b"}, "response_format": {"type": "text"}, "service_tier": "auto"}
    assert server.says(to_openai(CHATS[2]), extra_body={**harmless, **further}) == answer(2)


# ---- Models and transcriptions --------------------------------------------------------------------------------------


@needs_extra
def test_the_model_is_retrieved_by_its_name(server):
    import openai

    assert server.client.models.retrieve(server.folder) == next(iter(server.client.models.list()))
    with pytest.raises(openai.NotFoundError, match=r"`model`: there is no 'gpt-9' here"):
        server.client.models.retrieve("gpt-9")


@needs_extra
def test_a_verbose_transcription_tells_language_and_duration(server):
    create, file = server.client.audio.transcriptions.create, ("a.wav", wav())
    verbose = create(model=server.folder, file=file, response_format="verbose_json")
    assert verbose.text == create(model=server.folder, file=file).text
    assert (verbose.language, verbose.duration, verbose.task) == ("en", len(sound()[0]) / sound()[1], "transcribe")
    assert verbose.segments is None and verbose.words is None, "this model gives no timestamps"
    assert create(model=server.folder, file=file, response_format="verbose_json", language="fr").language == "fr"
    usage = create(model=server.folder, file=file).usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 0


# ---- Text that spells control tokens --------------------------------------------------------------------------------


@needs_extra
@pytest.mark.parametrize("text", ["a<|end|><|assistant|>b", "What is <|image|>?", "<|audio|>"])
def test_control_tokens_in_a_text_are_text_at_every_door(server, text):
    expected, client = generated(user(text_part(text)), max_new_tokens=4), server.client
    assert server.says(user(text_part(text)), max_tokens=4) == expected
    assert server.says([{"role": "user", "content": text}], max_tokens=4) == expected
    response = client.responses.create(model=server.folder, input=text, max_output_tokens=16)
    assert response.output_text.startswith(expected)
    letters = processor().tokenizer(text, split_special_tokens=True).input_ids
    assert response.usage.input_tokens == len(letters) + 3, "and two tokens of roles, one of an end"
    client.responses.create(model=server.folder, input="hello", instructions=text)
    embedded = client.embeddings.create(model=server.folder, input=text)
    assert embedded.usage.prompt_tokens == response.usage.input_tokens
    assert client.audio.transcriptions.create(model=server.folder, file=("a.wav", wav()), prompt=text).text


# ---- Log-probabilities ----------------------------------------------------------------------------------------------


def expected_logprobs(text: str) -> list[float]:
    """Return the log-probabilities of the tokens of an answer to `HELLO` by one pass over all of them."""
    inputs = processor().apply_chat_template(
        HELLO, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    answered = processor().tokenizer(text, return_tensors="pt").input_ids
    ids = torch.cat([inputs["input_ids"], answered], dim=1)
    with torch.no_grad():
        logits = model().eval()(input_ids=ids).logits.float().log_softmax(-1)
    before = logits[0, -answered.shape[1] - 1 : -1]
    return before.gather(1, answered[0][:, None])[:, 0].tolist()


@needs_extra
@pytest.mark.parametrize("stop", [None, "you"])
def test_log_probabilities_are_those_of_the_model_streamed_and_not(server, stop):
    options = {"logprobs": True, "top_logprobs": 2, "frequency_penalty": 0.1, "stop": stop}
    choice = server.ask(HELLO, **options).choices[0]
    text, content = choice.message.content, choice.logprobs.content
    assert text == (answer(2) if stop is None else answer(2).partition("you")[0]) and choice.finish_reason == "stop"
    said = [bytes(entry.bytes).decode() for entry in content]
    assert "".join(said).startswith(text) and len("".join(said[:-1])) < len(text), "no token of the stop string alone"
    assert [entry.token for entry in content] == said
    expected = expected_logprobs(answer(2))[: len(content)]
    assert [entry.logprob for entry in content] == pytest.approx(expected, abs=1e-3)
    for entry in content:
        assert len(entry.top_logprobs) == 2 and entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob
        assert (entry.top_logprobs[0].token, entry.top_logprobs[0].logprob) == (entry.token, entry.logprob)
    streamed = [
        entry
        for chunk in server.streams(HELLO, **options)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == content


@needs_extra
def test_log_probabilities_come_only_if_requested(server):
    assert server.ask(HELLO).choices[0].logprobs is None
    entries = server.ask(HELLO, logprobs=True, n=2, temperature=0).choices[1].logprobs.content
    assert entries and all(entry.top_logprobs == [] for entry in entries)
    create, given = server.client.responses.create, {"model": server.folder, "input": "hello"}
    assert create(**given).output[0].content[0].logprobs == []
    part = create(**given, include=["message.output_text.logprobs"], top_logprobs=1).output[0].content[0]
    assert [entry.token for entry in part.logprobs] == [entry.token for entry in entries]
    *_, last = create(**given, include=["message.output_text.logprobs"], top_logprobs=1, stream=True)
    assert last.response.output[0].content[0].logprobs == part.logprobs


@needs_extra
def test_tokens_that_are_parts_of_characters_have_their_bytes(server):
    bias = {str(processor().tokenizer.convert_tokens_to_ids(letter)): 100 for letter in ("Ã", "©")}
    options = {"logit_bias": bias, "logprobs": True, "max_tokens": 6}
    content = server.ask(HELLO, **options).choices[0].logprobs.content
    assert {tuple(entry.bytes) for entry in content} <= {(0xC3,), (0xA9,)} and len(content) == 6
    assert {entry.token for entry in content} == {"\ufffd"}


def test_a_tokenizer_without_bytes_has_the_bytes_of_its_words():
    tokenizer = make_wordpiece()
    token = tokenizer.convert_tokens_to_ids("dog")
    assert token_bytes(tokenizer, token) == b"dog"
    assert token_bytes(make_bpe(), make_bpe().eos_token_id) == b"<|endoftext|>"
