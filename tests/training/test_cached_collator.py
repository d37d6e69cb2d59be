"""Batches out of the encoder cache say the same as batches of the raw media, to the precision of what is kept."""

import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from modeling_mm.data import ChatDataset, ChatRow
from modeling_mm.training import (
    Augmentation,
    CachedClassificationCollator,
    CachedCollator,
    ChatCollator,
    ClassificationCollator,
    ImageAugmentation,
    ModalityDropout,
    encode_conversation,
)
from tests.fakes.media_rows import filled, frozen_model, media_part, row, write_media
from tests.fakes.processor_parts import make, make_wordpiece
from tests.fakes.tiny_chats import processor

ALL = ("a.png", "b.png", "c.png", "short.wav", "long.wav")
TOLERANCE = 1e-3  # of logits; what float16 takes away is a fifth of it
TEXTS = ("input_ids", "attention_mask", "labels")
ROWS = {
    "one picture": [("a.png",)],
    "two pictures": [("a.png", "b.png")],
    "a sound of one window": [("short.wav",)],
    "a sound of three windows": [("long.wav",)],
    "several sounds": [("short.wav", "long.wav", "short.wav")],
    "both, sound first": [("long.wav", "a.png", "short.wav", "b.png")],
    "text alone": [()],
    "mixed rows": [("a.png",), (), ("long.wav", "c.png"), ("short.wav",), ("a.png", "b.png", "c.png")],
}


@pytest.fixture
def media(tmp_path) -> Path:
    return write_media(tmp_path)


def make_rows(folder: Path, names: list[tuple[str, ...]]) -> list[ChatRow]:
    answers = ("a cat", "A red square.", "a cat, a dog and a bird", "hello", "brief")
    return [row(folder, *each, answer=answers[number]) for number, each in enumerate(names)]


@torch.no_grad()
def logits(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
    output = frozen_model()(**batch)
    return output.logits, output.loss.item()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("names", ROWS.values(), ids=ROWS.keys())
def test_a_batch_from_the_cache_equals_one_of_raw_media(media, names, side: str) -> None:
    rows = make_rows(media, names)
    raw = ChatCollator(processor(), padding_side=side)(rows)
    cached = CachedCollator(processor(), filled(media, *ALL), padding_side=side)(rows)
    for name in TEXTS:
        assert torch.equal(cached[name], raw[name]), name
    assert not {"pixel_values", "input_features", "feature_attention_mask"} & set(cached)
    (ours, our_loss), (theirs, their_loss) = logits(cached), logits(raw)
    assert our_loss == pytest.approx(their_loss, abs=3e-4)
    torch.testing.assert_close(ours[raw["labels"] != -100], theirs[raw["labels"] != -100], rtol=0, atol=TOLERANCE)


def test_media_matter_in_the_batches_compared(media) -> None:
    """Two images, or two windows, in each other's place are noticed by the test above."""
    cached = CachedCollator(processor(), filled(media, *ALL))(make_rows(media, ROWS["both, sound first"]))
    expected, _ = logits(cached)
    for name in ("vision_states", "audio_states"):
        swapped, _ = logits({**cached, name: cached[name].roll(1, dims=1)})
        assert (swapped - expected)[cached["labels"] != -100].abs().max() > 10 * TOLERANCE, name


def test_shapes_and_masks(media) -> None:
    batch = CachedCollator(processor(), filled(media, *ALL))(make_rows(media, [("a.png", "b.png"), ("long.wav",), ()]))
    assert batch["vision_states"].shape == (3, 2, 5, 24)  # ViT: a class token and 2x2 patches
    assert batch["image_mask"].tolist() == [[True, True], [False, False], [False, False]]
    assert batch["audio_states"].shape == (3, 3, 50, 16)
    assert batch["audio_states_mask"].sum(-1).tolist() == [[0, 0, 0], [50, 50, 15], [0, 0, 0]]
    assert not batch["vision_states"][1:].any()


def test_prompts_are_padded_on_the_left_and_answered_the_same(media) -> None:
    rows = make_rows(media, ROWS["mixed rows"])
    cached = CachedCollator(processor(), filled(media, *ALL)).prompt_batch(rows)
    raw = processor().apply_chat_template(
        [each.prompt for each in rows],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "left"},
    )
    assert "labels" not in cached
    assert cached["attention_mask"][:, -1].all() and not cached["attention_mask"][:, 0].all()
    assert torch.equal(cached["input_ids"], raw["input_ids"])
    assert torch.equal(cached["attention_mask"], raw["attention_mask"])
    options = {"max_new_tokens": 6, "do_sample": False}
    ours, theirs = frozen_model().generate(**cached, **options), frozen_model().generate(**raw, **options)
    assert torch.equal(ours, theirs)
    assert len({tuple(answer) for answer in ours[:, cached["input_ids"].shape[1] :].tolist()}) > 1


