"""Augmentation: each switch does what it says, draws depend on seed, epoch and sample alone, writing is respected."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from modeling_mm.data import ChatRow, media_parts, to_row
from modeling_mm.training import (
    AudioAugmentation,
    Augmentation,
    ImageAugmentation,
    ModalityDropout,
    SetEpochCallback,
    audio_augmentation,
    image_augmentation,
)
from modeling_mm.training import augmentation as draws

RATE = 16_000
GENERATOR = np.random.default_rng


def gradient(width: int = 20, height: int = 12) -> Image.Image:
    """Red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 0 * x + 99], -1).astype(np.uint8))


def tone(seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE).astype(np.float32)


def row(question="What is this?", answer="a cat", task=None, name=None, image=None, audio=None, **marks) -> ChatRow:
    parts = [] if image is None else [{"type": "image", "image": image, **marks}]
    parts += [] if audio is None else [{"type": "audio", "audio": audio, "sampling_rate": RATE}]
    user = {"role": "user", "content": [*parts, {"type": "text", "text": question}]}
    return to_row({"messages": [user, {"role": "assistant", "content": answer}], "task": task, "id": name})


def medium(changed: ChatRow) -> np.ndarray:
    part = media_parts(changed.messages)[0]
    return np.asarray(part[part["type"]])


def same(one: Image.Image, other: Image.Image) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


# ---- Images ---------------------------------------------------------------------------------------------------------


def test_everything_off_changes_nothing() -> None:
    sample = row(image=gradient(), audio=tone())
    assert Augmentation().change_media(sample, RATE) == sample
    assert media_parts(Augmentation().change_media(sample, RATE).messages)[0]["image"] is not None
    features = {"input_features": torch.ones(1, 4, 20), "feature_attention_mask": torch.ones(1, 20)}
    assert Augmentation().change_features(sample, features) is features


def test_crop_takes_a_part_of_the_size_asked_for() -> None:
    for seed in range(50):
        left, top, right, bottom = image_augmentation.random_box((200, 100), 0.5, GENERATOR(seed))
        assert 0 <= left < right <= 200 + 1e-9 and 0 <= top < bottom <= 100 + 1e-9
        assert 0.5 - 1e-9 <= (right - left) * (bottom - top) / 20_000 <= 1 + 1e-9
        assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) / 2 <= 4 / 3 + 1e-9
    areas = [
        np.prod(np.subtract(*np.split(np.array(image_augmentation.random_box((9, 9), 0.2, GENERATOR(s))), 2)))
        for s in range(50)
    ]
    assert min(areas) < 0.4 * 81 and max(areas) > 0.8 * 81
    cropped = ImageAugmentation(crop=0.6).apply(gradient(), GENERATOR(1))[0]
    assert cropped.size == (20, 12)
    spread = np.ptp(np.asarray(cropped)[..., 0].astype(int))
    assert spread < 250, "less of the gradient is seen"


def test_flip_mirrors() -> None:
    flipped = Augmentation(ImageAugmentation(flip=1.0)).change_media(row(image=gradient()), None)
    assert np.array_equal(medium(flipped), np.asarray(ImageOps.mirror(gradient())))
    mirrored = [
        np.array_equal(
            medium(Augmentation(ImageAugmentation(flip=0.3)).change_media(row(image=gradient(), name=str(i)), None)),
            np.asarray(gradient()),
        )
        for i in range(200)
    ]
    assert 0.6 < np.mean(mirrored) < 0.8


def test_all_pictures_of_a_sample_are_mirrored_alike() -> None:
    for name in range(10):
        parts = [{"type": "image", "image": gradient()}, {"type": "image", "image": gradient()}]
        sample = to_row({"messages": [{"role": "user", "content": parts}], "id": name})
        changed = media_parts(Augmentation(ImageAugmentation(flip=0.5)).change_media(sample, None).messages)
        assert same(changed[0]["image"], changed[1]["image"])


@pytest.mark.parametrize(
    "sample",
    [
        {"question": "What is on the left?"},
        {"answer": "a clock"},
        {"answer": "La lettre A"},
        {"answer": "reloj de pared"},
        {"answer": "montre"},
        {"answer": "буква «А»"},
        {"answer": "左边的猫"},
        {"answer": "flag: France"},
        {"question": "What does the SIGN say?"},
        {"task": "ocr/en"},
        {"task": "read"},
        {"has_text": True},
    ],
)
def test_pictures_that_bear_writing_or_sides_are_not_mirrored(sample) -> None:
    flip = Augmentation(ImageAugmentation(flip=1.0, unflipped_tasks=("ocr", "read")))
    assert np.array_equal(medium(flip.change_media(row(image=gradient(), **sample), None)), np.asarray(gradient()))


