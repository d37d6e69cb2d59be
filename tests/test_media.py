"""media.py: gather what is real, encode it once, lay it out in rows."""

import pytest
import torch

from modeling_mm.outputs import MMMediaOutput
from tests.fakes.tiny import AUDIO as AUDIO_TOKEN
from tests.fakes.tiny import (
    FRAMES,
    MELS,
    SAMPLES,
    WIDTH,
    difference,
    image,
    joined,
    opened,
    pad_audio,
    pad_images,
    pad_text,
    sound,
    wave,
)
from tests.fakes.tiny import IMAGE as IMAGE_TOKEN

IMAGE, AUDIO = 0, 1  # indices in MODALITIES
IMAGE_TOKENS = 5  # 4 patches and the class token
AUDIO_TOKENS = FRAMES // 2


@pytest.fixture(scope="module")
def model():
    return opened()


def counted(model, tower: str):
    """Records the number of items of each call of a tower."""
    calls = []
    module = getattr(model.model, tower)
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(len(next(iter(kwargs.values())))), with_kwargs=True
    )
    return calls, handle


# ---- encode_media ---------------------------------------------------------------------------------------------------


def test_layout_of_a_ragged_batch(model):
    rows = [[image(0), image(1)], [], [image(2)]]
    with torch.no_grad():
        media = model.encode_media(**pad_images(rows))
    assert media.states.shape == (3, 2 * IMAGE_TOKENS, WIDTH)
    one, no = [True] * IMAGE_TOKENS, [False] * IMAGE_TOKENS
    assert media.mask.tolist() == [one + one, no + no, one + no]
    first, second, padding = [0] * IMAGE_TOKENS, [1] * IMAGE_TOKENS, [-1] * IMAGE_TOKENS
    assert media.position.tolist() == [first + second, padding + padding, first + padding]
    assert media.modality.unique().tolist() == [IMAGE]
    assert media.states[~media.mask].abs().max() == 0
    assert media.count(IMAGE).tolist() == [2, 0, 1] and media.count(AUDIO).tolist() == [0, 0, 0]


def test_only_real_items_enter_an_encoder(model):
    calls, handle = counted(model, "vision_tower")
    sounds, sound_handle = counted(model, "audio_tower")
    with torch.no_grad():
        model.encode_media(
            **pad_images([[image(0), image(1)], [], [image(2)]], size=4), **pad_audio([[], [sound(0)], []], size=2)
        )
    handle.remove()
    sound_handle.remove()
    assert calls == [3] and sounds == [1]


def test_items_keep_their_order_behind_a_gap(model):
    """The second slot is real, the first is not: its item is the row's first."""
    pixel_values = torch.stack([torch.stack([torch.zeros_like(image(7)), image(7)])])
    with torch.no_grad():
        media = model.encode_media(pixel_values=pixel_values, image_mask=torch.tensor([[False, True]]))
        alone = model.encode_media(pixel_values=image(7)[None])
    assert media.position[0].tolist() == [-1] * IMAGE_TOKENS + [0] * IMAGE_TOKENS
    assert difference(media.states[:, IMAGE_TOKENS:], alone.states) < 1e-6


def test_contents_of_padded_images_do_not_matter(model):
    batch = pad_images([[image(0), image(1)], [image(2)]])
    with torch.no_grad():
        media = model.encode_media(**batch)
        batch["pixel_values"][1, 1] = 77.0
        other = model.encode_media(**batch)
    assert difference(media.states, other.states) == 0


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_one_item_a_row_may_come_without_its_dimension(model, kind):
    with torch.no_grad():
        if kind == "image":
            values = torch.stack([image(0), image(1)])
            short, full = model.encode_media(pixel_values=values), model.encode_media(pixel_values=values[:, None])
        else:
            values, mask = torch.stack([sound(0), sound(1)]), torch.ones(2, FRAMES).long()
            mask[1, 9:] = 0
            short = model.encode_media(input_features=values, feature_attention_mask=mask)
            full = model.encode_media(input_features=values[:, None], feature_attention_mask=mask[:, None])
    for one, other in zip(short.tensors, full.tensors, strict=True):
        assert torch.equal(one, other)


def test_frames_decide_which_tokens_and_windows_are_real(model):
    with torch.no_grad():
        media = model.encode_media(**pad_audio([[sound(0), sound(1, frames=9)], [sound(2, frames=1)]]))
    counts = media.mask.view(2, 2, AUDIO_TOKENS).sum(-1)
    assert counts.tolist() == [[AUDIO_TOKENS, 5], [1, 0]]
    assert media.count(AUDIO).tolist() == [2, 1]
    assert media.modality.unique().tolist() == [AUDIO]