def test_prompts_hold_nothing_of_the_answer(media) -> None:
    collator = CachedCollator(processor(), filled(media, *ALL))
    one, other = (collator.prompt_batch([row(media, "a.png", answer=answer)]) for answer in ("a cat", "a dog"))
    assert torch.equal(one["input_ids"], other["input_ids"])


# ---- Classification -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [ROWS["mixed rows"], ROWS["text alone"]], ids=["mixed rows", "text alone"])
def test_a_classification_from_the_cache_equals_one_of_raw_media(media, names) -> None:
    rows = make_rows(media, names)
    labels = sorted({each.answer for each in rows})
    raw = ClassificationCollator(processor(), labels)(rows)
    cached = CachedClassificationCollator(processor(), filled(media, *ALL), labels)(rows)
    for name in TEXTS:
        assert torch.equal(cached[name], raw[name]), name
    assert cached["labels"].tolist() == [labels.index(each.answer) for each in rows]
    with torch.no_grad():
        raw.pop("labels"), cached.pop("labels")
        ours, theirs = frozen_model()(**cached).logits, frozen_model()(**raw).logits
    torch.testing.assert_close(ours[:, -1], theirs[:, -1], rtol=0, atol=TOLERANCE)


def test_a_classification_learns_from_all_views_and_is_evaluated_on_the_file_as_it_is(media) -> None:
    collator = CachedClassificationCollator(processor(), filled(media, "a.png", **VIEWS), ["a cat", "a dog"])
    rows = [row(media, "a.png", id=f"row {n}", epoch=epoch) for n in range(4) for epoch in range(4)]
    assert {shown(collator, each) for each in rows} == {0, 1, 2}
    assert {shown(collator.for_evaluation(), each) for each in rows} == {0}


def test_a_classification_refuses_an_answer_that_is_no_label(media) -> None:
    collator = CachedClassificationCollator(processor(), filled(media, "a.png"), ["a dog", "a bird"])
    with pytest.raises(ValueError, match=r"Row 0.*expected an answer among the labels a dog, a bird; got 'a cat'"):
        collator([row(media, "a.png")])


# ---- Text -----------------------------------------------------------------------------------------------------------