@pytest.mark.parametrize(
    "sample",
    [
        {"question": "Write a caption in French.", "answer": "un chat"},
        {"question": "Say in one word what this is."},
        {"question": "Que montre l'image ?", "answer": "un chat"},
        {"question": "用中文说出它的名字。", "answer": "猫"},
        {"question": "¿Qué se ve?", "answer": "un gato", "task": "caption/es"},
        {"question": "Что на картинке?", "answer": "кошка", "task": "caption/ru"},
    ],
)
def test_other_pictures_are_mirrored(sample) -> None:
    flip = Augmentation(ImageAugmentation(flip=1.0))
    changed = medium(flip.change_media(row(image=gradient(), **sample), None))
    assert np.array_equal(changed, np.asarray(ImageOps.mirror(gradient())))


def test_tasks_whose_pictures_stay_can_be_named() -> None:
    flip = Augmentation(ImageAugmentation(flip=1.0, unflipped_tasks=("caption",)))
    assert np.array_equal(
        medium(flip.change_media(row(image=gradient(), task="caption/fr"), None)), np.asarray(gradient())
    )
    changed = medium(flip.change_media(row(image=gradient(), task="ocr"), None))
    assert np.array_equal(changed, np.asarray(ImageOps.mirror(gradient())))


def test_color_changes_light_and_not_hue() -> None:
    picture = Image.new("RGB", (4, 4), (120, 60, 30))
    seen = {ImageAugmentation(color=0.5).apply(picture, GENERATOR(i))[0].getpixel((0, 0)) for i in range(30)}
    assert len(seen) > 20
    assert all(red >= green >= blue for red, green, blue in seen)
    brightness = [sum(pixel) for pixel in seen]
    assert min(brightness) >= 0.4 * 210 and max(brightness) <= 1.7 * 210


def test_pictures_change_with_seed_epoch_and_sample_and_with_nothing_else(tmp_path) -> None:
    augmentation = Augmentation(ImageAugmentation(crop=0.7, color=0.5))

    def changed(seed=0, epoch=0, **fields) -> bytes:
        one = row(**{"image": gradient(), "name": "a", **fields})
        one = ChatRow(one.messages, one.task, one.id, epoch)
        return medium(Augmentation(augmentation.image, seed=seed).change_media(one, None)).tobytes()

    first = changed()
    np.random.seed(5), torch.manual_seed(5)
    assert changed() == first
    assert len({first, changed(seed=1), changed(epoch=1), changed(name="b"), changed(answer="b")}) == 5


def test_the_place_of_a_folder_does_not_matter_but_the_file_does(tmp_path) -> None:
    def draw(path: str) -> float:
        turns = [{"role": "user", "content": [{"type": "image", "path": path}]}]
        return draws.generator_of(to_row({"messages": turns}), 0, "media").random()

    assert draw("/one/noto/cat.png") == draw("/two/noto/cat.png")
    assert len({draw("/one/noto/cat.png"), draw("/one/noto/dog.png"), draw("/one/open/cat.png")}) == 3


# ---- Audio ----------------------------------------------------------------------------------------------------------


def test_speed_changes_length_and_pitch() -> None:
    fast = audio_augmentation.change_speed(tone(), RATE, 1.25)
    assert abs(len(fast) - 0.5 * RATE / 1.25) <= 1 and fast.dtype == np.float32
    pitch = np.abs(np.fft.rfft(fast)).argmax() * RATE / len(fast)
    assert abs(pitch - 550) < 5
    augmentation = AudioAugmentation(speed=0.2)
    lengths = [len(augmentation.apply(tone(), GENERATOR(i), RATE)) / RATE for i in range(40)]
    assert 0.5 / 1.2 - 0.001 <= min(lengths) < 0.45 and 0.57 < max(lengths) <= 0.5 / 0.8 + 0.001