def test_without_masks_everything_is_real(model):
    with torch.no_grad():
        media = model.encode_media(
            pixel_values=torch.stack([image(0), image(1)]), input_features=torch.stack([sound(0), sound(1)])
        )
    assert media.mask.all()


def test_both_modalities_stand_side_by_side_images_first(model):
    with torch.no_grad():
        media = model.encode_media(**pad_images([[image(0)]]), **pad_audio([[sound(0)]]))
    assert media.modality[0].tolist() == [IMAGE] * IMAGE_TOKENS + [AUDIO] * AUDIO_TOKENS
    assert media.position[0].unique().tolist() == [0]


def test_rows_without_any_media_give_one_masked_token_without_running_the_encoder(model):
    calls, handle = counted(model, "vision_tower")
    media = model.encode_media(pixel_values=torch.zeros(2, 3, 3, 16, 16), image_mask=torch.zeros(2, 3))
    handle.remove()
    assert calls == []
    assert media.states.shape == (2, 1, WIDTH) and not media.mask.any() and media.position.unique().tolist() == [-1]
    assert media.count(IMAGE).tolist() == [0, 0]


def test_raw_waves():
    model = opened(vision=None, audio="wav2vec2")
    with torch.no_grad():
        media = model.encode_media(**pad_audio([[wave(0), wave(1, samples=200)], [wave(2)]]))
        alone = model.encode_media(input_values=wave(1, samples=200)[None])
    tokens = media.mask.view(2, 2, -1).sum(-1).tolist()
    assert tokens[0][1] == int(alone.mask.sum()) and tokens[1][1] == 0
    length = media.mask.shape[1] // 2
    assert difference(media.states[0, length : length + tokens[0][1]], alone.states[0]) < 1e-5


def some_media() -> MMMediaOutput:
    return MMMediaOutput(
        torch.randn(3, 3, 4),
        torch.tensor([[True, True, True], [True, False, False], [True, True, False]]),
        torch.tensor([[0, 1, 0], [0, -1, -1], [0, 0, -1]]),
        torch.tensor([[IMAGE, IMAGE, AUDIO], [AUDIO, IMAGE, IMAGE], [IMAGE, IMAGE, AUDIO]]),
    )


def test_media_output_maps_counts_and_repeats():
    media = some_media()
    assert media.count(IMAGE).tolist() == [2, 0, 1] and media.count(AUDIO).tolist() == [1, 1, 0]
    assert media.item_counts() == {"image": [2, 0, 1], "audio": [1, 1, 0]}
    twice = media.repeat_interleave(2)
    assert twice.states.shape == (6, 3, 4) and twice.count(IMAGE).tolist() == [2, 2, 0, 0, 1, 1]
    assert media.states.shape == (3, 3, 4) and media.map(lambda tensor: tensor[1:]).count(AUDIO).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        (0, [0]),
        (-1, [2]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        (torch.tensor([1, 1]), [1, 1]),
        (torch.tensor(1), [1]),
        (torch.tensor([True, False, True]), [0, 2]),
    ],
    ids=str,
)
def test_indices_select_rows_of_media(key, rows):
    media = some_media()
    for name, tensor in media[key].items():
        assert torch.equal(tensor, media[name][rows])


def test_strings_and_tuples_of_media_are_those_of_every_model_output():
    media = some_media()
    assert media["mask"] is media.mask and list(media) == ["states", "mask", "position", "modality"]
    assert all(ours is field for ours, field in zip(media.to_tuple(), media.values(), strict=True))
    with pytest.raises(IndexError):
        media[3]


# ---- get_*_features -------------------------------------------------------------------------------------------------


def test_image_features_are_the_encoders_states_and_the_media_tokens(model):
    pictures = torch.stack([image(0), image(1)])
    with torch.no_grad():
        features = model.get_image_features(pictures, output_hidden_states=True)
        expected = model.model.vision_tower(pictures).last_hidden_state
        media = model.encode_media(pixel_values=pictures)
    assert difference(features.last_hidden_state, expected) < 1e-6
    assert difference(features.pooler_output, media.states) < 1e-6
    assert len(features.hidden_states) == 3


