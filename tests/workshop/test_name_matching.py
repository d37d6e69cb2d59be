"""The first block of cross-attention finds the images of names, and says so to the tokens behind them."""

import copy

import pytest
import torch

from modeling_mm.training import ChatCollator
from scripts.workshop import name_matching
from scripts.workshop.name_matching import (
    MatchingOptions,
    NameMatcher,
    close_over_transcripts,
    first_block,
    gated_tokens,
    match_names,
    matching_loss,
    name_states,
    say_what_was_found,
    spoken_states,
    words_before,
    written_tokens,
)
from tests.fakes.tiny import difference, draw
from tests.fakes.tiny_chats import chat, moved, processor, weights
from tests.workshop.test_prototypes import NAMES, features, seeing_model

OPTIONS = MatchingOptions(steps=150, batch=12, learning_rate=1e-2, feature_dropout=0.1)
FIELDS = {
    "cross_attention_gated": False,
    "cross_attention_query_gate": True,
    "cross_attention_token_gate": True,
    "cross_attention_sink": True,
    "media_position_encoding": "learned",
    "max_media_positions": 16,
    "max_media_items": 2,
}


def states_of_names(model) -> dict[str, list[torch.Tensor]]:
    rows = [chat(f"Is this called {name}?", "yes", color="red") for name in NAMES]
    lengths = [len(processor().tokenizer(name, add_special_tokens=False)["input_ids"]) for name in NAMES]
    found = name_states(model, ChatCollator(processor())(rows), lengths)
    assert [len(states) for states in found] == lengths
    return {name: [states] for name, states in zip(NAMES, found, strict=True)}


def matched(**options):
    model = seeing_model(**FIELDS)
    tokens, names = features(1)
    return model, match_names(
        model, tokens, names, states_of_names(model), MatchingOptions(**{**vars(OPTIONS), **options})
    )


def share_matched(model, matcher: NameMatcher, seed: int) -> float:
    """Return the share of images whose own name gives them the most attention."""
    tokens, names = features(seed)
    states = [states for name in NAMES for states in states_of_names(model)[name]]
    padded = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones(len(each)) for each in states], batch_first=True)
    with torch.no_grad():
        best = matcher(padded, real, tokens).argmax(0).tolist()  # of the names, for each image
    return sum(NAMES[number] == name for number, name in zip(best, names, strict=True)) / len(names)


def test_names_find_images_that_were_not_learned():
    assert share_matched(*matched(), seed=2) > 0.9 > 0.6 > share_matched(*matched(steps=1), seed=2)


def test_the_share_is_that_of_the_attention_of_the_block():
    """Computed by the block itself, with its sink, for a name and an image at a time."""
    model, matcher = matched(steps=20)
    tokens, _ = features(2)
    states = states_of_names(model)["a red square"][0]
    with torch.no_grad():
        share = matcher(states[None], torch.ones(1, len(states)), tokens[:3])[0]
        for number in range(3):
            media = matcher.media(tokens[number : number + 1])
            attention = matcher.block.cross_attn
            _, attended = attention(
                matcher.block.norm_attn(states[None]), media=attention.keys_and_values(media), implementation="eager"
            )
            assert abs(attended.sum(-1).mean() - share[number]) < 1e-5