def test_noise_has_the_ratio_asked_for() -> None:
    added = audio_augmentation.add_noise(tone(2), 20.0, GENERATOR(0)) - tone(2)
    ratio = 10 * np.log10(np.mean(tone(2) ** 2) / np.mean(added**2))
    assert abs(ratio - 20) < 0.2
    assert not audio_augmentation.add_noise(np.zeros(10, np.float32), 20.0, GENERATOR(0)).any()
    augmentation = AudioAugmentation(noise=0.25, noise_decibels=(0.0, 5.0))
    changed = [augmentation.apply(tone(0.1), GENERATOR(i), RATE) - tone(0.1) for i in range(100)]
    ratios = [10 * np.log10(0.5 / np.mean(noise**2)) for noise in changed if noise.any()]
    assert 15 <= len(ratios) <= 35
    assert -1 < min(ratios) < 1.5 and 3.5 < max(ratios) < 6


def spectrogram() -> tuple[torch.Tensor, torch.Tensor]:
    """Two windows of 8 bins and 50 frames, of which 50 and 20 are real."""
    features = torch.randn(2, 8, 50, generator=torch.Generator().manual_seed(0)) + 3
    real = torch.arange(50) < torch.tensor([50, 20])[:, None]
    return features, real.long()


def test_time_masks_cover_whole_frames_of_the_real_ones() -> None:
    features, real = spectrogram()
    augmentation = AudioAugmentation(mask_time_prob=0.4, mask_time_length=5)
    masked = augmentation.mask(features, real, 2, GENERATOR(0))
    changed = masked != features
    assert torch.equal(changed.all(1), changed.any(1)), "whole frames"
    assert not changed[1, :, 20:].any(), "padding is left alone"
    assert 5 <= changed[0, 0].sum() <= 20 and changed[1].any()
    mean = features[1, :, :20].mean()
    assert torch.allclose(masked[1][changed[1]], mean)
    assert torch.equal(augmentation.mask(features, real, 2, GENERATOR(0)), masked)
    assert not torch.equal(augmentation.mask(features, real, 2, GENERATOR(1)), masked)


def test_feature_masks_cover_whole_bins() -> None:
    features, real = spectrogram()
    masked = AudioAugmentation(mask_feature_prob=0.4, mask_feature_length=2).mask(features, real, 2, GENERATOR(0))
    changed = masked != features
    assert torch.equal(changed[0].all(1), changed[0].any(1)) and 2 <= changed[0, :, 0].sum() <= 4
    assert not changed[1, :, 20:].any()


def test_spectrograms_with_time_first_are_masked_alike() -> None:
    features, real = spectrogram()
    augmentation = AudioAugmentation(mask_time_prob=0.3, mask_feature_prob=0.3, mask_feature_length=2)
    expected = augmentation.mask(features, real, 2, GENERATOR(3))
    found = augmentation.mask(features.transpose(1, 2), real, 1, GENERATOR(3))
    assert torch.equal(found.transpose(1, 2), expected)
    row_of = {"input_values": features.transpose(1, 2), "feature_attention_mask": real}
    changed = Augmentation(audio=augmentation).change_features(row(name="x"), row_of)["input_values"]
    assert not torch.equal(changed, features.transpose(1, 2))
    assert torch.equal(changed[1, 20:], features.transpose(1, 2)[1, 20:])


def test_masks_leave_numpys_generator_alone() -> None:
    np.random.seed(1)
    expected = np.random.rand(3).tolist()
    np.random.seed(1)
    AudioAugmentation(mask_time_prob=0.3).mask(*spectrogram(), 2, GENERATOR(0))
    assert np.random.rand(3).tolist() == expected


def test_masks_that_cannot_be_are_refused() -> None:
    features, real = spectrogram()
    with pytest.raises(ValueError, match="`mask_feature_length` is 10 mel bins, but the features have only 8"):
        AudioAugmentation(mask_feature_prob=0.1).mask(features, real, 2, GENERATOR(0))
    with pytest.raises(ValueError, match="`mask_time_length` is 60 frames, but the features have only 50"):
        AudioAugmentation(mask_time_prob=0.1, mask_time_length=60).mask(features, real, 2, GENERATOR(0))
    with pytest.raises(ValueError, match=r"SpecAugment masks spectrograms, .* \(2, 50\) of waves"):
        AudioAugmentation(mask_time_prob=0.1).mask(features[:, 0], real, 1, GENERATOR(0))