def test_image_features_take_rows_of_images(model):
    pictures = torch.stack([torch.stack([image(0), image(1)]), torch.stack([image(2), image(3)])])
    with torch.no_grad():
        features = model.get_image_features(pictures)
        flat = model.get_image_features(pictures.flatten(0, 1))
    assert features.pooler_output.shape == (4, IMAGE_TOKENS, WIDTH)
    assert difference(features.pooler_output, flat.pooler_output) == 0


def test_audio_features_are_zeros_where_no_frame_is_real(model):
    batch = pad_audio([[sound(0), sound(1, frames=9)]])
    with torch.no_grad():
        features = model.get_audio_features(**batch)
        media = model.encode_media(**batch)
    assert features.last_hidden_state.shape == (2, AUDIO_TOKENS, 16)
    assert features.pooler_output[1, 5:].abs().max() == 0 and features.pooler_output[1, :5].abs().min(-1)[0].min() > 0
    assert difference(features.pooler_output.flatten(0, 1)[None], media.states) < 1e-6


def test_features_as_a_tuple(model):
    with torch.no_grad():
        features = model.get_image_features(image(0)[None], return_dict=False)
    assert isinstance(features, tuple) and features[1].shape == (1, IMAGE_TOKENS, WIDTH)


def test_audio_features_of_waves():
    model = joined(vision=None, audio="wav2vec2")
    with torch.no_grad():
        features = model.get_audio_features(input_values=wave(0)[None])
    assert features.pooler_output.shape[0] == 1 and features.pooler_output.shape[2] == WIDTH


# ---- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "inputs", "message"),
    [
        ("vision", {"pixel_values": torch.zeros(1, 3, 16, 16)}, r"given images.*vision_config is None"),
        ("audio", {"input_features": torch.zeros(1, MELS, FRAMES)}, r"given audio.*audio_config is None"),
        ("audio", {"input_values": torch.zeros(1, SAMPLES)}, r"given audio.*audio_config is None"),
    ],
)
def test_media_without_an_encoder_are_refused(missing, inputs, message):
    model = joined(**{missing: None})
    with pytest.raises(ValueError, match=message):
        model.encode_media(**inputs)
    method = model.get_image_features if missing == "vision" else model.get_audio_features
    with pytest.raises(ValueError, match=message):
        method(**inputs)


def test_unknown_arguments_are_refused(model):
    with pytest.raises(TypeError, match="unexpected arguments: pixels"):
        model.encode_media(pixels=torch.zeros(1, 3, 16, 16))


