"""The engine: rows that share a running batch get the answers that `generate` gives to each alone."""

import time
from functools import cache

import pytest
import torch

from modeling_mm.serving import engine as engines
from modeling_mm.serving.answering import make_config
from modeling_mm.serving.engine import Engine, media_size
from modeling_mm.serving.preparing import encode
from modeling_mm.serving.row import Row, items_of
from modeling_mm.serving.sampling import Sampling
from modeling_mm.serving.text_streamer import TextStreamer
from tests.fakes.serving_parts import counted
from tests.fakes.tiny_chats import CHATS, chat_model, processor

SECONDS = 60


@cache
def model():
    made = chat_model().eval()
    made.generation_config.eos_token_id = None  # answers are as long as requested
    return made


@pytest.fixture
def engine():
    made = Engine(model())
    yield made
    made.stop()


def prompts() -> list[list[dict]]:
    """Conversations that differ in length, in media, and in the number of media."""
    ask = [chat["messages"][:1] for chat in CHATS]
    color, green, hello, hear, both = ask[:5]
    return [*ask, color + CHATS[0]["messages"][1:] + green, hello + CHATS[2]["messages"][1:] + both, hear + hear]


@cache
def inputs_of(number: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in encode(processor(), prompts()[number]).items()}


def make_row(number: int, sampling: Sampling, seed=None, pieces=None, **config) -> Row:
    inputs = inputs_of(number)
    config = make_config(sampling, model(), inputs["input_ids"].shape[1], None)
    streamer = TextStreamer(processor().tokenizer, (pieces if pieces is not None else []).append, sampling.stop)
    return Row(items_of(inputs), inputs, config, sampling, seed, streamer)


def alone(number: int, length: int) -> list[int]:
    inputs = inputs_of(number)
    tokens = model().generate(**inputs, max_new_tokens=length, do_sample=False)
    return tokens[0, inputs["input_ids"].shape[1] :].tolist()


def wait(*rows: Row) -> list[list[int]]:
    return [(row.done.result(SECONDS), row.streamer.tokens)[1] for row in rows]


def test_rows_of_unlike_lengths_and_media_get_the_tokens_that_each_gets_alone(engine):
    lengths = [3, 40, 17, 30, 9, 1, 25, 12, 33, 21, 14]
    rows = [make_row(number, Sampling(max_tokens=length)) for number, length in enumerate(lengths)]
    expected = [alone(number, length) for number, length in enumerate(lengths)]
    assert len({tuple(tokens[:3]) for tokens in expected if len(tokens) > 2}) > 3, "answers should differ"
    for row in rows:
        engine.submit(row)
    assert wait(*rows) == expected
    assert engine.call(lambda: (engine._batches, engine._waiting)).result(SECONDS) == ({}, [])


def test_rows_join_and_leave_a_batch_that_is_running(engine):
    lengths = [60, 20, 35, 5, 50, 10, 28, 44]
    rows = [make_row(number, Sampling(max_tokens=length)) for number, length in enumerate(lengths)]
    with counted(model(), seconds=0.01) as steps:
        for row in rows:
            engine.submit(row)
            taken = len(steps)
            while len(steps) < taken + 4 and not row.done.done():
                time.sleep(0.002)
        answers = wait(*rows)
        taken = len(steps)
    assert answers == [alone(number, length) for number, length in enumerate(lengths)]
    assert taken < sum(lengths) * 0.6, "rows should share steps"


def test_each_row_has_its_own_options(engine):
    hot, biased = Sampling(temperature=2.0, max_tokens=20), Sampling(logit_bias={7: 100.0}, max_tokens=4)
    penalized = Sampling(frequency_penalty=2.0, presence_penalty=1.0, max_tokens=20)

    def ask(together: bool) -> list[list[int]]:
        rows = [make_row(2, hot, 1), make_row(2, hot, 2), make_row(0, biased), make_row(3, penalized)]
        rows += [make_row(number, Sampling(max_tokens=20)) for number in (1, 4)]
        for row in rows:
            engine.submit(row)
            if not together:
                wait(row)
        return wait(*rows)

    answers = ask(together=True)
    assert answers == ask(together=False) and answers[0] != answers[1]
    assert answers[2] == [7] * 4 and len(set(answers[3])) > len(set(alone(3, 20)))
    assert answers[4] == alone(1, 20)


