"""Invariant 7: a mismatch is a ValueError that names the row, both counts and the remedy; nothing is dropped."""

import re

import pytest
import torch

from modeling_mm import MMConfig, MMForSequenceClassification, MMModel
from tests.fakes.tiny import (
    AUDIO,
    IMAGE,
    MELS,
    gpt2_config,
    image,
    inputs,
    joined,
    opened,
    pad_audio,
    pad_images,
    pad_text,
    sound,
    vit_config,
    wave,
    whisper_config,
)

REMEDY = (
    r"\b(put|pass|give|use|set|check|shorten|truncate|split|cut|leave|remove|resize|train|join|add|encode|choose)\b"
)


@pytest.fixture(scope="module")
def model():
    return opened()


def check_message(error, row=None, counts=(), words=()):
    message = str(error.value)
    if row is not None:
        assert re.search(rf"\brows? {row}\b", message, re.IGNORECASE), f"the row is not named: {message}"
    numbers = re.findall(r"\d+", message)
    assert all(str(count) in numbers for count in counts), f"counts {counts} are not both named: {message}"
    assert all(word.lower() in message.lower() for word in words), message
    assert re.search(REMEDY, message, re.IGNORECASE), f"no remedy: {message}"


CASES = {  # rows of text, images a row, sounds a row, the row at fault, its placeholders, its media, the word
    "one_image_too_few": ([[1, IMAGE], [IMAGE, 2, IMAGE]], [1, 1], [0, 0], 1, 2, 1, "image"),
    "one_image_too_many": ([[1, IMAGE, 2], [IMAGE, 2]], [3, 1], [0, 0], 0, 1, 3, "image"),
    "an_image_without_placeholder": ([[1, 2], [IMAGE, 2]], [2, 1], [0, 0], 0, 0, 2, "image"),
    "a_placeholder_without_image": ([[1, IMAGE], [IMAGE, IMAGE, IMAGE]], [1, 0], [0, 0], 1, 3, 0, "image"),
    "one_window_too_few": ([[1, AUDIO], [AUDIO, 2, AUDIO]], [0, 0], [1, 1], 1, 2, 1, "audio"),
    "one_window_too_many": ([[1, 2], [AUDIO, 2]], [0, 0], [0, 2], 1, 1, 2, "audio"),
    "image_and_audio_swapped": ([[1, AUDIO, 2], [3, AUDIO]], [1, 0], [0, 1], 0, 0, 1, "image"),
    "right_in_total_but_not_by_row": ([[IMAGE, IMAGE], [3, 4]], [1, 1], [0, 0], 0, 2, 1, "image"),
}


def batch_of(rows, images, sounds):
    batch = pad_text(rows)
    batch |= pad_images([[image(j) for j in range(n)] for n in images]) if any(images) else {}
    return batch | (pad_audio([[sound(j) for j in range(n)] for n in sounds]) if any(sounds) else {})


@pytest.mark.parametrize("how", ["forward", "generate", "media", "classify"])
@pytest.mark.parametrize("case", CASES)
def test_a_mismatch_names_the_row_both_counts_and_the_remedy(model, case, how):
    rows, images, sounds, row, placeholders, media, word = CASES[case]
    batch = batch_of(rows, images, sounds)
    with pytest.raises(ValueError) as error:
        if how == "forward":
            model(**batch)
        elif how == "generate":
            model.generate(**batch, max_new_tokens=2)
        elif how == "classify":
            joined(cls=MMForSequenceClassification)(**batch)
        else:
            text = {name: batch.pop(name) for name in ("input_ids", "attention_mask")}
            model(**text, media=model.encode_media(**batch))
    check_message(error, row, (placeholders, media), [word])


def test_placeholders_without_any_media_at_all(model):
    with pytest.raises(ValueError) as error:
        model(input_ids=torch.tensor([[1, 2, 3, 4], [5, IMAGE, IMAGE, 6]]))
    check_message(error, 1, (2, 0), ["image"])
    with pytest.raises(ValueError) as error:
        model(input_ids=torch.tensor([[1, AUDIO, 3]]))
    check_message(error, 0, (1, 0), ["audio"])