def test_sounds_change_with_seed_epoch_and_sample() -> None:
    sound = AudioAugmentation(speed=0.1, noise=1.0)

    def changed(seed=0, epoch=0, name="a") -> bytes:
        one = row(audio=tone(0.1), name=name)
        return medium(
            Augmentation(audio=sound, seed=seed).change_media(ChatRow(one.messages, None, one.id, epoch), RATE)
        ).tobytes()

    assert changed() == changed()
    assert len({changed(), changed(seed=1), changed(epoch=1), changed(name="b")}) == 4


def test_sounds_are_brought_to_the_encoders_rate_before() -> None:
    part = media_parts(
        Augmentation(audio=AudioAugmentation(noise=1.0)).change_media(row(audio=tone()), 8000).messages
    )[0]
    assert part["sampling_rate"] == 8000 and len(part["audio"]) == 4000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageAugmentation(crop=1.0), r"`crop` of ImageAugmentation must lie in \[0, 1\), got 1"),
        (lambda: ImageAugmentation(flip=1.5), r"`flip` .* got 1.5"),
        (lambda: ImageAugmentation(color=-1), r"`color` .* got -1"),
        (lambda: AudioAugmentation(speed=1.0), "`speed` .* got 1.0"),
        (lambda: AudioAugmentation(noise=2), "`noise` .* got 2"),
        (lambda: AudioAugmentation(noise_decibels=(9, 3)), r"`noise_decibels` .* got \(9, 3\)"),
        (lambda: AudioAugmentation(mask_time_prob=2), "`mask_time_prob` .* got 2"),
        (lambda: AudioAugmentation(mask_time_length=0), "`mask_time_length` .* at least 1, got 0"),
        (lambda: ModalityDropout(image=0.7, audio=0.7), "must not exceed 1 together, got 0.7 and 0.7"),
        (lambda: ModalityDropout(image=-0.1), r"`image` .* got -0.1"),
    ],
)
def test_wrong_values_fail_where_they_are_set(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---- Modality dropout -----------------------------------------------------------------------------------------------


def kinds(sample: ChatRow) -> tuple[str, ...]:
    return tuple(part["type"] for turn in sample.messages for part in turn["content"])


def test_one_modality_goes_as_often_as_asked_and_never_both() -> None:
    dropout = ModalityDropout(image=0.3, audio=0.2)
    found = [kinds(dropout(row(image=gradient(), audio=tone(0.01), name=str(i)))) for i in range(400)]
    share = {kind: found.count(kind) / 400 for kind in set(found)}
    assert set(share) == {("image", "audio", "text", "text"), ("audio", "text", "text"), ("image", "text", "text")}
    assert 0.24 < share["audio", "text", "text"] < 0.36 and 0.14 < share["image", "text", "text"] < 0.26


def test_what_remains_to_answer_from_is_never_taken() -> None:
    dropout = ModalityDropout(image=0.5, audio=0.5, unchanged_tasks=("match",))
    for sample in (row(image=gradient()), row(audio=tone(0.01)), row()):
        assert dropout(sample) is sample
    both = row(image=gradient(), audio=tone(0.01), task="match/en")
    assert dropout(both) is both, "matching needs both"
    assert ModalityDropout(image=1.0, unchanged_tasks=())(both) != both
    named = row(image=gradient(), audio=tone(0.01), task="caption/fr")
    assert ModalityDropout(image=1.0, unchanged_tasks=("caption",))(named) is named


def test_dropout_depends_on_seed_epoch_and_sample_alone() -> None:
    def pattern(seed: int = 0, epoch: int = 0) -> list:
        rows = [row(image=gradient(), audio=tone(0.01), name=str(i)) for i in range(40)]
        rows = [ChatRow(one.messages, one.task, one.id, epoch) for one in rows]
        return [kinds(ModalityDropout(image=0.5, seed=seed)(one)) for one in rows]

    assert pattern() == pattern()
    assert len({str(pattern()), str(pattern(seed=1)), str(pattern(epoch=1))}) == 3


def test_several_processes_are_told_the_epoch() -> None:
    class Loader:
        dataset = type("Data", (), {"set_epoch": lambda self, epoch: told.append(epoch)})()

    class State:
        epoch = 2.0

    told: list[int] = []
    SetEpochCallback().on_epoch_begin(None, State, None, train_dataloader=Loader)
    SetEpochCallback().on_epoch_begin(None, State, None, train_dataloader=[])
    assert told == [2]
