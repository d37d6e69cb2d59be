"""Matches of two rows: a planted thing decides each side, and every method finds it in a trained model alone."""

import itertools
from typing import Any

import pytest
import torch
from PIL import Image

from modeling_mm import MMForRetrieval
from modeling_mm.explain import (
    METHODS,
    MatchSide,
    Places,
    blank_media,
    draw,
    explain,
    explain_match,
    explain_target,
    make_match,
    modality_contributions,
    places_of,
    save,
    weights_of,
    write_page,
)
from modeling_mm.explain.perturbation import integrated_gradients, occlusion
from modeling_mm.search import Embedder, Item
from tests.fakes.planted_match import match_sides, random_matcher, trained_matcher
from tests.fakes.processor_parts import picture, sound
from tests.fakes.tiny import gpt2, joined, open_gates, vit, whisper
from tests.fakes.tiny_chats import CHATS, chat_model, processor

REACHED = 0.6  # of the mass
SHOW_WORDS = [method for method in METHODS if method != "attention"]


def mass(model, one: str, other: str, method: str) -> float:
    """Return the mean part of the weights of a side that lies on what decides the match."""
    targets, decisive = match_sides(model, one, other)
    parts = []
    for target, places in zip(targets, decisive, strict=True):
        seen = explain_target(target, method)
        weights = seen.text[0] if one == "text" else weights_of(seen)[0]
        parts.append(weights[places].sum() / weights.sum().clamp(min=1e-9))
    return torch.stack(parts).mean().item()


