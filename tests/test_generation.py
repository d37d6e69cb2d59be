"""generation.py: media are encoded once a generation, their keys and values too; where it starts without text."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, GenerationConfig, StaticCache
from transformers.utils import logging

from modeling_mm import MMForConditionalGeneration, layers
from modeling_mm.outputs import MMMediaOutput
from tests.fakes.tiny import (
    AUDIO,
    IMAGE,
    PAD,
    USER,
    WIDTH,
    difference,
    gpt2,
    image,
    inputs,
    joined,
    open_gates,
    opened,
    pad_audio,
    pad_images,
    sound,
)

NEW = 6
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
ROWS = [[5, IMAGE, 6, AUDIO], [7, IMAGE, IMAGE, 8]]


@pytest.fixture(scope="module")
def model():
    return opened()


class Calls:
    """Counts calls of modules, and the items of each, while it is open."""

    def __init__(self, **modules):
        self.items = {name: [] for name in modules}
        self.handles = [
            module.register_forward_pre_hook(self.count(name), with_kwargs=True) for name, module in modules.items()
        ]

    def count(self, name):
        return lambda module, args, kwargs: self.items[name].append(len([*args, *kwargs.values()][0]))

    def __enter__(self):
        return self.items

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


WAYS = {
    "greedy": {},
    "greedy without cache": {"use_cache": False},
    "sampling, 3 a row": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "beams, 2 a row": {"num_beams": 4, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_each_item_enters_its_encoder_once_a_generation(model, way):
    """Three pictures and one sound, however many beams or samples are drawn from them."""
    calls = Calls(
        vision=model.model.vision_tower,
        audio=model.model.audio_tower,
        vision_connector=model.model.vision_connector,
        audio_connector=model.model.audio_connector,
    )
    with calls as items:
        model.generate(**inputs(ROWS, side="left"), **{**GREEDY, **WAYS[way]})
    assert items == {"vision": [3], "audio": [1], "vision_connector": [3], "audio_connector": [1]}


@pytest.mark.parametrize("way", [way for way in WAYS if way != "greedy without cache"])
def test_keys_and_values_of_media_are_projected_once_a_generation(model, way):
    blocks = model.model.language_model.cross_blocks
    calls = Calls(
        **{f"media {name}": block.cross_attn.c_attn for name, block in blocks.items()},
        **{f"text {name}": block.cross_attn.q_attn for name, block in blocks.items()},
    )
    with calls as items:
        model.generate(**inputs(ROWS, side="left"), **{**GREEDY, **WAYS[way]})
    assert {name: len(rows) for name, rows in items.items()} == {
        "media 1": 1,
        "media 3": 1,
        "text 1": NEW,
        "text 3": NEW,
    }


@pytest.mark.parametrize("way", ["greedy", "beams", "static cache", "greedy without cache"])
def test_encoded_media_give_what_raw_media_give(model, way):
    batch = inputs(ROWS, side="left")
    text = {name: batch.pop(name) for name in ("input_ids", "attention_mask")}
    kwargs = {**GREEDY, **WAYS[way]}
    with torch.no_grad():
        media = model.encode_media(**batch)
    with Calls(vision=model.model.vision_tower) as items:
        got = model.generate(**text, media=media, **kwargs)
    assert items == {"vision": []}
    assert torch.equal(got, model.generate(**text, **batch, **kwargs))


def test_the_media_given_are_not_changed(model):
    batch = inputs(ROWS, side="left")
    text = {name: batch.pop(name) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        media = model.encode_media(**batch)
    before = media.map(torch.clone)
    model.generate(**text, media=media, num_beams=3, **GREEDY)
    assert all(torch.equal(one, other) for one, other in zip(media.tensors, before.tensors, strict=True))


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
def test_the_cache_changes_no_token_and_the_media_do(model, kwargs):
    batch = inputs(ROWS, side="left")
    tokens = model.generate(**batch, **GREEDY, **kwargs)
    assert torch.equal(tokens, model.generate(**batch, **{**GREEDY, **kwargs, "use_cache": False}))
    others = inputs(ROWS, side="left", seed=50)
    assert not torch.equal(tokens, model.generate(**others, **GREEDY, **kwargs))


def test_greedy_tokens_are_those_of_a_loop_over_forward(model):
    batch = inputs([[5, IMAGE, 6, AUDIO]])
    generated = model.generate(**batch, **GREEDY)
    ids = batch["input_ids"]
    with torch.no_grad():
        for _ in range(NEW):
            logits = model(**{**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits[:, -1]
            logits[:, [IMAGE, AUDIO]] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generated, ids)


def test_beams_of_a_row_are_those_of_the_row_alone(model):
    batch = inputs(ROWS, side="left")
    together = model.generate(**batch, **GREEDY, num_beams=3)
    for i in range(2):
        alone = model.generate(**{name: tensor[i : i + 1] for name, tensor in batch.items()}, **GREEDY, num_beams=3)
        assert torch.equal(together[i : i + 1], alone)


@pytest.fixture
def eager_to_say_placeholders(model):
    """The model with a head that finds nothing likelier than a placeholder."""
    weights = model.lm_head.weight
    kept = weights.detach().clone()
    bias = torch.zeros(len(weights))
    bias[[IMAGE, AUDIO]] = 100.0
    handle = model.lm_head.register_forward_hook(lambda module, args, output: output + bias)
    yield model
    handle.remove()
    assert torch.equal(weights, kept)


SAYING = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 3},
    "sampling": {"do_sample": True, "num_return_sequences": 4},
    "the likeliest 3": {"do_sample": True, "top_k": 3, "num_return_sequences": 4},
    "the likeliest": {"do_sample": True, "top_k": 1},
    "a nucleus": {"do_sample": True, "top_k": 0, "top_p": 0.5},
    "min_p": {"do_sample": True, "top_k": 0, "min_p": 0.1},
    "another generation config": {"generation_config": GenerationConfig(pad_token_id=PAD)},
}


@pytest.mark.parametrize("way", SAYING)
def test_placeholders_are_never_generated(eager_to_say_placeholders, way):
    """Even where nothing is likelier: one would stand for media that were not given."""
    kwargs = {**GREEDY, **SAYING[way]}
    if "generation_config" in kwargs:
        del kwargs["do_sample"]
    tokens = eager_to_say_placeholders.generate(**inputs([[5, 6]]), **kwargs)
    assert tokens.shape[1] == 2 + NEW
    assert not set(tokens[:, 2:].flatten().tolist()) & {IMAGE, AUDIO}


@pytest.mark.parametrize("way", ["greedy", "the likeliest"])
def test_the_likeliest_of_what_may_be_said_is_said(eager_to_say_placeholders, way):
    model, batch = eager_to_say_placeholders, inputs([[5, 6]])
    with torch.no_grad():
        logits = model(**batch).logits[0, -1]
    logits[[IMAGE, AUDIO]] = -torch.inf
    tokens = model.generate(**batch, **{**GREEDY, **SAYING[way], "max_new_tokens": 1})
    assert tokens[0, -1] == logits.argmax()


# ---- Without text ---------------------------------------------------------------------------------------------------


def test_media_and_no_text_start_from_the_placeholders_images_first(model):
    images, sounds = pad_images([[image(0)], [image(1), image(2)]]), pad_audio([[sound(0)], []])
    tokens = model.generate(**images, **sounds, **GREEDY)
    assert tokens[:, :2].tolist() == [[IMAGE, AUDIO], [IMAGE, IMAGE]]
    assert tokens.shape == (2, 2 + NEW)
    text = {"input_ids": tokens[:, :2], "attention_mask": torch.ones(2, 2).long()}
    with_text = model.generate(**text, **images, **sounds, **GREEDY)
    assert torch.equal(tokens, with_text)


def test_rows_with_fewer_media_are_padded_on_the_left(model):
    images = pad_images([[image(0)], [image(1), image(2)]])
    tokens = model.generate(**images, **GREEDY)
    assert tokens[:, :2].tolist() == [[PAD, IMAGE], [IMAGE, IMAGE]]
    alone = model.generate(pixel_values=image(0)[None], **GREEDY)
    assert alone[:, 0].tolist() == [IMAGE]
    assert torch.equal(tokens[0, 1:], alone[0])


OF_A_TEXT = {
    "attention_mask": lambda cache: {"attention_mask": torch.ones(1, 1)},
    "position_ids": lambda cache: {"position_ids": torch.tensor([[3]])},
    "past_key_values": lambda cache: {"past_key_values": cache},
}


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("name", OF_A_TEXT)
def test_media_alone_go_with_nothing_of_a_text(model, name, encoded):
    cache = model(torch.tensor([[5, 6]]), use_cache=True).past_key_values
    media = pad_images([[image(0)]])
    media = {"media": model.encode_media(**media)} if encoded else media
    message = rf"from their placeholders, but {name} of a text came.*Pass input_ids with a placeholder"
    for call in (model, model.model, lambda **kwargs: model.generate(**kwargs, **GREEDY)):
        with pytest.raises(ValueError, match=message):
            call(**media, **OF_A_TEXT[name](cache))


def test_media_alone_may_bring_a_cache_that_is_empty(model):
    media = pad_images([[image(0)]])
    with torch.no_grad():
        expected, got = model(**media).logits, model(**media, past_key_values=DynamicCache(), use_cache=True).logits
    assert torch.equal(got, expected)
    assert torch.equal(
        model.generate(**media, past_key_values=DynamicCache(), **GREEDY), model.generate(**media, **GREEDY)
    )


@pytest.mark.parametrize("kwargs", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
def test_beams_and_samples_start_without_text_too(model, kwargs):
    tokens = model.generate(**pad_images([[image(0)], [image(1)]]), **{**GREEDY, **kwargs})
    assert set(tokens[:, 0].tolist()) == {IMAGE} and tokens.shape[1] == 1 + NEW


def test_encoded_media_without_text_start_from_the_placeholders(model):
    with torch.no_grad():
        media = model.encode_media(**pad_images([[image(0)]]))
    assert torch.equal(model.generate(media=media, **GREEDY), model.generate(**pad_images([[image(0)]]), **GREEDY))


def test_a_row_with_neither_text_nor_media_is_refused_by_its_number(model):
    with pytest.raises(ValueError, match="Row 1 has neither text nor media"):
        model.generate(**pad_images([[image(0)], []]), **GREEDY)


def test_both_raw_and_encoded_media_are_refused(model):
    with torch.no_grad():
        media = model.encode_media(**pad_images([[image(0)]]))
    with pytest.raises(ValueError, match=r"Pass either media or the raw pixel_values, image_mask, not both"):
        model.generate(torch.tensor([[IMAGE]]), media=media, **pad_images([[image(0)]]), **GREEDY)
    with pytest.raises(ValueError, match="not both"):
        model(torch.tensor([[IMAGE]]), media=media, **pad_images([[image(0)]]))


def test_media_without_placeholders_are_refused(model):
    with pytest.raises(ValueError, match=r"Row 0: 0 image placeholder"):
        model.generate(torch.tensor([[5, 6]]), **pad_images([[image(0)]]), **GREEDY)


@pytest.mark.parametrize(
    "row", [[5, IMAGE, 6, IMAGE], [5, AUDIO, 6, AUDIO], [5, IMAGE, 6, AUDIO], [5, USER, IMAGE, 6]]
)
def test_generate_from_embeddings(model, row):
    batch = inputs([row])
    expected = model.generate(**batch, **GREEDY)
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    got = model.generate(inputs_embeds=embeds, **batch, **GREEDY)
    assert torch.equal(got, expected[:, 4:])


# ---- A conversation that goes on ------------------------------------------------------------------------------------


def test_a_conversation_goes_on_from_its_cache(model):
    """The second turn is given the whole conversation and the first turn's cache; its new picture is seen, once."""
    first = inputs([[5, IMAGE, 6]], images=[[image(0)]])
    one = model.generate(**first, **GREEDY, return_dict_in_generate=True)
    second_ids = torch.cat([one.sequences, torch.tensor([[7, IMAGE, 8]])], dim=1)
    second = {"input_ids": second_ids, "attention_mask": torch.ones_like(second_ids)}
    both = pad_images([[image(0), image(1)]])
    expected = model.generate(**second, **both, **GREEDY)
    with Calls(media=model.model.language_model.cross_blocks["1"].cross_attn.c_attn) as items:
        got = model.generate(**second, **both, past_key_values=one.past_key_values, **GREEDY)
    assert torch.equal(got, expected)
    assert len(items["media"]) == 1
    other = model.generate(**second, **pad_images([[image(0), image(9)]]), **GREEDY)
    assert not torch.equal(other, expected)


