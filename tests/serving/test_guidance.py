"""Classifier-free guidance in the running batch: the tokens of `generate`, beside neighbors of every other kind."""

import base64
import re
from functools import cache

import pytest
import torch

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.serving import engine as engines
from modeling_mm.serving.answering import make_config
from modeling_mm.serving.engine import Engine
from modeling_mm.serving.preparing import encode
from modeling_mm.serving.row import Row, items_of
from modeling_mm.serving.sampling import Sampling
from modeling_mm.serving.text_streamer import TokenStreamer
from tests.fakes.processor_parts import picture, sound
from tests.fakes.serving_parts import needs_extra, png
from tests.fakes.writers import writing

SECONDS = 60
IMAGE_TOKENS = 16 + 2
SEEN = {"type": "image", "image": picture("red", (9, 8))}
HEARD = {"type": "audio", "audio": sound()[0], "sampling_rate": sound()[1]}


@cache
def parts() -> tuple[MMForConditionalGeneration, MMProcessor]:
    """As those of `writer_server`."""
    return writing()


def model() -> MMForConditionalGeneration:
    return parts()[0].eval()


@cache
def inputs_of(text: str, *shown: str) -> dict[str, torch.Tensor]:
    media = [SEEN if name == "image" else HEARD for name in shown]
    turns = [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]
    return {name: torch.from_numpy(array) for name, array in encode(parts()[1], turns).items()}


# The prompt, what is shown with it, and the options. Guided and plain; that draw, speak and talk; that see and hear.
DRAWN = {"outputs": ("image",), "max_tokens": IMAGE_TOKENS}
ASKED = [
    (("Draw a dog",), {**DRAWN, "guidance_scale": 3.0}),
    (("Draw a dog",), {**DRAWN, "guidance_scale": 1.0}),
    (("hello there, what do you hear?", "audio", "image"), {"max_tokens": 30}),
    (("What do you see?", "image"), {**DRAWN, "guidance_scale": 7.5, "temperature": 1.0, "seed": 5}),
    (("What do you see?", "image"), {**DRAWN, "guidance_scale": 0.5, "temperature": 0.7, "seed": 6, "top_k": 4}),
    (("hello",), {"max_tokens": 12, "guidance_scale": 2.0}),
    (("Say: hello", "audio"), {"outputs": ("audio",), "max_tokens": 40, "guidance_scale": 4.0, "seed": 1}),
    (("a dog",), {"max_tokens": 45, "temperature": 1.5, "seed": 2}),
]


def make_row(prompt, options) -> Row:
    options = {"temperature": 1.0 if "seed" in options else 0.0, **options}
    sampling, inputs = Sampling(**options), inputs_of(*prompt)
    config = make_config(sampling, model(), inputs["input_ids"].shape[1], None)
    return Row(items_of(inputs), inputs, config, sampling, sampling.seed, TokenStreamer([].append))


def generated(prompt, options) -> list[int]:
    """The tokens of `generate`, alone, with the same options."""
    inputs, do_sample = inputs_of(*prompt), "seed" in options
    choice = {"temperature": options.get("temperature", 1.0), "top_k": options.get("top_k", 0)} if do_sample else {}
    if do_sample:
        torch.manual_seed(options["seed"])
    ids = model().generate(
        **inputs, max_new_tokens=options["max_tokens"], do_sample=do_sample, **choice,
        guidance_scale=options.get("guidance_scale"), output_modalities=options.get("outputs", ("text",)),
    )  # fmt: skip
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture
def engine():
    made = Engine(model())
    yield made
    made.stop()


def test_guided_rows_get_the_tokens_of_generate_beside_unlike_neighbors(engine):
    expected = [generated(*each) for each in ASKED]
    plain = [generated(prompt, {**options, "guidance_scale": None}) for prompt, options in ASKED]
    guided = [number for number, (_, options) in enumerate(ASKED) if options.get("guidance_scale", 1.0) != 1.0]
    assert [number for number in range(len(ASKED)) if expected[number] != plain[number]] == guided
    together = set()

    def watch(*_) -> None:
        together.add(len(engine))

    hook = model().register_forward_pre_hook(watch)
    rows = [make_row(*each) for each in ASKED]
    for row in rows:
        engine.submit(row)
    for row in rows:
        row.done.result(SECONDS)
    hook.remove()
    assert [row.streamer.tokens for row in rows] == expected
    assert max(together) == len(ASKED) + len(guided), "each guided row has one beside it"
    assert engine.call(lambda: (engine._batches, engine._waiting)).result(SECONDS) == ({}, [])


