"""Alignment with names: images are named by what the connector makes of them, and cross-attention starts from that."""

import copy

import pytest
import torch

from modeling_mm.training import ChatCollator
from scripts.workshop.lessons import ImageNetHead
from scripts.workshop.prototypes import (
    PrototypeOptions,
    align_with_names,
    layer_norm,
    open_blocks,
    ridge,
    stand_in_for_speech,
    states_before,
)
from tests.fakes.tiny import difference, draw, vit
from tests.fakes.tiny_chats import chat, chat_model, moved, processor, weights
from tests.fakes.whisper_parts import converted, speech

NAMES = ["a cat", "a dog", "a bird", "a red square"]
CLASSES = ["a green bird", "a white dog"]
SHOWN, TOKENS, WIDTH = 24, 4, 24  # images of each name, encoder tokens, the encoder's width
OPTIONS = PrototypeOptions(steps=60, token_steps=20, images=32, token_images=16, lessons=8, feature_dropout=0.1)


def features(seed: int, noise: float = 0.5) -> tuple[torch.Tensor, list[str]]:
    """Return tokens around one center for each name, and the names."""
    centers = torch.rand(len(NAMES), 1, WIDTH, generator=torch.Generator().manual_seed(0)) * 3
    names = NAMES * SHOWN
    tokens = centers.repeat(SHOWN, TOKENS, 1)
    return tokens + noise * torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)), names


def head() -> ImageNetHead:
    generator = torch.Generator().manual_seed(2)
    return ImageNetHead(torch.randn(len(CLASSES), WIDTH, generator=generator), torch.zeros(len(CLASSES)))


def seeing_model(**fields):
    torch.manual_seed(0)
    return chat_model(vision_connector="mlp", vision_cross_attention_layers=[1, 3], **fields)


def aligned(**options):
    model = seeing_model()
    tokens, names = features(1)
    fields = {**vars(OPTIONS), **options}
    reader = align_with_names(model, processor().tokenizer, tokens, names, head(), CLASSES, PrototypeOptions(**fields))
    return model, reader


def share_named(reader, seed: int) -> float:
    tokens, names = features(seed)
    known = sorted({*NAMES, *CLASSES})
    with torch.no_grad():
        found = reader.scores(tokens).argmax(-1).tolist()
    return sum(known[number] == name for number, name in zip(found, names, strict=True)) / len(names)


def test_images_that_were_not_learned_are_named():
    _, fresh = aligned(steps=1, token_steps=1, learning_rate=0.0, token_learning_rate=0.0)
    _, reader = aligned()
    assert share_named(fresh, 7) < 0.5
    assert share_named(reader, 7) > 0.9


TAGS = {"vision_tags": len(NAMES) + len(CLASSES), "vision_tag_length": 2, "vision_tag_choices": 2}


def test_tags_of_images_that_were_not_learned_are_their_names():
    model = seeing_model(**TAGS)
    tokens, names = features(1)
    quick = PrototypeOptions(**{**vars(OPTIONS), "learning_rate": 2e-2})  # tags start from nothing here
    align_with_names(model, processor().tokenizer, tokens, names, head(), CLASSES, quick)
    others, expected = features(7)
    known, tagger = sorted({*NAMES, *CLASSES}), model.model.vision_connector.tagger
    assert tagger.dropout == 0.0, "as before"
    with torch.no_grad():
        found = tagger.eval().logits(others, torch.ones(others.shape[:2], dtype=torch.bool)).argmax(-1).tolist()
    assert sum(known[number] == name for number, name in zip(found, expected, strict=True)) / len(expected) > 0.9


def test_tags_of_other_corpora_are_refused():
    model = seeing_model(vision_tags=3)
    with pytest.raises(ValueError, match="3 tags, but there are 6 names"):
        align_with_names(model, processor().tokenizer, *features(1), head(), CLASSES, OPTIONS)


KINDS = {"a cat": "animals", "a dog": "animals", "a bird": "animals", "a red square": ""}  # the last is not known


@pytest.mark.parametrize("kind_weight", [0.0, 2.0])
def test_media_tokens_hold_what_kind_of_thing_is_shown(kind_weight):
    kinds = {**KINDS, "a bird": "birds"}
    model = seeing_model()
    tokens, names = features(1)
    options = PrototypeOptions(**{**vars(OPTIONS), "kind_weight": kind_weight})
    known = [kinds[name] for name in names]
    reader = align_with_names(model, processor().tokenizer, tokens, names, head(), CLASSES, options, kinds=known)
    others, expected = features(7)
    with torch.no_grad():
        found = reader.kind(reader.norm(reader.read(others))).argmax(-1).tolist()
    right = [("animals", "birds")[n] == kinds[name] for n, name in zip(found, expected, strict=True) if kinds[name]]
    assert (sum(right) / len(right) > 0.95) == (kind_weight > 0)


def test_images_of_unknown_kinds_are_aligned_by_their_names_alone():
    tokens, names = features(1)
    one = seeing_model()
    align_with_names(one, processor().tokenizer, tokens, names, head(), CLASSES, OPTIONS)
    other = seeing_model()
    align_with_names(other, processor().tokenizer, tokens, names, head(), CLASSES, OPTIONS, kinds=[""] * len(names))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_only_the_connector_learns():
    model = seeing_model()
    before = weights(model)
    tokens, names = features(1)
    kinds = [KINDS[name] for name in names]
    align_with_names(model, processor().tokenizer, tokens, names, head(), CLASSES, OPTIONS, kinds=kinds)
    changed = moved(model, before)
    assert changed and all(name.startswith("model.vision_connector.") for name in changed)