def test_stop_strings_and_log_probabilities_are_of_the_row(engine):
    pieces: list[str] = []
    whole = processor().tokenizer.decode(alone(2, 30), skip_special_tokens=True)
    stop = whole[len(whole) // 2 :][:4]
    stopped = make_row(2, Sampling(max_tokens=30, stop=(stop,)), pieces=pieces)
    logged = make_row(3, Sampling(max_tokens=5, top_logprobs=3))
    for row in (stopped, logged):
        engine.submit(row)
    wait(stopped, logged)
    assert "".join(pieces) == whole[: whole.index(stop)] and stopped.streamer.is_stopped
    assert [choice.token for choice in logged.choices] == alone(3, 5)
    assert all(choice.logprob == choice.top[0][1] < 0 and len(choice.top) == 3 for choice in logged.choices)


def test_a_row_that_fails_leaves_the_others_alone(engine, monkeypatch):
    broken, whole = make_row(2, Sampling(max_tokens=5)), make_row(7, Sampling(max_tokens=5))
    broken.config.eos_token_id = None
    monkeypatch.setattr(broken.streamer, "take", lambda token: {}[token])
    for row in (broken, whole):
        engine.submit(row)
    with pytest.raises(KeyError):
        broken.done.result(SECONDS)
    assert wait(whole) == [alone(7, 5)]
    with monkeypatch.context() as patch:
        patch.setattr(engines, "encode_items", lambda *_: 1 / 0)
        silent, seeing = make_row(2, Sampling(max_tokens=5)), make_row(0, Sampling(max_tokens=5))
        for row in (seeing, silent):
            engine.submit(row)
        with pytest.raises(ZeroDivisionError):
            seeing.done.result(SECONDS)
        assert wait(silent) == [alone(2, 5)]


def test_a_fault_between_rows_ends_those_that_run_and_not_the_engine(engine, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(engines.RunningBatch, "keep", lambda *_: 1 / 0)
        row = make_row(2, Sampling(max_tokens=5))
        engine.submit(row)
        with pytest.raises(ZeroDivisionError):
            row.done.result(SECONDS)
    row = make_row(2, Sampling(max_tokens=5))
    engine.submit(row)
    assert wait(row) == [alone(2, 5)]


def test_media_are_encoded_for_others_too(engine):
    inputs = inputs_of(10)
    given = {name: tensor for name, tensor in inputs.items() if name not in ("input_ids", "attention_mask")}
    expected = model().encode_media(**given)
    media = engine.encode(items_of(inputs)).result(SECONDS)
    assert all(torch.equal(media[name], expected[name]) for name in ("mask", "position", "modality"))
    torch.testing.assert_close(media.states, expected.states)
    assert engine.encode([]).result(SECONDS) is None


def test_a_row_whose_client_has_left_is_freed(engine):
    left, whole = make_row(2, Sampling(max_tokens=100)), make_row(7, Sampling(max_tokens=60))
    with counted(model(), seconds=0.01) as steps:
        for row in (left, whole):
            engine.submit(row)
        while len(left.streamer.tokens) < 3:
            time.sleep(0.002)
        left.streamer.stop()
        left.done.result(SECONDS)
        assert len(left.streamer.tokens) < 20 and not whole.done.done() and steps
        assert wait(whole) == [alone(7, 60)]
    waiting = make_row(0, Sampling(max_tokens=5))
    waiting.streamer.stop()
    engine.submit(waiting)
    assert wait(waiting) == [[]]


def test_rows_beyond_the_limits_wait(engine, monkeypatch):
    monkeypatch.setattr(engines, "MOST_TOKENS", 100)
    most = 0

    def watch(*_):
        nonlocal most
        most = max(most, len(engine))

    hook = model().register_forward_pre_hook(watch)
    rows = [make_row(number % 8, Sampling(max_tokens=15)) for number in range(12)]
    for row in rows:
        engine.submit(row)
    assert wait(*rows) == [alone(number % 8, 15) for number in range(12)]
    hook.remove()
    assert 1 < most <= 5


def test_media_that_differ_much_in_size_run_apart(engine, monkeypatch):
    monkeypatch.setattr(engines, "SHARED_MEDIA_TOKENS", 4)
    sizes = set()
    rows = [make_row(number, Sampling(max_tokens=15)) for number in range(11)]
    for row in rows:
        engine.submit(row)
    assert wait(*rows) == [alone(number, 15) for number in range(11)]
    sizes = {media_size(row) for row in rows}
    assert len(sizes) > 2 and media_size(rows[2]) == 0, sizes


def test_what_a_batch_cannot_take_is_generated_alone(engine):
    single = make_row(3, Sampling(max_tokens=12))
    single.config.cache_implementation = "static"
    shared = make_row(2, Sampling(max_tokens=12))
    assert single.needs_generate() and not shared.needs_generate()
    for row in (single, shared):
        engine.submit(row)
    assert wait(single, shared) == [alone(3, 12), alone(2, 12)]
    assert not single.choices and len(shared.choices) == 12


def test_answers_to_one_prompt_encode_its_media_once(engine):
    inputs, encoded = inputs_of(4), []
    hook = model().model.vision_tower.register_forward_pre_hook(lambda *_: encoded.append(1))
    first = make_row(4, Sampling(temperature=1.0, max_tokens=4), seed=1)
    second = Row(first.items, inputs, first.config, first.sampling, 2, TextStreamer(processor().tokenizer, [].append))
    for row in (first, second):
        engine.submit(row)
    wait(first, second)
    hook.remove()
    assert len(encoded) == 1


def test_functions_run_between_turns_and_a_stopped_engine_fails_what_is_left(engine):
    assert engine.call(lambda a: a + 1, 2).result(SECONDS) == 3
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 / 0).result(SECONDS)
    row = make_row(2, Sampling(max_tokens=100))
    with counted(model(), seconds=0.05):
        engine.submit(row)
        engine.stop()
        with pytest.raises(RuntimeError, match="shutting down"):
            row.done.result(SECONDS)