def test_a_later_turn_without_new_media_remembers_the_old(model):
    first = inputs([[5, IMAGE, 6]], images=[[image(0)]])
    one = model.generate(**first, **GREEDY, return_dict_in_generate=True)
    ids = torch.cat([one.sequences, torch.tensor([[7, 8]])], dim=1)
    second = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(**second, **pad_images([[image(0)]]), **GREEDY)
    again = model.generate(**second, **pad_images([[image(0)]]), past_key_values=one.past_key_values, **GREEDY)
    assert torch.equal(again, expected)


def test_a_later_turn_may_leave_out_media_that_the_cache_remembers(model):
    first = inputs([[5, IMAGE, 6]], images=[[image(0)]])
    one = model.generate(**first, **GREEDY, return_dict_in_generate=True)
    ids = torch.cat([one.sequences, torch.tensor([[7, 8]])], dim=1)
    second = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = model.generate(**second, **pad_images([[image(0)]]), **GREEDY)
    assert torch.equal(model.generate(**second, past_key_values=one.past_key_values, **GREEDY), expected)


def media_of(position, modality=None) -> MMMediaOutput:
    """Media tokens of items, images by default; an audio window is of modality 1."""
    position = torch.tensor(position)
    modality = torch.zeros_like(position) if modality is None else torch.tensor(modality)
    return MMMediaOutput(torch.randn(*position.shape, 4), position >= 0, position, modality)