def test_a_mismatch_in_a_later_turn_is_noticed_too(model):
    first = model(**inputs([[5, IMAGE, 6]]), use_cache=True)
    with pytest.raises(ValueError) as error:
        model(
            input_ids=torch.tensor([[7, IMAGE, IMAGE]]),
            past_key_values=first.past_key_values,
            **pad_images([[image()]]),
        )
    check_message(error, 0, (2, 1), ["image"])


@pytest.mark.parametrize("missing", ["vision", "audio"])
def test_media_for_a_model_without_their_encoder(missing):
    model = joined(**{missing: None})
    batch = inputs([[5, IMAGE, 6]] if missing == "vision" else [[5, AUDIO, 6]])
    with pytest.raises(ValueError) as error:
        model(**batch)
    check_message(error, words=["image" if missing == "vision" else "audio"])
    text = {name: batch.pop(name) for name in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError):
        model.encode_media(**batch)
    with pytest.raises(ValueError):
        model.generate(**text, **batch, max_new_tokens=2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_past_the_64_positions_names_the_row_and_both_lengths(model, side):
    batch = inputs([[1] * 20, [2] * 70], side=side)
    with pytest.raises(ValueError) as error:
        model(**batch)
    check_message(error, 1, (70, 64))


def test_padding_does_not_count_as_text(model):
    batch = inputs([[1] * 20, [2] * 60], side="left", length=80)
    with torch.no_grad():
        assert model(**batch).logits.shape == (2, 80, 97)


def test_text_past_the_positions_is_noticed_in_cached_steps_and_in_generate(model):
    ids = torch.full((1, 60), 7)
    first = model(input_ids=ids, use_cache=True)
    with pytest.raises(ValueError) as error:
        model(input_ids=ids[:, :5], past_key_values=first.past_key_values)
    check_message(error, 0, (65, 64))
    # An answer is cut where the positions end, with a warning; its last token needs none. A prompt is not cut.
    assert model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20).shape[1] <= 65
    ids = torch.full((1, 65), 7)
    with pytest.raises(ValueError) as error:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20)
    check_message(error, counts=(65, 64))


def test_sinusoidal_text_positions_have_no_greatest_length():
    model = joined(text_position_encoding="sinusoidal")
    with torch.no_grad():
        assert model(input_ids=torch.full((1, 100), 7)).logits.shape == (1, 100, 97)


def test_learned_media_positions_have_a_greatest_length():
    model = joined(media_position_encoding="learned", max_media_positions=3)
    with pytest.raises(ValueError) as error:
        model(**inputs([[5, IMAGE, 6]]))
    check_message(error, counts=(3, 5))


def test_a_window_longer_than_the_encoders_is_not_cut(model):
    batch = pad_text([[5, AUDIO, 6]]) | {"input_features": torch.randn(1, 1, MELS, 52)}
    with pytest.raises(ValueError) as error:
        model(**batch)
    check_message(error, counts=(52, 40))


BAD_BATCHES = {
    "other_number_of_rows": lambda b: b | {"pixel_values": b["pixel_values"][:1], "image_mask": b["image_mask"][:1]},
    "image_mask_of_another_shape": lambda b: b | {"image_mask": torch.ones(2, 3, dtype=torch.bool)},
    "frame_mask_of_another_length": lambda b: b | {"feature_attention_mask": torch.ones(2, 1, 13)},
    "waves_for_a_log_mel_encoder": lambda b: (
        {k: v for k, v in b.items() if k != "input_features"} | pad_audio([[wave()], []])
    ),
    "both_kinds_of_sound": lambda b: b | {"input_values": torch.randn(2, 1, 400)},
    "images_without_channels": lambda b: b | {"pixel_values": torch.randn(2, 16, 16)},
    "images_of_another_size": lambda b: b | {"pixel_values": torch.randn(2, 1, 3, 24, 24)},
    "no_text": lambda b: {k: v for k, v in b.items() if k != "input_ids"},
}


@pytest.mark.parametrize("bad", BAD_BATCHES)
def test_inputs_that_do_not_fit_each_other_raise_a_value_error(model, bad):
    batch = inputs([[5, IMAGE, 6, AUDIO], [IMAGE, 7, 8, 9]])
    model(**batch)
    with pytest.raises(ValueError):
        model(**BAD_BATCHES[bad](batch))