def test_what_is_found_is_added_as_one_vector_and_its_item_as_another():
    model = seeing_model(**FIELDS)
    block = next(iter(model.model.language_model.vision_cross_blocks.values()))
    for parameter in block.cross_attn.c_proj.parameters():
        parameter.data.zero_()  # as blocks start that have not learned
    say_what_was_found(model, strength=3.0)
    attention, items = block.cross_attn, model.model.vision_connector.items
    with torch.no_grad():
        attention.sink.weight.fill_(-100.0)  # all attention goes to the media
        attention.q_attn.bias.fill_(10.0)
        text, media = draw(1, 2, 32, seed=1), draw(1, 4, 32, seed=2)
        first, second = (
            attention(text, media=attention.keys_and_values(media + items.weight[item]))[0] for item in (0, 1)
        )
        attention.sink.weight.fill_(100.0)
        nothing, _ = attention(text, media=attention.keys_and_values(media + items.weight[0]))
    assert difference(nothing, torch.zeros_like(nothing)) < 1e-4
    found, number = (first + second) / 2, (first - second) / 2
    assert difference(number.norm(dim=-1), torch.full((1, 2), 3.0)) < 1e-3  # the sign of the item, times its vector
    heads = attention.c_proj.weight[:: attention.head_dim]
    assert difference(heads.sum(0).norm(), torch.tensor(3.0)) < 1e-4
    assert torch.cosine_similarity(found - heads.sum(0), number, dim=-1).abs().min() > 0.99  # what the images add


def test_all_that_fits_must_be_seen_and_nothing_else():
    fits = torch.tensor([[True, False], [False, True]])
    sharpness = torch.tensor(4.0)
    right, wrong = torch.tensor([[0.9, 0.1], [0.1, 0.9]]), torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    assert matching_loss(right, fits, sharpness) < matching_loss(torch.full((2, 2), 0.5), fits, sharpness)
    assert matching_loss(torch.full((2, 2), 0.5), fits, sharpness) < matching_loss(wrong, fits, sharpness)


def test_only_the_first_block_and_the_vectors_of_items_change():
    model = seeing_model(**FIELDS)
    before = copy.deepcopy(weights(model))
    tokens, names = features(1)
    match_names(model, tokens, names, states_of_names(model), MatchingOptions(steps=2, batch=4))
    changed = moved(model, before)
    assert changed and all("vision_cross_blocks.1.cross_attn" in name or "connector.items" in name for name in changed)


def batch_of(*questions: tuple[str, str]) -> dict[str, torch.Tensor]:
    return ChatCollator(processor())([chat(question, answer, color="red") for question, answer in questions])


def test_the_states_of_a_spoken_name_are_those_of_the_first_tokens_of_an_answer():
    model = seeing_model(**FIELDS)
    tokenizer = processor().tokenizer
    answers = ["a bird", "hello there"]
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) - 1 for text in answers]
    batch = batch_of(*(("Look and listen.", text) for text in answers))
    found = spoken_states(model, batch, lengths)
    given = {}
    handle = first_block(model).register_forward_pre_hook(lambda module, inputs: given.update(state=inputs[0]))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    for number, (states, length) in enumerate(zip(found, lengths, strict=True)):
        (places,) = (batch["labels"][number] != -100).nonzero(as_tuple=True)
        assert length > 0 and torch.equal(states, given["state"][number, places[:length]])