def test_unseen_media_are_those_whose_placeholder_is_among_the_new_tokens(model):
    media = media_of([[0, 0, 1, 1], [0, 0, -1, -1]])
    ids = torch.tensor([[IMAGE, 5, 6, IMAGE, 7], [5, 5, 6, IMAGE, 7]])
    unseen = model.unseen_media(media, ids, 2)
    assert unseen.mask.tolist() == [[False, False, True, True], [True, True, False, False]]
    assert unseen.position.tolist() == [[-1, -1, 0, 0], [0, 0, -1, -1]]
    assert torch.equal(unseen.states, media.states) and media.position[0].tolist() == [0, 0, 1, 1]


def test_unseen_media_count_each_modality_by_itself(model):
    media = media_of([[0, 1, 0, 1]], [[0, 0, 1, 1]])
    unseen = model.unseen_media(media, torch.tensor([[IMAGE, AUDIO, AUDIO, IMAGE]]), 1)
    assert unseen.mask.tolist() == [[False, True, False, False]]
    unseen = model.unseen_media(media, torch.tensor([[IMAGE, AUDIO, AUDIO, IMAGE]]), 2)
    assert unseen.mask.tolist() == [[False, True, False, True]] and unseen.position.tolist() == [[-1, 0, -1, 0]]


