"""Invariant 6: after a few steps of training (30 here), a different image (sound) gives a different answer."""

import pytest
import torch

from modeling_mm import MMForSequenceClassification
from tests.fakes.tiny import AUDIO, CONNECTORS, IMAGE, image, inputs, joined, labels, sound, train, wav2vec2, wave

STEPS = 30
WORDS = [11, 22, 33, 44]


def lesson(kind, number=4):
    """The same question about `number` media, each with its own answer: a blind model cannot learn it."""
    placeholder = IMAGE if kind == "image" else AUDIO
    rows = [[5, placeholder, 6, 7, WORDS[i]] for i in range(number)]
    make = {"image": image, "sound": sound, "wave": wave}[kind]
    media = [[3 * make(40 + i)] for i in range(number)]
    batch = inputs(rows, media, [[]] * number) if kind == "image" else inputs(rows, [[]] * number, media)
    target = labels(batch)
    target[:, :4] = -100
    return batch | {"labels": target}


def answers(model, batch):
    with torch.no_grad():
        logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    return logits[:, 3].argmax(-1).tolist()


@pytest.mark.parametrize(
    "kind, gated",
    [
        *(("image", True), ("sound", False), ("wave", True)),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("image", False), ("sound", True), ("wave", False))
        ),
    ],
)
def test_four_media_get_their_four_answers_after_60_steps(kind, gated):
    audio = wav2vec2() if kind == "wave" else "whisper"
    model = joined(audio=audio, cross_attention_gated=gated)
    batch = lesson(kind)
    assert len(set(answers(model, batch))) == 1  # freshly joined it is blind
    losses = train(model, [batch], steps=60, lr=1e-2)
    assert answers(model, batch) == WORDS, losses[::10]


@pytest.mark.parametrize("kind", ["image", "sound"])
@pytest.mark.parametrize("connector", CONNECTORS)
def test_another_picture_or_sound_changes_the_answer_after_30_steps(connector, kind):
    model = joined(vision_connector=connector, audio_connector=connector)
    batch = lesson(kind, number=2)
    assert len(set(answers(model, batch))) == 1
    losses = train(model, [batch], steps=STEPS, lr=1e-2)
    assert answers(model, batch) == WORDS[:2], losses[::5]


@pytest.mark.parametrize("kind", ["image", "sound"])
def test_with_the_three_parts_frozen_media_still_come_to_matter(kind):
    model = joined(freeze_text=True, freeze_vision=True, freeze_audio=True)
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert len(before) > 50
    batch = lesson(kind, number=2)
    train(model, [batch], steps=60, lr=1e-2)
    assert len(set(answers(model, batch))) == 2
    for name, parameter in model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name]), f"{name} is frozen and moved"


def test_generated_answers_follow_the_picture():
    model = joined()
    batch = lesson("image", number=2)
    train(model, [batch], steps=STEPS, lr=1e-2)
    prompt = {
        name: tensor[:, :4] if name in ("input_ids", "attention_mask") else tensor for name, tensor in batch.items()
    }
    del prompt["labels"]
    assert model.generate(**prompt, max_new_tokens=1, do_sample=False)[:, -1].tolist() == WORDS[:2]
    swapped = prompt | {"pixel_values": prompt["pixel_values"].flip(0)}
    assert model.generate(**swapped, max_new_tokens=1, do_sample=False)[:, -1].tolist() == WORDS[:2][::-1]


def test_the_order_of_two_pictures_matters():
    """`Which came first?`: the words between and after them tell them apart."""
    model = joined()
    pictures = [3 * image(40), 3 * image(41)]
    batch = inputs([[IMAGE, 5, IMAGE, 6, WORDS[0]], [IMAGE, 5, IMAGE, 6, WORDS[1]]], [pictures, pictures[::-1]])
    target = labels(batch)
    target[:, :4] = -100
    train(model, [batch | {"labels": target}], steps=60, lr=1e-2)
    assert answers(model, batch) == WORDS[:2]


@pytest.mark.parametrize("kind", ["image", "sound"])
def test_a_classifier_learns_the_medium(kind):
    model = joined(cls=MMForSequenceClassification, num_labels=2)
    batch = lesson(kind, number=2) | {"labels": torch.tensor([0, 1])}
    batch["input_ids"][:, 4] = 8
    train(model, [batch], steps=STEPS, lr=1e-2)
    with torch.no_grad():
        assert model(**batch).logits.argmax(-1).tolist() == [0, 1]