def test_nothing_to_encode_is_refused(model):
    with pytest.raises(ValueError, match=r"no media\. Pass one of pixel_values, vision_states, input_f"):
        model.encode_media()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pixel_values": torch.zeros(3, 16, 16)}, r"5 dimensions.*got shape \(3, 16, 16\)"),
        ({"pixel_values": torch.zeros(1, 1, 1, 3, 16, 16)}, r"5 dimensions"),
        ({"input_features": torch.zeros(MELS, FRAMES)}, r"4 dimensions"),
        (
            {"pixel_values": torch.zeros(2, 2, 3, 16, 16), "image_mask": torch.ones(2, 3)},
            r"image_mask must have shape \(2, 2\).*\(2, 3\)",
        ),
        (
            {"input_features": torch.zeros(2, MELS, FRAMES), "feature_attention_mask": torch.ones(2, 9)},
            rf"feature_attention_mask must have shape \(2, 1, {FRAMES}\).*\(2, 1, 9\)",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model.encode_media(**inputs)


# ---- What the encoders made before ----------------------------------------------------------------------------------


def states_before(model, rows_of_images, rows_of_sounds):
    """The media inputs of ragged rows, raw and as states of the encoders with their masks."""
    images, sounds = pad_images(rows_of_images), pad_audio(rows_of_sounds)
    present = images["image_mask"]
    frames = sounds["feature_attention_mask"].bool()
    heard = frames.any(-1)
    with torch.no_grad():
        seen = model.get_image_features(images["pixel_values"][present]).last_hidden_state
        listened = model.get_audio_features(sounds["input_features"][heard]).last_hidden_state
    vision_states = seen.new_zeros(*present.shape, *seen.shape[1:]).index_put((present,), seen)
    audio_states = listened.new_zeros(*heard.shape, *listened.shape[1:]).index_put((heard,), listened)
    tokens = frames[..., ::2]  # the tiny Whisper halves the frames
    states = {"vision_states": vision_states, "image_mask": present, "audio_states": audio_states}
    return images | sounds, states | {"audio_states_mask": tokens}


@pytest.mark.parametrize("kind", ["mlp", "conv", "gru", "perceiver"])
def test_states_of_the_encoders_give_what_the_raw_media_give(kind):
    model = opened(vision_connector=kind, audio_connector=kind)
    raw, states = states_before(model, [[image(0), image(1)], [], [image(2)]], [[], [sound(0), sound(1)], [sound(2)]])
    with torch.no_grad():
        from_raw, from_states = model.encode_media(**raw), model.encode_media(**states)
    for ours, theirs in zip(from_states.tensors, from_raw.tensors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_states_of_the_encoders_train_and_generate_as_raw_media_do(model):
    raw, states = states_before(model, [[image(0)], [image(1)]], [[sound(0)], [sound(1)]])
    ids = torch.tensor([[model.config.image_token_id, model.config.audio_token_id, 5, 6]] * 2)
    with torch.no_grad():
        from_raw = model(input_ids=ids, labels=ids, **raw)
        from_states = model(input_ids=ids, labels=ids, **states)
    assert abs(from_raw.loss - from_states.loss) < 1e-6
    ours, theirs = (model.generate(input_ids=ids, max_new_tokens=5, **media) for media in (states, raw))
    assert torch.equal(ours, theirs)


def test_a_modality_is_given_once(model):
    raw, states = states_before(model, [[image(0)]], [[sound(0)]])
    with pytest.raises(ValueError, match="Pass one of pixel_values, vision_states for the images"):
        model.encode_media(pixel_values=raw["pixel_values"], vision_states=states["vision_states"])
    with pytest.raises(ValueError, match="not input_features and audio_states"):
        model.encode_media(input_features=raw["input_features"], audio_states=states["audio_states"])


def test_states_of_another_encoder_are_refused(model):
    with pytest.raises(ValueError, match=r"vision_states have 7 features, but \w+ makes \d+"):
        model.encode_media(vision_states=torch.zeros(1, 1, 5, 7))


# ---- Media of one row for any number of prompts ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompts():
    """Rows whose placeholders stand at different places, one of them padded."""
    rows = [[5, IMAGE_TOKEN, 6, AUDIO_TOKEN, 7], [AUDIO_TOKEN, 8, IMAGE_TOKEN], [IMAGE_TOKEN, 9, 10, 11, AUDIO_TOKEN]]
    return pad_text(rows, side="left")


def one_row(model, **how) -> tuple[MMMediaOutput, MMMediaOutput]:
    """Media of one row, and the same three times; an image and a short audio window."""
    media = model.encode_media(**pad_images([[image(0)]]), **pad_audio([[sound(0, frames=9)]]))
    return media, media.repeat_interleave(3)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_one_row_of_media_serves_every_row_of_text(model, prompts, implementation):
    model = opened(attn_implementation=implementation)
    shared, separate = (model(**prompts, media=one_row(model)[i]) for i in range(2))
    assert difference(shared.logits, separate.logits) < 1e-5
    keys, _ = shared.past_key_values.cross_attention_cache.layers[1]
    assert len(keys) == 1, "keys and values are computed once, not for each row"
    gradients = []
    for output in (shared, separate):
        model.zero_grad()
        output.logits.square().mean().backward()
        gradients.append(model.model.vision_connector.norm.weight.grad.clone())
    assert difference(*gradients) < 1e-5 and gradients[0].abs().max() > 0


@pytest.mark.parametrize("how", [{}, {"num_beams": 3, "num_return_sequences": 2}, {"use_cache": False}], ids=str)
def test_generate_with_one_row_of_media(model, prompts, how):
    media, repeated = one_row(model)
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **how}
    assert torch.equal(model.generate(**prompts, media=media, **how), model.generate(**prompts, media=repeated, **how))


def test_a_cache_of_one_row_of_media_takes_more_media(model, prompts):
    media, repeated = one_row(model)
    new = {**pad_text([[IMAGE_TOKEN, 5]] * 3), **pad_images([[image(i)] for i in range(3)])}
    new["attention_mask"] = torch.cat([prompts["attention_mask"], new["attention_mask"]], dim=1)
    logits = []
    for given in (media, repeated):
        cache = model(**prompts, media=given).past_key_values
        logits.append(model(**new, past_key_values=cache).logits)
    assert difference(*logits) < 1e-5