def test_all_media_are_unseen_at_the_start_and_none_once_all_placeholders_are_past(model):
    media, ids = media_of([[0, 0]]), torch.tensor([[5, IMAGE, 6]])
    for text in (ids, model.get_input_embeddings()(ids)):
        assert model.unseen_media(media, text, 3) is media
        assert model.unseen_media(media, text, 1) is None


def test_media_given_alone_to_an_older_conversation_are_the_new_ones(model):
    ids = torch.tensor([[5, IMAGE, 6, IMAGE, 7]])
    media = media_of([[0, 0]])
    unseen = model.unseen_media(media, ids, 2)
    assert unseen.mask.tolist() == [[True, True]] and unseen.position.tolist() == [[0, 0]]
    with pytest.raises(ValueError, match=r"Row 0: 2 image placeholder token\(s\) .* for 3 image"):
        model.unseen_media(media_of([[0, 1, 2]]), ids, 2)


@pytest.mark.parametrize("empty", [lambda cache: cache.reset(), lambda cache: cache.crop(-cache.get_seq_length())])
def test_an_emptied_cache_forgets_its_media(model, empty):
    kwargs = {"max_new_tokens": 5, "min_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}
    cache = DynamicCache(config=model.config.text_config)
    model.generate(**inputs([[5, IMAGE, 6]]), past_key_values=cache, **kwargs)
    empty(cache)
    if cache.get_seq_length() > 0:
        pytest.skip("`reset` of a dynamic cache zeroes it in 5.17, but keeps its length: it is not empty")
    text = torch.tensor([[7, 8, 9]])
    again = model.generate(input_ids=text, past_key_values=cache, **kwargs)
    fresh = model.generate(input_ids=text, **kwargs)
    assert all(torch.equal(a, b) for a, b in zip(again.logits, fresh.logits, strict=True))


def test_a_static_cache_that_is_reset_forgets_its_media(model):
    kwargs = {"max_new_tokens": 5, "min_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True}
    cache = StaticCache(config=model.config.text_config, max_cache_len=20)
    model.generate(**inputs([[5, IMAGE, 6]]), past_key_values=cache, **kwargs)
    for batch in (inputs([[7, 8, 9]]), inputs([[7, IMAGE, 9]], [[image(1)]])):
        cache.reset()
        again = model.generate(**batch, past_key_values=cache, **kwargs)
        fresh = model.generate(**batch, **kwargs)
        assert all(difference(a, b) < 1e-5 for a, b in zip(again.logits, fresh.logits, strict=True))


@pytest.mark.parametrize("width", [32, 48])
def test_an_assistant_of_another_width_encodes_the_media_itself(model, width):
    assistant = open_gates(joined(text=gpt2(seed=9, n_embd=width)))
    batch = inputs([[5, IMAGE, 6, 7]])
    expected = model.generate(**batch, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(**batch, assistant_model=assistant, max_new_tokens=8, do_sample=False), expected)


def test_a_text_only_gpt2_assists_without_the_media(model):
    assistant = gpt2(seed=9, vocab_size=model.config.text_config.vocab_size)
    batch = inputs([[5, IMAGE, 6, 7]])
    expected = model.generate(**batch, max_new_tokens=8, do_sample=False)
    assert torch.equal(model.generate(**batch, assistant_model=assistant, max_new_tokens=8, do_sample=False), expected)


def test_embeddings_without_media_are_the_callers_own_affair(model):
    embeds = model.get_input_embeddings()(torch.tensor([[5, IMAGE, 6]]))
    assert model.generate(inputs_embeds=embeds, max_new_tokens=3).shape[0] == 1


def test_sampling_draws_differ_and_are_reproducible(model):
    batch = inputs([[5, IMAGE, 6]])
    kwargs = {"max_new_tokens": 8, "do_sample": True, "num_return_sequences": 3, "eos_token_id": None}
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(model.generate(**batch, **kwargs))
    assert torch.equal(*draws) and len({tuple(row) for row in draws[0].tolist()}) == 3


def test_scores_equal_forward_logits(model):
    batch = inputs(ROWS, side="left")
    out = model.generate(**batch, **GREEDY, return_dict_in_generate=True, output_logits=True)
    mask = torch.cat([batch["attention_mask"], torch.ones(2, NEW).long()], dim=1)
    with torch.no_grad():
        logits = model(**{**batch, "input_ids": out.sequences, "attention_mask": mask}).logits
    assert difference(torch.stack(out.logits, dim=1), logits[:, 3:-1]) < 1e-4


# ---- Compiled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [ROWS[:1], [*ROWS, [9, 10]]], ids=["one row", "padded rows"])
def test_a_compiled_static_cache_gives_the_same_text(model, rows):
    """As `generate` compiles on CUDA: one graph without a break, and none for each step anew."""
    torch.compiler.reset()
    counters.clear()
    how = CompileConfig(backend="eager", fullgraph=True)
    how._compile_all_devices = True
    batch = inputs(rows, side="left")
    compiled = copy.deepcopy(model)  # a model keeps its compiled call
    found = compiled.generate(**batch, **GREEDY, cache_implementation="static", compile_config=how)
    graphs = counters["stats"]["unique_graphs"]
    torch.compiler.reset()
    assert 1 <= graphs <= 2, f"{graphs} graphs for {NEW} tokens"
    assert found.tolist() == model.generate(**batch, **GREEDY).tolist()


# ---- As long as the positions ---------------------------------------------------------------------------------------


@pytest.fixture
def warned(monkeypatch):
    said = []
    monkeypatch.setattr(logging.get_logger("modeling_mm.generation"), "warning", said.append)
    return said


def longest(model) -> int:
    return model.config.text_config.n_positions + 1  # the last token takes no position


WAYS_TO_THE_END = {
    "greedy": {},
    "beams": {"num_beams": 2},
    "sampled": {"do_sample": True, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "as transformers has it by default": {"max_new_tokens": None},
}


@pytest.mark.parametrize("way", WAYS_TO_THE_END)
def test_an_answer_ends_where_the_positions_do_with_a_warning(model, warned, way):
    prompt = torch.full((1, longest(model) - 6), 7)
    options = {"max_new_tokens": 9, "eos_token_id": None, "do_sample": False, **WAYS_TO_THE_END[way]}
    answer = model.generate(prompt, **options)
    assert answer.shape[1] == longest(model) - (way == "prompt lookup")  # it looks one token further
    assert len(warned) == 1 and f"decoder's {longest(model) - 1} positions were used up" in warned[0]


def test_an_answer_that_fits_is_not_cut_and_not_warned_of(model, warned):
    prompt = torch.full((1, longest(model) - 6), 7)
    exact = model.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert exact.shape[1] == longest(model) and not warned
    more = model.generate(prompt, max_new_tokens=60, do_sample=False, eos_token_id=None)
    assert torch.equal(exact, more)
    warned.clear()
    end = int(exact[0, -4])
    ended = model.generate(prompt, max_new_tokens=60, do_sample=False, eos_token_id=end, pad_token_id=0)
    assert ended[0, -1] == end and ended.shape[1] < longest(model) and not warned


def test_padding_takes_no_position(model, warned):
    prompt = torch.full((2, longest(model) - 6), 7)
    mask = torch.ones_like(prompt)
    mask[0, :5], mask[1, :3] = 0, 0
    options = {"attention_mask": mask, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert model.generate(prompt, max_new_tokens=9, **options).shape[1] == longest(model) + 3 and not warned
    assert model.generate(prompt, max_new_tokens=10, **options).shape[1] == longest(model) + 3 and len(warned) == 1


def test_embeddings_take_positions_too(model, warned):
    prompt = torch.full((1, longest(model) - 6), 7)
    embeds = model.get_input_embeddings()(prompt)
    answer = model.generate(inputs_embeds=embeds, max_new_tokens=9, do_sample=False, eos_token_id=None)
    whole = model.generate(prompt, max_new_tokens=9, do_sample=False, eos_token_id=None)
    assert torch.equal(answer, whole[:, prompt.shape[1] :]) and len(warned) == 2


def test_a_prompt_that_is_too_long_is_refused_as_before(model):
    with pytest.raises(ValueError, match="text tokens, but the decoder has"):
        model.generate(torch.full((1, longest(model)), 7), max_new_tokens=9)


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-320, 1e-38, 1e-8, 0.005])
def test_a_temperature_next_to_zero_chooses_the_likeliest(model, temperature):
    prompt = torch.tensor([[5, 6, 7]])
    greedy = model.generate(prompt, max_new_tokens=6, do_sample=False)
    assert torch.equal(model.generate(prompt, max_new_tokens=6, do_sample=True, temperature=temperature), greedy)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            torch.zeros(1, 3, 16, 16),
            r"got torch.float32 of shape \(1, 3, 16, 16\); pass media by name: generate\(pixel_",
        ),
        (torch.zeros(1, 1, 8, 40), r"of shape \(1, 1, 8, 40\); pass media by name: .*input_features=\.\.\. or"),
        ({"input_ids": torch.ones(1, 3).long()}, r"got a dict; pass the inputs of a processor by name"),
    ],
)
def test_media_as_the_first_argument_are_refused_with_their_keyword(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model.generate(inputs, max_new_tokens=2)


# ---- Half precision on a CPU ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, has_kernels, is_turned",
    [(torch.float16, False, True), (torch.bfloat16, False, False), (torch.bfloat16, True, True)],
    ids=str,
)
def test_half_precision_on_a_cpu_is_generated_from_turned_weights_and_saved_as_ever(
    dtype, has_kernels, is_turned, tmp_path, monkeypatch
):
    """Nothing but their place in memory tells turned weights apart."""
    monkeypatch.setattr(layers, "has_half_kernels", lambda dtype: has_kernels)
    model = opened().to(dtype)
    weight = model.model.language_model.h[0].attn.c_attn.weight
    before = weight.clone()
    assert weight.stride() == (3 * WIDTH, 1)
    batch = {**inputs([[5, IMAGE, 6, AUDIO, 7]])}
    found = model.generate(**batch, do_sample=False, max_new_tokens=4)
    assert weight.stride() == ((1, WIDTH) if is_turned else (3 * WIDTH, 1)) and torch.equal(weight, before)
    assert found.tolist() == model.generate(**batch, do_sample=False, max_new_tokens=4).tolist()
    model.save_pretrained(tmp_path)
    again = MMForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
    weight = again.model.language_model.h[0].attn.c_attn.weight
    assert weight.stride() == (3 * WIDTH, 1) and torch.equal(weight, before)