def test_the_gate_closes_over_transcripts_and_stays_open_elsewhere():
    model = seeing_model(**FIELDS)
    transcripts = [batch_of(("Look and listen.", "a bird"), ("Look and listen.", "hello there"))]
    others = [batch_of(("Is this called a cat?", "brief"), ("What do you see?", "red"))]
    before = copy.deepcopy(weights(model))
    close_over_transcripts(model, transcripts, others, steps=300)
    blocks = model.model.language_model.vision_cross_blocks
    of_gates = {f"vision_cross_blocks.{number}.gate_token.{part}" for number in blocks for part in ("weight", "bias")}
    assert {name.removeprefix("model.language_model.") for name in moved(model, before)} == of_gates

    def openness(gate: torch.nn.Linear, batch: dict[str, torch.Tensor], chosen: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return gate(gated_tokens(model, gate, batch, chosen)).sigmoid()

    assert len(blocks) > 1
    for block in blocks.values():
        assert openness(block.gate_token, transcripts[0], written_tokens(transcripts[0])).max() < 0.3
        assert openness(block.gate_token, others[0], others[0]["attention_mask"].bool()).min() > 0.7


def test_what_is_heard_is_closed_behind_the_first_block():
    """It is the same in both kinds of rows but for the question before it, which the first block must notice."""
    model = seeing_model(**FIELDS).train()
    tokenizer = processor().tokenizer
    (end,) = tokenizer(" dog", add_special_tokens=False)["input_ids"]
    transcripts = [batch_of(("Transcribe.", "a bird"), ("Transcribe.", "hello there"))]
    others = [batch_of(("Is this called a cat?", "brief"))]
    heard = [batch_of(("Look and listen.", "a bird dog"), ("Look and listen.", "hello there dog"))]
    words = words_before(heard[0], end)
    close_over_transcripts(model, transcripts, others, [(heard[0], words)], steps=1000)
    assert model.training, "as before"
    assert words.any() and (words & (heard[0]["labels"].roll(-1, 1) == end)).sum() == 0
    model.eval()
    for number, block in enumerate(model.model.language_model.vision_cross_blocks.values()):
        with torch.no_grad():
            over_words = block.gate_token(gated_tokens(model, block.gate_token, heard[0], words)).sigmoid()
            behind = heard[0]["attention_mask"].bool() & ~words
            elsewhere = block.gate_token(gated_tokens(model, block.gate_token, heard[0], behind)).sigmoid()
        assert elsewhere.min() > 0.7
        assert over_words.min() > 0.7 if number == 0 else over_words.max() < 0.3


def test_each_token_teaches_a_gate_once(monkeypatch):
    model, taught = seeing_model(**FIELDS), []
    monkeypatch.setattr(
        name_matching, "learn_gate", lambda gate, closed, opened, steps: taught.append((len(closed), len(opened)))
    )
    transcript, other, heard = (batch_of(("Look and listen.", text)) for text in ("a bird", "red", "hello there"))
    words = written_tokens(heard)
    close_over_transcripts(model, [transcript], [other], [(heard, words)])
    closed, opened = int(written_tokens(transcript).sum()), int(other["attention_mask"].sum())
    said, rest = int(words.sum()), int(heard["attention_mask"].sum() - words.sum())
    assert taught[0] == (closed, opened + said + rest) and {*taught[1:]} == {(closed + said, opened + rest)}


def test_words_before_an_end_are_predicted_from_the_tokens_before_them():
    labels = torch.tensor([[-100, -100, 5, 6, 9, 7], [-100, 5, 9, 6, 9, 7], [-100, -100, -100, -100, 5, 6]])
    assert words_before({"labels": labels}, 9).int().tolist() == [
        [0, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_what_is_written_begins_where_its_first_token_is_predicted():
    labels = torch.tensor([[-100, -100, 5, 6, -100], [-100, -100, -100, 7, 8]])
    assert written_tokens({"labels": labels}).int().tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_each_view_of_an_image_needs_its_name():
    model = seeing_model()
    with pytest.raises(ValueError, match="4 images have 2 names"):
        match_names(model, torch.randn(4, 2, 24), ["a cat", "a dog"], {"a cat": [torch.randn(2, 32)]})


def test_names_look_at_tags_too():
    model = seeing_model(vision_tags=len(NAMES), vision_tag_length=3, vision_tag_choices=2, **FIELDS)
    tokens, _ = features(1)
    matcher = NameMatcher(model, OPTIONS).eval()
    with torch.no_grad():
        media = matcher.media(tokens[:2])
        expected = model.encode_media(vision_states=tokens[:2, None]).states
    assert media.shape[1] == tokens.shape[1] + 2 * 3
    assert difference(media, expected) < 1e-4
    parts = weights(model)
    match_names(model, *features(1), states_of_names(model), MatchingOptions(steps=2, batch=4, feature_dropout=0.9))
    assert model.model.vision_connector.tagger.dropout == 0.0, "as before"
    assert not [name for name in moved(model, parts) if ".tagger." in name]