def turn(role: str, *content) -> dict:
    return {"role": role, "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


@pytest.mark.parametrize("make_tokenizer", [None, make_wordpiece], ids=["bpe", "wordpiece"])
def test_text_is_encoded_as_by_the_processor(media, make_tokenizer) -> None:
    """System turns, several answers, media within the text and in a later turn."""
    parts = make()
    if make_tokenizer is not None:
        maker = type(parts).from_text_vision_audio_pretrained
        parts = maker(make_tokenizer(), parts.image_processor, parts.feature_extractor)
    long, picture = media_part(media, "long.wav"), media_part(media, "a.png")
    messages = [
        turn("system", "You are brief."),
        turn("user", "hello ", long, " there ", picture, "?"),
        turn("assistant", "a cat"),
        turn("user", picture, long, "What do you see?"),
        turn("assistant", "A red square."),
    ]
    ours = encode_conversation(parts, messages, media_tokens={"image": [[1, 1]], "audio": [[3, 3]]})
    theirs = encode_conversation(parts, messages)
    for name in TEXTS:
        assert ours[name].tolist() == theirs[name].tolist(), name
    assert set(ours) == set(TEXTS)


class Doubling(CachedCollator):
    """Doubles the states of media with a mark."""

    def windows(self, row, number, part, is_prompt):
        windows = super().windows(row, number, part, is_prompt)
        return [window * 2 for window in windows] if part.get("marked") else windows


def test_a_subclass_can_change_states(media) -> None:
    plain = row(media, "a.png", "b.png")
    content = [
        {**part, "marked": True} if part.get("path", "").endswith("b.png") else part
        for part in plain.prompt[0]["content"]
    ]
    marked = replace(plain, messages=[turn("user", *content), *plain.messages[1:]])
    states = filled(media, *ALL)
    for name in ("__call__", "prompt_batch"):
        expected = getattr(CachedCollator(processor(), states), name)([plain])
        changed = getattr(Doubling(processor(), states), name)([marked])
        expected["vision_states"][0, 1] *= 2
        assert_same(changed, expected)


def test_a_text_that_reads_image_is_not_an_image(media) -> None:
    """Texts are kept by what their parts are, not by their words alone."""
    plain, text = row(media, "a.png"), {"type": "text", "text": "image"}
    part = media_part(media, "a.png")
    first, second = (
        replace(plain, messages=[turn("user", *content), *plain.messages[1:]])
        for content in ((part, text), (text, part))
    )
    shared = CachedCollator(processor(), filled(media, *ALL))
    alone = [ChatCollator(processor())([each])["input_ids"] for each in (first, second)]
    assert not torch.equal(*alone)
    assert all(torch.equal(shared([each])["input_ids"], ids) for each, ids in zip((first, second), alone, strict=True))


def test_an_answer_of_nothing_is_refused(media) -> None:
    prompt = replace(row(media, "a.png"), messages=row(media, "a.png").messages[:1])
    with pytest.raises(ValueError, match=r"Row 0: The assistant says nothing .* nothing to learn"):
        CachedCollator(processor(), filled(media, *ALL))([prompt])


def test_placeholders_in_the_text_of_a_message_are_text(media) -> None:
    messages = [turn("user", "What is <|image|>?"), turn("assistant", "a cat")]
    batch = CachedCollator(processor(), filled(media, *ALL))([ChatRow(messages)])
    assert processor().decode(batch["input_ids"][0]).startswith("<|user|>What is <|image|>?<|end|>")
    assert processor().image_token_id not in batch["input_ids"]


# ---- Views and dropout ----------------------------------------------------------------------------------------------

VIEWS = {"augmentation": Augmentation(ImageAugmentation(crop=0.5, color=0.5)), "views": {"image": 3}}


def shown(collator: CachedCollator, each: ChatRow) -> int:
    """Which view of its only image a row shows."""
    states = collator([each])["vision_states"][0, 0]
    kept = [collator.cache.states(each.messages[0]["content"][0], view)[0] for view in range(3)]
    return [torch.equal(states, view) for view in kept].index(True)


def test_each_pass_shows_a_view_drawn_by_row_and_pass_alone(media) -> None:
    collator = CachedCollator(processor(), filled(media, "a.png", **VIEWS))
    rows = [row(media, "a.png", id=f"row {n}", epoch=epoch) for n in range(4) for epoch in range(4)]
    views = [shown(collator, each) for each in rows]
    assert len(Counter(views)) == 3
    assert len(set(views[:4])) > 1  # one row in its passes
    assert len(set(views[::4])) > 1  # one pass over the rows
    again = CachedCollator(processor(), filled(media, "a.png", **VIEWS))
    assert [shown(again, each) for each in reversed(rows)] == views[::-1]
    reseeded = VIEWS | {"augmentation": replace(VIEWS["augmentation"], seed=1)}
    other = CachedCollator(processor(), filled(media, "a.png", **reseeded))
    assert [shown(other, each) for each in rows] != views


def test_evaluation_and_prompts_show_the_file_as_it_is(media) -> None:
    collator = CachedCollator(processor(), filled(media, "a.png", **VIEWS), padding_side="left")
    first = collator.cache.states(media_part(media, "a.png"), 0)[0]
    rows = [row(media, "a.png", id="row", epoch=epoch) for epoch in range(8)]
    assert {shown(collator, each) for each in rows} != {0}
    evaluation = collator.for_evaluation()
    assert evaluation.padding_side == "left"
    assert {shown(evaluation, each) for each in rows} == {0}
    assert {shown(CachedCollator(processor(), collator.cache, shows_views=False), each) for each in rows} == {0}
    assert all(torch.equal(collator.prompt_batch([each])["vision_states"][0, 0], first) for each in rows)


def test_modality_dropout_leaves_out_as_the_raw_collator_does(media) -> None:
    dropout = ModalityDropout(image=0.5, audio=0.5, seed=3)
    states = filled(media, *ALL)
    rows = [row(media, "a.png", "long.wav", id=f"row {number}") for number in range(6)]
    raw = ChatCollator(processor(), modality_dropout=dropout)
    cached = CachedCollator(processor(), states, modality_dropout=dropout)
    kept = set()
    for each in rows:
        ours, theirs = cached([each]), raw([each])
        assert torch.equal(ours["input_ids"], theirs["input_ids"])
        assert ("vision_states" in ours) == ("pixel_values" in theirs)
        kept.add("vision_states" in ours)
        assert {"vision_states", "audio_states"} <= set(cached.for_evaluation()([each]))
    assert kept == {True, False}


# ---- With the data loader -------------------------------------------------------------------------------------------


def test_a_pickled_collator_gives_the_same_batch(media) -> None:
    rows = make_rows(media, ROWS["mixed rows"])
    collator = CachedCollator(processor(), filled(media, *ALL))
    expected = collator(rows)
    again = pickle.loads(pickle.dumps(collator))
    assert again.cache.towers is None  # models do not travel to workers
    assert_same(again(rows), expected)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_of_a_data_loader_give_the_same_batches(media, context: str) -> None:
    rows = make_rows(media, ROWS["mixed rows"])
    collator = CachedCollator(processor(), filled(media, *ALL))
    loader = DataLoader(
        ChatDataset(rows), 2, collate_fn=collator, num_workers=2, multiprocessing_context=context, timeout=300
    )
    for batch, start in zip(loader, range(0, len(rows), 2), strict=True):
        assert_same(batch, collator(rows[start : start + 2]))


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_texts_are_encoded_once(media, monkeypatch) -> None:
    collator = CachedCollator(processor(), filled(media, *ALL))
    one = row(media, "a.png")
    expected = collator([one])
    monkeypatch.setattr(type(processor()), "apply_chat_template", lambda *_, **__: pytest.fail("encoded again"))
    assert_same(collator([replace(one, epoch=1)]), expected)
