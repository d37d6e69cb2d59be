"""Lessons of the encoder's head: moved tokens show the class, other media stay, all classes are asked about alike."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_mm.data import ChatRow, media_parts
from modeling_mm.training import CachedCollator
from scripts.workshop.lessons import (
    BLEND,
    CLASS,
    MOST,
    SURE,
    ClassLessons,
    ImageNetHead,
    LessonCollator,
    blended,
    moved_means,
    sure_rows,
)
from tests.fakes.tiny_chats import processor

CLASSES, WIDTH, SIDE = 6, 512, 4
TOLERANCE = 0.02  # of a probability, by the steps of the bisection


@pytest.fixture(scope="module")
def head() -> ImageNetHead:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(CLASSES, WIDTH, generator=generator) * 0.2
    return ImageNetHead(weight, torch.randn(CLASSES, generator=generator) * 0.1)


def tokens(seed: int = 1, highest: float = 0.2) -> torch.Tensor:
    """Return tokens (L, W), low enough for the head to see any class in them."""
    return torch.rand(SIDE * SIDE, WIDTH, generator=torch.Generator().manual_seed(seed)) * highest


def moved(head: ImageNetHead, seed: int, number: int = 2) -> torch.Tensor:
    return head.moved(tokens(), number, np.random.default_rng(seed))


# ---- Moved tokens ---------------------------------------------------------------------------------------------------


def test_probabilities_are_of_the_mean_token(head):
    states = tokens()
    logits = torch.nn.functional.linear(states.mean(0, keepdim=True), head.weight, head.bias)
    torch.testing.assert_close(head.probabilities(states), logits.softmax(-1)[0])


@pytest.mark.parametrize("number", range(CLASSES))
def test_the_head_sees_the_class_in_moved_tokens(head, number: int):
    before = float(head.probabilities(tokens())[number])
    seen = [float(head.probabilities(moved(head, seed, number))[number]) for seed in range(25)]
    assert all(SURE[0] - TOLERANCE <= each <= SURE[1] + TOLERANCE for each in seen)
    assert before < SURE[0] and max(seen) - min(seen) > 0.2


def test_moved_tokens_are_activations_of_the_encoder(head):
    """Also if these are so high that the head never sees the class."""
    for highest in (0.2, MOST):
        given, greatest = tokens(highest=highest), []
        for seed in range(25):
            found = head.moved(given, 1, np.random.default_rng(seed))
            assert found.shape == given.shape and found.dtype == given.dtype
            assert found.min() >= 0
            greatest.append(float(found.max()))
        assert max(greatest) == MOST if highest == MOST else max(greatest) <= MOST
        assert torch.equal(given, tokens(highest=highest))


def test_tokens_are_moved_by_the_random_numbers_alone(head):
    assert torch.equal(moved(head, 3), moved(head, 3))
    assert not torch.equal(moved(head, 3), moved(head, 4))


def test_the_head_sees_every_class_in_moved_means(head):
    means = torch.stack([tokens(seed).mean(0) for seed in range(9)])
    found, classes = moved_means(means, head, rounds=5)
    assert classes == [*range(CLASSES)] * 5
    seen = torch.stack([head.probabilities(mean[None])[number] for mean, number in zip(found, classes, strict=True)])
    assert SURE[0] - TOLERANCE <= seen.min() and seen.max() <= SURE[1] + TOLERANCE
    assert found.min() >= 0 and found.max() <= MOST
    assert len({tuple(mean.tolist()) for mean in found}) == 5 * CLASSES
    assert torch.equal(moved_means(means, head, rounds=5)[0], found)
    assert not torch.equal(moved_means(means, head, rounds=5, seed=1)[0], found)


# ---- Questions ------------------------------------------------------------------------------------------------------

NAMES = [f"class {number}" for number in range(CLASSES)]
IMAGES = [f"{number}.png" for number in range(50)]


def test_lessons_ask_about_all_classes_equally():
    lessons = ClassLessons(NAMES, IMAGES, "What is this?", rounds=3)
    rows = [lessons[index] for index in range(len(lessons))]
    assert Counter(row.answer for row in rows) == dict.fromkeys(NAMES, 3)
    assert len({row.id for row in rows}) == len(rows) == 3 * CLASSES
    for row in rows:
        (part,) = media_parts(row.messages)
        assert part["path"] in IMAGES and row.answer == NAMES[part[CLASS]]
        assert row.messages[0]["content"][1] == {"type": "text", "text": "What is this?"}


def test_the_image_changes_with_the_epoch():
    def paths(epoch: int) -> list[str]:
        lessons = ClassLessons(NAMES, IMAGES, "What is this?")
        lessons.set_epoch(epoch)
        rows = [lessons[index] for index in range(len(lessons))]
        assert {row.epoch for row in rows} == {epoch}
        return [media_parts(row.messages)[0]["path"] for row in rows]

    assert paths(0) == paths(0) and paths(1) == paths(1)
    assert sum(a != b for a, b in zip(paths(0), paths(1), strict=True)) > 40


# ---- Batches --------------------------------------------------------------------------------------------------------


class GivenStates:
    """As much of an encoder cache as a collator reads: each file has tokens by its name."""

    seed = 0
    views = {"image": 1, "audio": 1}

    def states(self, part, view=0):
        return [tokens(int(Path(part["path"]).stem))]


def row(*numbers: int | None, **fields) -> ChatRow:
    """Return a question about images, each with a class or none."""
    images = [
        {"type": "image", "path": f"{place}.png", **({} if number is None else {CLASS: number})}
        for place, number in enumerate(numbers)
    ]
    user = {"role": "user", "content": [*images, {"type": "text", "text": "What do you see?"}]}
    return ChatRow([user, {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]}], **fields)


@pytest.fixture
def collators(head) -> tuple[CachedCollator, LessonCollator]:
    return CachedCollator(processor(), GivenStates()), LessonCollator(processor(), GivenStates(), head=head)


def test_images_with_a_class_are_moved_and_others_are_not(collators, head):
    plain, lessons = (collator([row(None, 4, id="a"), row(None, None, id="b")]) for collator in collators)
    assert set(plain) == set(lessons)
    for name in set(plain) - {"vision_states"}:
        assert torch.equal(plain[name], lessons[name]), name
    ours, theirs = lessons["vision_states"], plain["vision_states"]  # (2, 2, L, W)
    assert torch.equal(ours[0, 0], theirs[0, 0]) and torch.equal(ours[1], theirs[1])
    assert not torch.equal(ours[0, 1], theirs[0, 1])
    assert head.probabilities(ours[0, 1].float())[4] > SURE[0] - TOLERANCE


def test_a_lesson_is_moved_by_its_name_and_epoch(collators):
    _, lessons = collators

    def states(**fields) -> torch.Tensor:
        return lessons([row(4, **fields)])["vision_states"]

    first = states(id="a", epoch=0)
    assert torch.equal(first, states(id="a", epoch=0))
    assert not torch.equal(first, states(id="a", epoch=1))
    assert not torch.equal(first, states(id="b", epoch=0))


def test_captioned_images_are_blended_with_others_of_their_name_in_training_alone(head):
    collator = LessonCollator(processor(), GivenStates(), head=head, alike={"a cat": ["5.png"]})
    plain = CachedCollator(processor(), GivenStates())
    caption = row(None, id="a", task="caption/en")
    ours, theirs = (each([caption])["vision_states"][0, 0].float() for each in (collator, plain))
    other = tokens(5).mean(0)
    toward = torch.nn.functional.cosine_similarity
    assert not torch.equal(ours, theirs)
    assert toward((ours - theirs).mean(0), other - tokens(0).mean(0), dim=0) > 0.99
    assert torch.equal(collator([caption])["vision_states"], collator([caption])["vision_states"])
    assert not torch.equal(collator([replace(caption, epoch=1)])["vision_states"][0, 0].float(), ours)
    for same in (replace(caption, task="category/en"), replace(caption, messages=said(caption, "a dog"))):
        assert torch.equal(collator([same])["vision_states"], plain([same])["vision_states"])
    assert torch.equal(collator.for_evaluation()([caption])["vision_states"], plain([caption])["vision_states"])


def said(row: ChatRow, answer: str) -> list[dict]:
    return [*row.prompt, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]


def test_a_blend_lies_between_the_means():
    ours, other = tokens(1), tokens(2)
    for seed in range(20):
        found = blended(ours, other, np.random.default_rng(seed))
        share = ((found.mean(0) - ours.mean(0)) / (other.mean(0) - ours.mean(0))).mean()
        assert 0 <= share <= BLEND + 1e-5
        spread = found.var(0).sum() / ours.var(0).sum()  # around the mean, which narrows on both ways
        assert spread < (1 - share) ** 2 + 1e-4


def test_rows_that_the_head_is_sure_about_are_answered_by_its_name(collators, head):
    collator, _ = collators
    rows = [replace(row(None), id="first")]
    for number in range(1, 6):
        part = {"type": "image", "path": f"{number}.png"}
        user = {"role": "user", "content": [part, {"type": "text", "text": "What do you see?"}]}
        rows.append(ChatRow([user, rows[0].messages[1]], "caption/en", f"row {number}"))
    probabilities = [head.probabilities(tokens(number)) for number in range(6)]
    highest = [float(each.max()) for each in probabilities]
    least = sorted(highest)[2]  # three are above it
    found = sure_rows(rows, collator, head, NAMES, least)
    kept = [number for number in range(6) if highest[number] > least]
    assert len(kept) == 3 and [each.id for each in found] == [f"sure/{rows[number].id}" for number in kept]
    for each, number in zip(found, kept, strict=True):
        assert each.answer == NAMES[int(probabilities[number].argmax())]
        assert each.prompt == rows[number].prompt and each.task == "photograph/en"
    assert {each.answer for each in rows} == {"a cat"}
