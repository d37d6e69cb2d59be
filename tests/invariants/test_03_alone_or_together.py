"""Invariant 3: a row's logits do not depend on the rows beside it, on left or right padding, on padded images,
windows or frames (1e-5)."""

import pytest
import torch

from modeling_mm import MMForSequenceClassification
from tests.fakes.tiny import (
    AUDIO,
    CONNECTORS,
    IMAGE,
    MELS,
    difference,
    image,
    inputs,
    opened,
    pad_audio,
    pad_images,
    sound,
    wav2vec2,
    wave,
)

TOLERANCE = 1e-5
ROWS = [
    [5, IMAGE, 6, AUDIO, 7, 8],
    [9, 10, 11],
    [IMAGE, 12, IMAGE, 13],
    [AUDIO, AUDIO, 14, 15, 16],
    [17, 18, 19, IMAGE],
]


def media_of(index, row, make_sound=sound):
    """What `inputs` draws for a row of this index."""
    images = [image(10 * index + j) for j in range(row.count(IMAGE))]
    return images, [make_sound(10 * index + j) for j in range(row.count(AUDIO))]


@torch.no_grad()
def alone(model, index, row, make_sound=sound):
    images, sounds = media_of(index, row, make_sound)
    return model(**inputs([row], [images], [sounds])).logits[0]


@torch.no_grad()
def check_alone_or_together(model, batch, rows=ROWS, make_sound=sound):
    logits = model(**batch).logits
    for i, row in enumerate(rows):
        moved = difference(logits[i][batch["attention_mask"][i] == 1], alone(model, i, row, make_sound))
        assert moved <= TOLERANCE, f"row {i} moved by {moved} in company"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_each_row_is_the_same_alone_and_in_a_mixed_batch(side, implementation):
    model = opened()
    model.set_attn_implementation(implementation)
    check_alone_or_together(model, inputs(ROWS, side=side))


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("connector", CONNECTORS)
def test_each_connector_keeps_rows_apart(connector, gated):
    model = opened(vision_connector=connector, audio_connector=connector, cross_attention_gated=gated)
    check_alone_or_together(model, inputs(ROWS))