def test_an_attention_mask_of_another_length_is_an_error(model):
    with pytest.raises((ValueError, RuntimeError)):
        model(input_ids=torch.tensor([[1, 2, 3, 4]]), attention_mask=torch.ones(1, 3, dtype=torch.long))


def test_media_and_raw_inputs_together_are_refused(model):
    """One of the two would be dropped."""
    batch = inputs([[5, IMAGE, 6, AUDIO]])
    raw = {name: tensor for name, tensor in batch.items() if name not in ("input_ids", "attention_mask")}
    with pytest.raises(ValueError) as error:
        model(**batch, media=model.encode_media(**raw))
    check_message(error, words=["media"])


def test_ids_and_embeddings_together_are_refused(model):
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(ValueError):
        model(input_ids=ids, inputs_embeds=model.get_input_embeddings()(ids))


def test_media_of_other_rows_than_the_text_are_refused(model):
    """Media that are encoded may be of one row for all; raw inputs must not, as a batch may have lost rows."""
    ids, images = torch.tensor([[1, IMAGE], [IMAGE, 2], [3, IMAGE]]), pad_images([[image()], [image(1)]])
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"text has 3 rows, the media have 2"):
            call(input_ids=ids, media=model.encode_media(**images))
        with pytest.raises(ValueError, match=r"text has 3 rows, the media have 1"):
            call(input_ids=ids, **{name: tensor[:1] for name, tensor in images.items()})


BAD_FIELDS = {
    "vision_connector": "transformer",
    "audio_connector": "lstm",
    "media_position_encoding": "rotary",
    "text_position_encoding": "alibi",
    "cross_attention_layers": [9],
    "cross_attention_interval": 0,
    "vision_latents": 0,
    "audio_connector_layers": -1,
}


@pytest.mark.parametrize("field", BAD_FIELDS)
def test_a_wrong_field_fails_at_construction_with_its_name(field):
    parts = {"text_config": gpt2_config(), "vision_config": vit_config(), "audio_config": whisper_config()}
    good = {"image_token_id": 88, "audio_token_id": 89}
    MMConfig(**parts, **good)
    with pytest.raises(ValueError) as error:
        MMConfig(**parts, **{**good, field: BAD_FIELDS[field]})
    assert field in str(error.value)


@pytest.mark.parametrize("field", ["image_token_id", "audio_token_id"])
def test_a_placeholder_outside_the_vocabulary_fails_when_the_model_is_made(field):
    """Not in the config: `from_pretrained(path, text_config={"vocab_size": ...})` must be able to change it."""
    parts = {"text_config": gpt2_config(), "vision_config": vit_config(), "audio_config": whisper_config()}
    config = MMConfig(**parts, **{"image_token_id": 88, "audio_token_id": 89, field: 90})
    with pytest.raises(ValueError, match=f"{field} is 90, but the vocabulary has 90 tokens"):
        MMModel(config)


def test_a_missing_placeholder_id_fails_at_construction():
    with pytest.raises(ValueError) as error:
        MMConfig(text_config=gpt2_config(), vision_config=vit_config())
    assert "image_token_id" in str(error.value)


def test_two_placeholders_cannot_share_an_id():
    with pytest.raises(ValueError) as error:
        MMConfig(
            text_config=gpt2_config(),
            vision_config=vit_config(),
            audio_config=whisper_config(),
            image_token_id=88,
            audio_token_id=88,
        )
    assert "image_token_id" in str(error.value) and "audio_token_id" in str(error.value)


def test_an_item_beyond_the_placeholders_that_is_not_zeros_is_no_padding(model):
    batch = inputs([[5, IMAGE, 6, IMAGE], [7, 8]])
    batch["pixel_values"][1, 0, 0, 0, 0] = 1e-3
    batch.pop("image_mask")
    with pytest.raises(ValueError, match=r"Row 1: 0 image placeholder token\(s\).* for 2 image\(s\)"):
        model(**batch)


def test_an_image_of_zeros_that_its_mask_calls_real_needs_a_placeholder(model):
    batch = inputs([[5, IMAGE, 6, IMAGE], [7, 8]])
    batch["image_mask"] = torch.ones_like(batch["image_mask"])
    with pytest.raises(ValueError, match="Row 1: 0 image"):
        model(**batch)