PAIRS = [
    ("image", "text"),
    ("text", "image"),
    ("audio", "text"),
    ("text", "audio"),
    ("image", "audio"),
    ("audio", "image"),
    ("text", "text"),
    ("image", "mixed"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_what_decides_a_match_is_found_in_a_trained_model_alone(one: str, other: str, method: str) -> None:
    if one == "text" and method not in SHOW_WORDS:
        targets, _ = match_sides(trained_matcher(), one, other, count=1)
        assert explain_target(targets[0], method).text is None
        return
    assert mass(trained_matcher(), one, other, method) > REACHED
    assert mass(random_matcher(), one, other, method) < REACHED / 2


@pytest.mark.parametrize("in_text", [False, True])
def test_the_modality_that_holds_what_decides_adds_the_similarity_of_a_mixed_row(in_text: bool) -> None:
    targets, _ = match_sides(trained_matcher(), "mixed", "audio", in_text=in_text)
    told, silent = ("text", "image") if in_text else ("image", "text")
    means = dict.fromkeys((told, silent), 0.0)
    for target in targets:
        found = modality_contributions(target)
        torch.testing.assert_close(sum(found.values.values()), found.full - found.base)
        assert found.full > 0.8 and found.measure == "the similarity"
        assert found.values[told] > found.values[silent]
        means = {name: mean + found.values[name].item() / len(targets) for name, mean in means.items()}
    assert means[told] > 3 * abs(means[silent]), means


@pytest.mark.parametrize("side", ["text", "image"])
def test_without_what_decides_the_rows_match_no_more(side: str) -> None:
    """
    Without as many other places or words they match as before.

    Not of audio: blank frames are silence, the least value, which is as strong here as the object of one class.
    """
    model = trained_matcher()
    targets, decisive = match_sides(model, side, "text")
    for target, own in zip(targets, decisive, strict=True):
        count = len(target.prompt_words) if side == "text" else places_of(model, target.media).count
        whole, without, other = (similarity(target, side, hidden, count) for hidden in ([], own, (own + 3) % count))
        assert whole > 0.8 and other > 0.8 and without < 0.5, (whole, other, without)


def similarity(target: MatchSide, side: str, hidden: list[int] | torch.Tensor, count: int) -> float:
    """Return the score of a side without some of its places or words."""
    is_hidden = torch.zeros(1, count, dtype=torch.bool)
    is_hidden[0, hidden] = True
    if side == "text":
        return target.scores_in_chunks({}, target.without_words(is_hidden)).item()
    places = places_of(target.model, target.media)
    return target.scores_in_chunks(places.hide(is_hidden, target.media, blank_media(target.media))).item()


# ---- Rows of a processor --------------------------------------------------------------------------------------------


def retriever(**fields: Any) -> MMForRetrieval:
    text = gpt2(vocab_size=len(processor().tokenizer), n_positions=128)
    parts = {"vision": vit(image_size=8, patch_size=4), "audio": whisper(max_source_positions=50)}
    model = open_gates(joined(text, **parts, tokenizer=processor(), cls=MMForRetrieval, projection_dim=8, **fields))
    model.set_attn_implementation("eager")
    return model


def picture_part(color: str = "red") -> dict[str, Any]:
    return {"type": "image", "image": picture(color)}


def striped(color: str) -> Image.Image:
    """An image of two colors, as an index takes none of one."""
    image = picture(color)
    image.putpixel((0, 0), (9, 9, 9))
    return image


def sound_part() -> dict[str, Any]:
    samples, rate = sound()
    return {"type": "audio", "audio": samples, "sampling_rate": rate}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@torch.no_grad()
def test_the_similarity_is_the_cosine_of_the_embeddings_of_an_index() -> None:
    model = retriever()
    embedder = Embedder(model, processor())
    rows = {
        "a red cat": Item("a red cat"),
        "image": Item(media={"image": [striped("red")]}),
        "audio": Item(media={"audio": [sound()]}),
        "image + audio + a dog": Item("a dog", {"image": [striped("blue")], "audio": [sound()]}),
    }
    seen, seen_too = ({"type": "image", "image": striped(color)} for color in ("red", "blue"))
    parts = ["a red cat", [seen], [sound_part()], [seen_too, sound_part(), text_part("a dog")]]
    vectors = [torch.from_numpy(embedder.embed_item(item)) for item in rows.values()]
    for (one, first), (other, second) in itertools.combinations(enumerate(parts), 2):
        match = explain_match(model, processor(), first, second, "integrated-gradients")
        assert match.similarity == pytest.approx((vectors[one] @ vectors[other]).item(), abs=1e-5)
        assert [side.words for side in match.sides] == [[list(rows)[other]], [list(rows)[one]]]
        assert [each.full.item() for each in match.contributions] == pytest.approx([match.similarity] * 2, abs=1e-5)


def test_each_side_has_its_places_and_words() -> None:
    mixed = [picture_part(), text_part("a dog")]
    match = explain_match(retriever(), processor(), mixed, [sound_part()])
    image, audio = match.sides
    assert image.patches.shape == (1, 1, 2, 2) and image.moments is None and image.prompt_words == ["a", "dog"]
    assert audio.patches is None and audio.moments.shape == (1, 25) and audio.text.shape == (1, 0)
    assert [set(each.values) for each in match.contributions] == [{"image", "text"}, {"audio"}]
    for method in METHODS:
        alone = explain_match(retriever(), processor(), "a red cat", "a dog", method).sides[0]
        assert alone.patches is None and alone.moments is None and alone.prompt_words == ["a", "red", "cat"]
        assert alone.text is None if method == "attention" else alone.text.shape == (1, 3)


def test_a_row_with_nothing_left_is_like_nothing() -> None:
    """A text of one word, without it, has a similarity of 0, so that an occlusion is the whole similarity."""
    model = retriever()
    side, _ = make_match(model, processor(), "cat", [picture_part()])
    whole = side.scores_in_chunks({})
    _, text = occlusion(side, places_of(model, side.media))
    assert whole.abs() > 0.01
    torch.testing.assert_close(text.sum(), whole.sum())
    found = modality_contributions(side)
    assert found.base.item() == 0 and found.values["text"].item() == pytest.approx(whole.item())


def test_integrated_gradients_of_a_text_sum_to_the_difference_of_the_similarities() -> None:
    side, _ = make_match(retriever(), processor(), "a red cat", [picture_part()])
    places, text = integrated_gradients(side, Places(), steps=512)
    embeddings = side.model.get_input_embeddings()(side.text["input_ids"]).detach()
    with torch.no_grad():
        difference = side.scores({}) - side.scores({}, inputs_embeds=torch.zeros_like(embeddings))
    assert places.shape == (1, 0) and abs(difference) > 0.05
    torch.testing.assert_close(text.sum(), difference.sum(), rtol=0.05, atol=0.01)


def test_a_frozen_model_and_one_without_eager_attention_are_explained() -> None:
    model = retriever().requires_grad_(False)
    for method in METHODS:
        match = explain_match(model, processor(), [picture_part()], "a red cat", method)
        assert match.sides[0].patches.sum() > 0
        assert method == "attention" or match.sides[1].text.sum() > 0
    model.set_attn_implementation({"text_config": "sdpa"})
    assert explain_match(model, processor(), [picture_part()], "a cat").sides[0].patches.sum() > 0
    with pytest.raises(ValueError, match="'sdpa', which keeps no weights"):
        explain_match(model, processor(), [picture_part()], "a cat", "gradient-attention")


def test_matches_that_cannot_be_explained_are_refused() -> None:
    model = retriever()
    with pytest.raises(ValueError, match="A row of the match has nothing in it"):
        explain_match(model, processor(), "a cat", " ")
    with pytest.raises(ValueError, match="A row of the match has nothing in it"):
        explain_match(model, processor(), [], "a cat")
    for part in ({"type": "smell"}, {"type": "text"}, "a cat"):
        with pytest.raises(
            ValueError, match=r"A row of the match has the part .* Expected a text, or one of type image"
        ):
            explain_match(model, processor(), [part], "a cat")
    with pytest.raises(ValueError, match=r"no method 'oclusion' of explaining"):
        explain_match(model, processor(), "a cat", "a dog", "oclusion")
    with pytest.raises(ValueError, match=r"MMForRetrieval embeds rows .* explain_match"):
        explain(model, processor(), CHATS[0]["messages"][:1], "occlusion")
    with pytest.raises(
        ValueError, match="needs a model that embeds, MMForRetrieval, got a MMForConditionalGeneration"
    ):
        explain_match(chat_model(), processor(), "a cat", "a dog")


def test_a_long_name_is_cut() -> None:
    name = explain_match(retriever(), processor(), "a dog " * 20, "a cat").sides[1].answer
    assert len(name) <= 60 and name.endswith("\u2026")


def test_both_sides_are_drawn_and_written(tmp_path) -> None:
    mixed = [picture_part(), text_part("a <dog>")]
    match = explain_match(retriever(), processor(), mixed, [sound_part()])
    text = write_page(match.bands, "A match", tmp_path / "match.html", "side").read_text(encoding="utf-8")
    assert "<p>2 sides</p>" in text and "Mean contribution to the similarity" in text
    assert "image + a &lt;dog&gt; \u2192 audio" in text and "audio \u2192 image + a &lt;dog&gt;" in text
    assert text.count("<mark") == 2 and text.count("<audio") == 1 and "+ text" in text
    silent = explain_match(retriever(), processor(), "a cat", [picture_part()], "attention")
    assert "It shows no words." in write_page(silent.bands, "t", tmp_path / "silent.html").read_text(encoding="utf-8")
    figure = draw(match.bands, "A match")
    assert {"a", "<dog>", "audio"} <= {each.get_text() for each in figure.texts}
    save(figure, tmp_path / "match.png")


def test_the_words_of_a_long_text_are_drawn_on_several_lines_within_the_sheet() -> None:
    match = explain_match(retriever(), processor(), "a brief dog and a cat " * 9, "a cat")
    (band, _), words = match.bands, 9 * 6
    assert len(band.lines) > 1 and sorted(number for line in band.lines for number in line) == list(range(words))
    figure = draw([band], "A match")
    ends = [each.get_window_extent() for each in figure.texts]
    assert max(each.x1 for each in ends) < figure.bbox.x1 and min(each.y0 for each in ends) > 0