@pytest.mark.parametrize("media_encoding", ["learned", "sinusoidal", "none"])
@pytest.mark.parametrize("text_encoding", ["learned", "sinusoidal"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_position_encoding_keeps_rows_apart(media_encoding, text_encoding, side):
    model = opened(media_position_encoding=media_encoding, text_position_encoding=text_encoding)
    check_alone_or_together(model, inputs(ROWS, side=side))


@pytest.mark.parametrize("length", [6, 9, 40])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_amount_of_text_padding_does_not_matter(length, side):
    check_alone_or_together(opened(), inputs(ROWS, side=side, length=length))


@pytest.mark.parametrize("rubbish", [0.0, 1e3, float("nan")])
def test_padded_images_and_windows_do_not_matter_whatever_they_hold(rubbish):
    """Only real images and windows enter an encoder: not even NaN in the padding gets through."""
    model = opened()
    images, sounds = zip(*(media_of(i, row) for i, row in enumerate(ROWS)), strict=True)
    batch = inputs(ROWS) | pad_images(images, size=4) | pad_audio(sounds, size=3)
    batch["pixel_values"][~batch["image_mask"]] = rubbish
    absent = ~batch["feature_attention_mask"].any(-1)
    assert absent.sum() == 12 and (~batch["image_mask"]).sum() == 16
    batch["input_features"][absent] = rubbish
    check_alone_or_together(model, batch)


@pytest.mark.parametrize("place", [0, 1])
def test_padded_images_may_stand_anywhere_in_the_row(place):
    model = opened()
    batch = inputs([[5, IMAGE, 6, IMAGE, 7]])
    expected = model(**batch).logits
    gap = torch.zeros(1, 1, 3, 16, 16)
    parts, flags = list(batch["pixel_values"].split(1, dim=1)), [True, True]
    parts.insert(place, gap)
    flags.insert(place, False)
    batch |= {"pixel_values": torch.cat(parts, dim=1), "image_mask": torch.tensor([flags])}
    assert difference(model(**batch).logits, expected) <= TOLERANCE


def test_a_row_without_media_is_the_same_without_media_arguments_at_all():
    model = opened()
    row = [9, 10, 11, 12]
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([row])).logits[0]
        mixed = model(**inputs([row, [5, IMAGE, 6, AUDIO]])).logits[0]
        empty = model(**inputs([row]), **pad_images([[]], size=2), **pad_audio([[]], size=1)).logits[0]
    assert difference(alone, mixed) <= TOLERANCE
    assert difference(alone, empty) <= TOLERANCE


def test_the_order_of_rows_does_not_matter():
    model = opened()
    batch = inputs(ROWS)
    order = torch.tensor([3, 0, 4, 2, 1])
    with torch.no_grad():
        logits = model(**batch).logits
        shuffled = model(**{name: tensor[order] for name, tensor in batch.items()}).logits
    real = batch["attention_mask"][order] == 1
    assert difference(shuffled[real], logits[order][real]) <= TOLERANCE


@pytest.mark.parametrize("connector", CONNECTORS)
def test_padded_frames_of_a_log_mel_window_do_not_matter(connector):
    """30 real frames of 40: whatever the padding of zeros holds cannot be seen in the answer, as zeros do not move."""
    model = opened(audio_connector=connector)
    rows = [[5, AUDIO, 6], [7, AUDIO, 8]]
    short, long = sound(0, frames=30), sound(1)
    with torch.no_grad():
        together = model(**inputs(rows, audio=[[short], [long]])).logits
        short_alone = model(**inputs(rows[:1], audio=[[short]])).logits[0]
        long_alone = model(**inputs(rows[1:], audio=[[long]])).logits[0]
        unmasked = inputs(rows[:1], audio=[[short]])
        unmasked["feature_attention_mask"].fill_(1)
        unmasked = model(**unmasked).logits[0]
    assert difference(together[0], short_alone) <= TOLERANCE
    assert difference(together[1], long_alone) <= TOLERANCE
    assert difference(unmasked[1:], short_alone[1:]) > 1e-4, "the frame mask is ignored"


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("connector", CONNECTORS)
def test_padding_of_other_waves_does_not_move_a_row(norm, connector):
    """Of 240, 400 and 320 samples. A group norm over time would see the zeros that the longest wave adds."""
    model = opened(audio=wav2vec2(norm), audio_connector=connector)
    rows = [[5, AUDIO, 6], [7, AUDIO, 8, 9], [10, 11], [AUDIO, 12, AUDIO, 13]]
    waves = [[wave(0, 240)], [wave(1, 400)], [], [wave(2, 320), wave(3, 280)]]
    with torch.no_grad():
        batch = inputs(rows, audio=waves)
        together = model(**batch).logits
        for i, row in enumerate(rows):
            by_itself = model(**inputs([row], audio=[waves[i]])).logits[0]
            moved = difference(together[i, : len(row)], by_itself)
            assert moved <= TOLERANCE, f"row {i} moved by {moved}"
        longer = model(**batch | pad_audio(waves, size=3, frames=640)).logits
    real = batch["attention_mask"] == 1
    assert difference(longer[real], together[real]) <= TOLERANCE


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_two_windows_of_one_row_do_not_move_each_other_by_their_length(norm):
    model = opened(audio=wav2vec2(norm))
    row = [5, AUDIO, 6, AUDIO, 7]
    with torch.no_grad():
        one = model(**inputs([row], audio=[[wave(0, 240), wave(1, 400)]])).logits[0]
        first = model(**inputs([row[:3]], audio=[[wave(0, 240)]])).logits[0]
    assert difference(one[:3], first) <= TOLERANCE


def test_media_states_of_a_wave_do_not_depend_on_its_padding():
    model = opened(audio=wav2vec2("group"))
    with torch.no_grad():
        alone = model.encode_media(**pad_audio([[wave(0, 240)]]))
        padded = model.encode_media(**pad_audio([[wave(0, 240)], [wave(1, 400)]]))
    assert alone.mask.sum() == padded.mask[0].sum()
    assert difference(padded.states[0][padded.mask[0]], alone.states[0][alone.mask[0]]) <= TOLERANCE
    assert (padded.states[~padded.mask] == 0).all()


def test_one_image_a_row_without_its_own_axis_is_the_same():
    model = opened(vision_connector="perceiver")
    batch = inputs([[5, IMAGE, 6], [IMAGE, 7, 8]])
    flat = {k: v for k, v in batch.items() if k != "image_mask"} | {"pixel_values": batch["pixel_values"].squeeze(1)}
    with torch.no_grad():
        assert difference(model(**flat).logits, model(**batch).logits) == 0.0
    batch = inputs([[5, AUDIO, 6], [AUDIO, 7, 8]])
    flat = {k: v for k, v in batch.items() if k != "feature_attention_mask"}
    flat["input_features"] = batch["input_features"].reshape(2, MELS, -1)
    with torch.no_grad():
        assert difference(model(**flat).logits, model(**batch).logits) == 0.0


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_classifier_row_is_the_same_alone_or_together(side):
    model = opened(cls=MMForSequenceClassification, num_labels=3)
    with torch.no_grad():
        together = model(**inputs(ROWS, side=side)).logits
        assert together.shape == (5, 3)
        for i, row in enumerate(ROWS):
            images, sounds = media_of(i, row)
            moved = difference(together[i], model(**inputs([row], [images], [sounds])).logits[0])
            assert moved <= TOLERANCE, f"row {i} moved by {moved}"


@pytest.mark.parametrize("way", ["ids", "embeddings", "states"])
def test_padding_of_zeros_needs_no_mask(way):
    """As TRL's GRPO hands on media: without their masks."""
    rows = [[5, IMAGE, 6, IMAGE, 7], [8, 9, AUDIO], [IMAGE, 10, AUDIO, AUDIO]]
    model, batch = opened(), inputs(rows, side="left")
    expected = model(**batch).logits
    if way == "states":
        frames = batch["feature_attention_mask"].flatten(0, 1).bool()
        states, windows = (
            model.get_image_features(batch.pop("pixel_values")).last_hidden_state,
            batch["input_features"],
        )
        states = states.view(3, 2, *states.shape[1:])
        batch["vision_states"] = states * batch["image_mask"][..., None, None]
        assert windows.shape[:2] == (3, 2) and frames.any()
    elif way == "embeddings":
        batch["inputs_embeds"] = model.get_input_embeddings()(batch.pop("input_ids"))
    real = batch["attention_mask"].bool()
    for name in ("image_mask", "feature_attention_mask"):
        batch.pop(name)
    with torch.no_grad():
        assert difference(model(**batch).logits[real], expected[real]) <= 1e-5
    if way == "ids":
        tokens = [
            model.generate(**each, max_new_tokens=5, do_sample=False) for each in (batch, inputs(rows, side="left"))
        ]
        assert tokens[0].tolist() == tokens[1].tolist()