@pytest.mark.parametrize(
    "option", [{"token_steps": 1}, {"lessons": 1}, {"blend": 0.0}, {"name_weight": 0.0}, {"feature_dropout": 0.6}]
)
def test_each_option_changes_what_is_learned(option):
    (plain, _), (other, _) = aligned(), aligned(**option)
    name = "model.vision_connector.projector.linear.weight"
    assert difference(plain.state_dict()[name], other.state_dict()[name]) > 1e-4


def test_the_same_seed_gives_the_same_connector():
    (one, _), (other, _) = aligned(), aligned()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def blocks(model):
    return list(model.model.language_model.vision_cross_blocks.values())


def questions() -> dict[str, torch.Tensor]:
    """Return a batch of all words of the sample chats about images."""
    rows = [
        chat(f"Is this called {name}?", "a cat", color="red") for name in (*NAMES, *CLASSES, "hello there", "brief")
    ]
    return ChatCollator(processor())(rows)


def opened_model(**fields):
    model = seeing_model(cross_attention_gated=False, cross_attention_query_gate=True, **fields)
    open_blocks(model, questions(), strength=3.0)
    return model


def test_the_last_block_adds_what_it_reads_as_it_is():
    last = blocks(opened_model())[-1]
    media, width = draw(1, 1, 32, seed=3), 32
    text = draw(1, 2, width, seed=4)
    with torch.no_grad():
        last.cross_attn.c_attn.bias.zero_()
        last.cross_attn.c_proj.bias.zero_()
        read, _ = last.cross_attn(text, media=last.cross_attn.keys_and_values(media))
    assert difference(read, 3.0 * media.expand(1, 2, width)) < 1e-4


@pytest.mark.parametrize("number", [0, 1])
def test_a_token_attends_to_the_media_that_lie_where_its_word_lies(number):
    """Behind the first decoder block too, where states have turned away from the words."""
    model = opened_model()
    decoder, batch = model.model.language_model, questions()
    attention = blocks(model)[number].cross_attn
    states = layer_norm(states_before(model, batch)[number])
    ids = batch["input_ids"][batch["attention_mask"].bool()]
    kinds = ids.unique()
    with torch.no_grad():
        keys, _ = attention.keys_and_values(layer_norm(decoder.wte.weight[kinds])[None])
        (queries,) = attention.split_heads(attention.q_attn(states[None]), 1)
        scores = (queries @ keys.transpose(-1, -2)).sum(1)[0]  # (T, kinds), heads together
    found = kinds[scores.argmax(-1)]
    assert float((found == ids).float().mean()) > 0.8 > 2 / len(kinds)


def test_the_last_block_finds_what_follows_a_word_in_a_tag():
    """By the half of a tag that holds the word before; the first word follows the end of a question."""
    ends = [5, 6]
    model = seeing_model(cross_attention_gated=False, cross_attention_query_gate=True, **TAGS)
    places = model.model.vision_connector.tagger.places.weight.clone()
    open_blocks(model, questions(), ends)
    decoder, batch = model.model.language_model, questions()
    attention = blocks(model)[-1].cross_attn
    states = layer_norm(states_before(model, batch)[-1])
    ids = batch["input_ids"][batch["attention_mask"].bool()]
    kinds = ids.unique()
    half = decoder.wte.weight.shape[1] // 2
    with torch.no_grad():
        words = layer_norm(decoder.wte.weight)
        keys, _ = attention.keys_and_values(words[kinds].roll(half, -1)[None])
        (queries,) = attention.split_heads(attention.q_attn(states[None]), 1)
        scores = (queries @ keys.transpose(-1, -2)).sum(1)[0]  # (T, kinds), heads together
        moved_places = model.model.vision_connector.tagger.places.weight - places
    assert float((kinds[scores.argmax(-1)] == ids).float().mean()) > 0.7 > 2 / len(kinds)
    assert difference(moved_places[[0, 2]], words[ends].sum(0).roll(half).expand(2, -1)) < 1e-5
    assert moved_places[[1, 3]].abs().max() == 0


def test_least_squares_find_a_linear_map():
    given, true = draw(200, 8, seed=1), draw(8, 8, seed=2)
    assert difference(ridge(given, given @ true, penalty=1e-4), true) < 1e-3
    assert ridge(given, given @ true, penalty=1e4).norm() < true.norm() / 10


def test_a_stand_in_starts_as_what_speech_adds_on_average():
    hears, ears = converted()
    model = hears.add_vision(vit(), cross_attention_stand_in=True)
    chats = [transcript(seed, words) for seed, words in enumerate(("a cat", "a dog and a bird"))]
    batch = ChatCollator(ears)(chats)
    stand_in_for_speech(model, batch)
    added = {}
    for number, block in enumerate(hears.model.language_model.h):
        block.crossattention.register_forward_hook(
            lambda module, given, output, number=number: added.update({number: output[0]})
        )
    with torch.no_grad():
        hears(**batch)
    learned = batch["labels"] != -100
    for number, block in enumerate(model.model.language_model.h):
        assert difference(block.vision_stand_in.weight, added[number][learned].mean(0)) < 1e-5
        assert block.vision_stand_in.weight.abs().max() > 1e-2


def transcript(seed: int, words: str) -> dict:
    content = [{"type": "audio", "audio": speech(seed=seed), "sampling_rate": 16_000}]
    answer = {"role": "assistant", "content": [{"type": "text", "text": words}]}
    return {"messages": [{"role": "user", "content": content}, answer]}


def test_other_blocks_do_not_change():
    model = seeing_model(cross_attention_gated=False, cross_attention_query_gate=True)
    before = copy.deepcopy(weights(model))
    open_blocks(model, questions())
    assert moved(model, before) and all(".vision_cross_blocks." in name for name in moved(model, before))
