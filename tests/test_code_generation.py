"""`generate` writes codes, as many as the grid has, inside blocks alone: unlike rows, beams, samples, caches."""

import random
import statistics
import time
from functools import cache, wraps

import pytest
import torch
from transformers.utils import logging

from modeling_mm import MMConfig, MMForConditionalGeneration
from modeling_mm.code_generation import BEFORE, BEHIND, IN_TEXT, BlockRules
from modeling_mm.code_tokens import CODE_LAYOUTS, CodeTokens, code_tokens_of, split_blocks
from modeling_mm.layers import Head, range_logits
from tests.fakes.codecs import tiny_codec
from tests.fakes.tiny import (
    END,
    IMAGE,
    PAD,
    difference,
    gpt2_config,
    image,
    open_gates,
    pad_images,
    pad_text,
    seeded,
    vit_config,
)

ENDS = [END]
GRID = (2, 3)
SIZE = 9  # codes of the image's codebook
START = 97  # ids 97 and 98 are the edges, 99 to 107 the codes
STOP = START + 2 + SIZE
DRAWS = {
    "image_codec_config": tiny_codec("emu3_vqgan").config,
    "image_code_range": [START, STOP],
    "image_code_grid": list(GRID),
}
SPEECH = STOP  # two codebooks of 6
SPEAKS = {
    "audio_codec_config": tiny_codec("mimi").config, "audio_code_range": [SPEECH, SPEECH + 14], "audio_codebooks": 2,
}  # fmt: skip


def writer(layout: str = "interleaved", **fields) -> MMForConditionalGeneration:
    text = gpt2_config(vocab_size=90)
    config = MMConfig.from_text_vision_audio_configs(text, vit_config(), cross_attention_layers=[1, 3])
    fields = {**config.to_dict(), **DRAWS, **SPEAKS, "audio_code_layout": layout, **fields}
    fields["text_config"] = {**fields["text_config"], "vocab_size": SPEECH + 14}
    model = seeded(lambda: open_gates(MMForConditionalGeneration(MMConfig(**fields))))
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = PAD, ENDS
    return model


written = cache(writer)


@pytest.fixture(scope="module")
def model() -> MMForConditionalGeneration:
    return written("interleaved")


def check_row(ids: list[int], config: MMConfig, outputs: tuple[str, ...]) -> list:
    """The blocks of a generated row, each of which is whole unless it is the last."""
    known = code_tokens_of(config)
    row = ids[: ids.index(PAD)] if PAD in ids else ids
    blocks = split_blocks(row, known)
    for number, block in enumerate(blocks):
        if block.tokens is None:
            assert all(token < START or token >= SPEECH + 14 for token in block.ids), row
            continue
        assert block.tokens.name in outputs
        codes, is_cut = block.tokens.to_codes(block.ids)  # in the right order
        if number < len(blocks) - 1:
            assert block.is_ended and not is_cut, row
        if block.tokens.steps is not None and block.is_ended:
            assert len(codes[0]) == block.tokens.steps
    return blocks


PROMPTS = [[5, 6, 7, START], [8, START, *[99] * 4], [1, 2, 3], [9, IMAGE, 4, SPEECH]]


