"""Training on videos: batches of `ChatCollator`, augmentation of frames, and what an encoder cache says."""

import numpy as np
import pytest
import torch

from modeling_mm.data import ChatDataset, to_row, write_videos
from modeling_mm.training import (
    Augmentation,
    CachedCollator,
    ChatCollator,
    ImageAugmentation,
    ModalityDropout,
)
from modeling_mm.videos import load_video
from tests.fakes.media_rows import frozen_model, make_cache
from tests.fakes.tiny_chats import CHATS, chat_model, mm_trainer, processor
from tests.fakes.videos import make_video


@pytest.fixture(scope="module")
def data() -> bytes:
    return make_video("h264")


def sample(*parts: dict, name: str = "clip") -> dict:
    content = [*parts, {"type": "text", "text": "What do you see?"}]
    return {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a red square"}],
        "id": name,
    }


def by_hand(data: bytes) -> dict:
    video = load_video(data)
    parts = [part for time, frame in zip(("0s", "1s"), video.frames, strict=True)
             for part in ({"type": "text", "text": time}, {"type": "image", "image": frame})]  # fmt: skip
    return sample(
        *parts, {"type": "audio", "audio": video.audio["array"], "sampling_rate": video.audio["sampling_rate"]}
    )


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_of_videos_is_that_of_their_frames_and_audio(data):
    collator = ChatCollator(processor())
    batch = collator([sample({"type": "video", "bytes": data}), CHATS[0]])
    assert same(batch, collator([by_hand(data), CHATS[0]]))
    assert batch["image_mask"].tolist() == [[True, True], [True, False]]
    learned = batch["labels"][0][batch["labels"][0] >= 0]
    assert processor().decode(learned) == "a red square<|end|>"


def test_a_broken_video_names_the_row_and_the_sample(data):
    with pytest.raises(ValueError, match=r"Row 1, sample 'broken': .*turn 0: .*expected a video in an MP4"):
        ChatCollator(processor())([CHATS[0], sample({"type": "video", "bytes": b"nothing"}, name="broken")])


def test_frames_are_augmented_and_dropped_as_images(data):
    row = to_row(sample({"type": "video", "bytes": data}))
    plain = ChatCollator(processor())([row])
    changed = ChatCollator(processor(), Augmentation(ImageAugmentation(crop=0.6)))
    assert not torch.equal(changed([row])["pixel_values"], plain["pixel_values"])
    assert same(changed([row]), changed([row])), "drawn from the example and the epoch"
    assert same(changed.for_evaluation()([row]), plain)
    heard = ChatCollator(processor(), modality_dropout=ModalityDropout(image=1.0))([row])
    assert "pixel_values" not in heard
    text = processor().decode(heard["input_ids"][0], skip_special_tokens=False)
    assert "0s" not in text and text.startswith("<|user|><|audio|>")


def test_a_model_learns_from_videos(data, tmp_path):
    rows = [sample({"type": "video", "bytes": data}), sample({"type": "video", "bytes": data, "num_frames": 3})]
    model = chat_model()
    more = {"data_collator": ChatCollator(processor())}
    trainer = mm_trainer(model, tmp_path, train=ChatDataset(rows), evaluate=None, max_steps=3, more=more)
    before = [parameter.clone() for parameter in model.parameters()]
    result = trainer.train()
    assert np.isfinite(result.training_loss)
    assert any(not torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_an_encoder_cache_refuses_videos_and_takes_what_was_written(data, tmp_path):
    row = to_row(sample({"type": "video", "bytes": data}))
    cache = make_cache(tmp_path)
    collator = CachedCollator(processor(), cache)
    for use in (lambda: cache.fill([row], progress=False), lambda: collator([row]),
                lambda: collator.prompt_batch([row]), lambda: collator.media_size(row)):  # fmt: skip
        with pytest.raises(ValueError, match=r"example 'clip' has a video. Write its frames.*data\.write_videos"):
            use()
    rows = write_videos([row], tmp_path / "frames", processor(), progress=False)
    cache.fill(rows, progress=False)
    batch = collator(rows)
    assert batch["vision_states"].shape[1] == 2 and "pixel_values" not in batch
    model = frozen_model()
    with torch.no_grad():
        cached = model(**batch).logits
        plain = model(**ChatCollator(processor())([row])).logits
    assert (cached - plain).abs().max() < 1e-3