def test_guided_rows_that_draw_alone_get_the_range_of_their_codes(engine, monkeypatch):
    ranges, forward = [], MMForConditionalGeneration.forward

    def spied(self, *args, **kwargs):
        ranges.append((len(kwargs["input_ids"]), kwargs.get("token_range")))
        return forward(self, *args, **kwargs)

    row = make_row(*ASKED[0])
    expected = generated(*ASKED[0])
    monkeypatch.setattr(model(), "forward", spied.__get__(model()))
    engine.submit(row)
    row.done.result(SECONDS)
    assert row.streamer.tokens == expected
    tokens = parts()[1].written["image"].tokens
    assert ranges[1:-1] == [(2, (tokens.end_id, tokens.stop))] * (len(ranges) - 2), "one pass for both rows"


def test_a_guided_row_waits_for_two_places(monkeypatch):
    engine, most = Engine(model(), most_rows=3), []
    hook = model().register_forward_pre_hook(lambda *_: most.append(len(engine)))
    rows = [make_row(*ASKED[number]) for number in (0, 2, 3, 5)]
    for row in rows:
        engine.submit(row)
    for row in rows:
        row.done.result(SECONDS)
    hook.remove()
    engine.stop()
    assert max(most) == 3 and [row.streamer.tokens for row in rows] == [generated(*ASKED[i]) for i in (0, 2, 3, 5)]
    single = Engine(model(), most_rows=1)
    row = make_row(*ASKED[0])
    single.submit(row)
    row.done.result(SECONDS)
    single.stop()
    assert row.streamer.tokens == generated(*ASKED[0]), "a server of one row serves it, too"


def test_a_guided_row_that_fails_or_is_left_takes_its_neighbor_along(engine, monkeypatch):
    broken, whole, left = (make_row(*ASKED[number]) for number in (0, 2, 3))
    monkeypatch.setattr(broken.streamer, "take", lambda token: {}[token])
    taken = left.streamer.take
    monkeypatch.setattr(left.streamer, "take", lambda token: (taken(token), left.streamer.stop()))
    for row in (broken, whole, left):
        engine.submit(row)
    with pytest.raises(KeyError):
        broken.done.result(SECONDS)
    left.done.result(SECONDS)
    whole.done.result(SECONDS)
    assert len(left.streamer.tokens) == 1 and whole.streamer.tokens == generated(*ASKED[2])
    assert engine.call(lambda: engine._batches).result(SECONDS) == {}
    with monkeypatch.context() as patch:
        patch.setattr(engines.RunningBatch, "step", lambda self: 1 / 0)
        row = make_row(*ASKED[0])
        engine.submit(row)
        with pytest.raises(ZeroDivisionError):
            row.done.result(SECONDS)


# ---- Requests -------------------------------------------------------------------------------------------------------


@needs_extra
def test_images_of_requests_are_guided(writer_server):
    def image(**options) -> bytes:
        made = writer_server.client.images.generate(
            model=writer_server.folder, prompt="a dog", extra_body={"temperature": 0, **options}
        )
        return base64.b64decode(made.data[0].b64_json)

    (part,) = parts()[1].decode_media(generated(*ASKED[0]))
    assert image(guidance_scale=3.0) == png(part["image"]) != image()
    assert image(guidance_scale=1) == image()
    edits = [
        writer_server.client.images.edit(
            model=writer_server.folder, prompt="a dog", image=("a.png", png(SEEN["image"])),
            extra_body={"temperature": 0, "guidance_scale": scale},
        ).data[0].b64_json
        for scale in (3.0, 1.0)
    ]  # fmt: skip
    assert edits[0] != edits[1]


@needs_extra
@pytest.mark.parametrize("scale", ["high", -1, 101, True])
def test_a_wrong_scale_gets_400_and_the_reason(writer_server, scale):
    import openai

    expected = re.escape(f"`guidance_scale`: expected a number of at least 0 and at most 100, got {scale!r}")
    with pytest.raises(openai.BadRequestError, match=expected):
        writer_server.client.images.generate(
            model=writer_server.folder, prompt="x", extra_body={"guidance_scale": scale}
        )