def prompts(rows=PROMPTS, **more) -> dict[str, torch.Tensor]:
    images = pad_images([[image(0)] if IMAGE in row else [] for row in rows])
    return {**pad_text(rows, side="left"), **images, **more}


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "top_k": 3},
        {"do_sample": True, "num_return_sequences": 2, "top_p": 0.9, "temperature": 1.3},
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 2},
        {"do_sample": False, "cache_implementation": "static"},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "guidance_scale": 2.0},
        {"do_sample": False, "guidance_scale": 2.0, "num_beams": 3},
        {"do_sample": False, "repetition_penalty": 1.4, "min_new_tokens": 12},
        {"do_sample": False, "prompt_lookup_num_tokens": 3, "rows": PROMPTS[:1]},
    ],
    ids=lambda options: "-".join(f"{name}" for name in options),
)
@pytest.mark.parametrize("layout", CODE_LAYOUTS)
def test_blocks_are_whole_and_rows_may_be_unlike(layout, options):
    model = written(layout)
    options = dict(options)
    rows = options.pop("rows", PROMPTS)
    inputs, outputs = prompts(rows), ("text", "image", "audio")
    length = inputs["input_ids"].shape[1]
    ids = model.generate(**inputs, output_modalities=outputs, max_new_tokens=18, **options)
    copies = len(ids) // len(rows)
    kinds = set()
    for number, row in enumerate(ids.tolist()):
        prompt = rows[number // copies]
        blocks = check_row(prompt + row[length:], model.config, outputs)
        kinds |= {block.tokens.name for block in blocks if block.tokens is not None}
        if START in prompt:
            assert blocks[1].is_ended and len(blocks[1].ids) == 6
    assert {"image"} <= kinds
    if len(rows) > 1:
        assert kinds == {"image", "audio"}


def test_by_default_and_with_text_alone_there_are_no_codes(model):
    sampled = {"max_new_tokens": 25, "do_sample": True, "temperature": 50.0, "top_k": 0, "num_return_sequences": 4}
    for options in ({}, {"output_modalities": "text"}, {"output_modalities": ("text",), "num_beams": 4}):
        ids = model.generate(**prompts([[1, 2, 3]]), **{**sampled, **options})
        assert int(ids.max()) < START
    ids = model.generate(**prompts([[1, 2, 3]]), output_modalities=("text", "image"), **sampled)
    assert START in ids and int(ids.max()) < SPEECH


@pytest.mark.parametrize("beams", [1, 3])
def test_without_text_a_row_is_one_block(model, beams):
    inputs = prompts([[5, 6], [7], [8, 9, 10]])
    ids = model.generate(**inputs, output_modalities=("image",), max_new_tokens=30, num_beams=beams, do_sample=False)
    assert ids.shape[1] == 3 + 6 + 3
    assert set(ids[:, 3].tolist()) == {START} and set(ids[:, 10].tolist()) == {START + 1}
    assert set(ids[:, -1].tolist()) == {END}
    assert bool(((ids[:, 4:10] >= START + 2) & (ids[:, 4:10] < STOP)).all())


def test_the_default_is_of_the_generation_config(model):
    model = writer()
    model.generation_config.output_modalities = ["image"]
    ids = model.generate(**prompts([[5, 6]]), max_new_tokens=30, do_sample=False)
    assert ids[0, 2] == START and ids[0, -1] == END


def test_nothing_is_added_to_options_that_name_no_outputs(model):
    """Pipelines before 5.20 prepare a generation config, and refuse what they do not know."""
    assert model._prepare_generation_config(None)[1] == {}
    assert model._prepare_generation_config(None, output_modalities=("image",))[1].keys() == {"block_rules"}


def test_outputs_that_the_model_lacks(model):
    with pytest.raises(ValueError, match=r"output_modalities has 'video', but this model writes text, image, audio"):
        model.generate(**prompts([[5]]), output_modalities=("text", "video"))
    with pytest.raises(ValueError, match="output_modalities is empty"):
        model.generate(**prompts([[5]]), output_modalities=())
    with pytest.raises(ValueError, match="ends by eos_token_id, which is not set"):
        BlockRules(code_tokens_of(model.config), ("image",), 125, [])
    config = MMConfig.from_text_vision_audio_configs(gpt2_config())
    plain = seeded(lambda: MMForConditionalGeneration(config))
    with pytest.raises(ValueError, match=r"this model writes text\. Give it a codec by model\.add_codec"):
        plain.generate(torch.tensor([[5]]), output_modalities=("text", "image"))
    assert plain.generate(torch.tensor([[5]]), output_modalities=("text",), max_new_tokens=1).shape == (1, 2)


def test_a_row_is_the_same_alone_and_among_others(model):
    options = {"output_modalities": ("text", "image", "audio"), "max_new_tokens": 20, "do_sample": False}
    together = model.generate(**prompts(), **options)[:, 6:]
    for number, row in enumerate(PROMPTS):
        alone = model.generate(**prompts([row]), **options)[0, len(row) :]
        assert together[number, : len(alone)].tolist() == alone.tolist()


def test_a_block_that_is_cut_is_reported(model, caplog):
    logging.enable_propagation()
    try:
        inputs = prompts([[5, START], [8, START, *[99] * 4]])
        model.generate(**inputs, output_modalities=("text", "image"), max_new_tokens=4, do_sample=False)
    finally:
        logging.disable_propagation()
    messages = [record.message for record in caplog.records if "ends inside" in record.message]
    assert len(messages) == 1
    assert "Row 0 ends inside its image, behind 4 of 6 codes; raise max_new_tokens" in messages[0]


# ---- States, against a plain walk over the tokens -------------------------------------------------------------------


@pytest.mark.parametrize("layout", CODE_LAYOUTS)
@pytest.mark.parametrize("codebooks", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [None, (2, 2)])
def test_what_is_allowed_is_what_some_block_continues_with(layout, codebooks, grid):
    tokens = CodeTokens("audio", 10, 3, codebooks, grid=grid, layout=layout)
    rules = BlockRules({"audio": tokens}, ("text", "audio"), tokens.stop + 5, [1])
    draw = random.Random(codebooks)
    expected: dict[tuple[int, ...], set[int]] = {}
    for steps in [4] if grid else range(1, 9):
        codes = [[draw.randrange(3) for _ in range(steps)] for _ in range(codebooks)]
        books = [-1 if each == tokens.end_id else (each - 12) // 3 for each in tokens.to_ids(codes)[1:]]
        for place in range(len(books)):
            expected.setdefault(tuple(books[:place]), set()).add(books[place])
    longest = 4 * codebooks  # behind these, blocks that are longer than the ones above may go on
    checked = 0
    for before, books in expected.items():
        if len(before) > longest:
            continue
        ids = [1, 2, 10, *(12 + 3 * book + draw.randrange(3) for book in before)]
        state = rules.state(torch.tensor([ids]), 1)
        allowed = {(-1 if token == tokens.end_id else (token - 12) // 3) for token in range(tokens.stop + 5)
                   if not rules.banned[state[0], token]}  # fmt: skip
        assert allowed == books, (before, allowed)
        checked += 1
    assert checked > 4


def test_states_outside(model):
    known = code_tokens_of(model.config)
    rules = BlockRules(known, ("image",), 125, ENDS)
    block = [START, *[99] * 6, START + 1]
    ids = torch.tensor([[*block, 5], [5, *block]])
    assert rules.state(ids, 9).tolist() == [BEFORE, BEFORE]  # what is drawn in the prompt does not count
    assert rules.state(ids, 1).tolist() == [BEHIND, BEHIND]
    assert BlockRules(known, ("text", "image"), 125, ENDS).state(ids, 0).tolist() == [IN_TEXT, IN_TEXT]
    assert (~rules.banned[BEHIND]).nonzero().flatten().tolist() == ENDS
    assert (~rules.banned[BEFORE]).nonzero().flatten().tolist() == [START]


# ---- The range of the head ------------------------------------------------------------------------------------------


def spy_ranges(model, monkeypatch) -> list:
    seen, forward = [], type(model).forward

    @wraps(forward)
    def spied(self, *args, **kwargs):
        seen.append(kwargs.get("token_range"))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", spied)
    return seen


@pytest.mark.parametrize("guidance", [None, 1.5])
def test_inside_blocks_only_their_range_of_the_head_is_computed(model, monkeypatch, guidance):
    inputs = prompts([[5, START], [8, START]])
    options = {"output_modalities": ("image", "text"), "max_new_tokens": 8, "do_sample": False}
    options |= {"guidance_scale": guidance, "output_scores": True, "return_dict_in_generate": True}
    monkeypatch.setattr(BlockRules, "common_range", lambda *args: None)
    whole = model.generate(**inputs, **options)
    monkeypatch.undo()
    seen = spy_ranges(model, monkeypatch)
    found = model.generate(**inputs, **options)
    passes = 1 if guidance is None else 2
    assert seen == [None] * passes + [(START + 1, STOP)] * 6 * passes + [None] * passes
    assert found.sequences.tolist() == whole.sequences.tolist()
    for step, (one, other) in enumerate(zip(found.scores, whole.scores, strict=True)):
        assert torch.equal(one.isinf(), other.isinf()), step
        assert difference(one.softmax(-1), other.softmax(-1)) < 1e-5


def test_rows_of_which_one_is_in_text_need_the_whole_head(model, monkeypatch):
    seen = spy_ranges(model, monkeypatch)
    options = {"output_modalities": ("image", "text"), "max_new_tokens": 3, "do_sample": False}
    model.generate(**prompts([[5, START], [8, 6]]), **options)
    assert seen == [None] * 3


def test_a_stray_code_at_the_end_of_a_prompt_is_no_block(model):
    ids = model.generate(**prompts([[5, 100]]), output_modalities=("text", "image"), max_new_tokens=2, do_sample=False)
    assert ids[0, 2] < START + 1


def test_the_range_of_a_head_and_a_head_that_cannot_be_cut():
    head = seeded(lambda: Head(8, 20, bias=False))
    states = torch.randn(2, 3, 8)
    logits = range_logits(head, states, (4, 9))
    assert difference(logits[..., 4:9], head(states)[..., 4:9]) < 1e-6
    assert bool(logits[..., :4].isinf().all()) and bool(logits[..., 9:].isinf().all())
    plain = torch.nn.Linear(8, 20, bias=False)  # stands for an adapted one
    assert torch.equal(range_logits(plain, states, (4, 9)), plain(states))
    half = head.to(torch.bfloat16)
    with torch.no_grad():
        part = range_logits(half, states.to(torch.bfloat16), (4, 9))
        assert difference(part[..., 4:9], half(states.to(torch.bfloat16))[..., 4:9]) < 1e-2


def test_guidance_follows_beams_and_moves_scores_from_those_without_the_prompt(model):
    """Scores are those of two plain passes, with and without the prompt, whichever beam a row came from."""
    inputs = prompts([[5, 6, START]])
    options = {"output_modalities": ("text", "image"), "max_new_tokens": 4, "do_sample": False, "guidance_scale": 3.0}
    outputs = model.generate(
        **inputs, **options, num_beams=3, output_scores=True, return_dict_in_generate=True, num_return_sequences=1
    )
    best = outputs.sequences[0]
    codes = slice(START + 2, STOP)
    total = 0.0
    with torch.no_grad():
        for step in range(4):
            with_prompt = model(best[None, : 3 + step]).logits[0, -1].log_softmax(-1)
            without = model(best[None, 2 : 3 + step]).logits[0, -1].log_softmax(-1)
            guided = (without + 3.0 * (with_prompt - without))[codes].log_softmax(-1)
            total += float(guided[best[3 + step] - START - 2])
    assert abs(total / 4 - float(outputs.sequences_scores[0])) < 1e-4


@pytest.mark.slow
def test_codes_are_generated_1_3_times_as_fast_by_their_range_of_a_head_of_50000():
    """CPU time of 8 rows of 32 codes, the median of 5 runs each, taken in turn."""
    first = 50_000
    text = gpt2_config(vocab_size=first, n_embd=256, n_head=4, n_positions=128)
    fields = MMConfig.from_text_vision_audio_configs(text).to_dict()
    start = fields["text_config"]["vocab_size"]
    fields["text_config"] = {**fields["text_config"], "vocab_size": start + 2 + 1024}
    codes = {**DRAWS, "image_code_range": [start, start + 2 + 1024], "image_code_grid": [4, 8]}
    model = seeded(lambda: MMForConditionalGeneration(MMConfig(**{**fields, **codes})))
    prompt = torch.tensor([[5, 6, start]] * 8)

    def seconds() -> float:
        begin = time.process_time()
        model.generate(prompt, output_modalities=("text", "image"), max_new_tokens=32, do_sample=False, pad_token_id=0)
        return time.process_time() - begin

    times: dict[str, list[float]] = {"range": [], "whole": []}
    for _ in range(5):
        times["range"].append(seconds())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BlockRules, "common_range", lambda *args: None)
            times["whole"].append(seconds())
    ratio = statistics.median(times["whole"]) / statistics.median(times["range"])
    assert ratio > 1.3, times
