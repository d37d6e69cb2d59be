"""Assistants' media as codes in training: encoded once, untouched by augmentation, beside an encoder cache."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mm.data import to_row
from modeling_mm.training import (
    Augmentation,
    CachedCollator,
    ChatCollator,
    CodeCache,
    EncoderCache,
    ImageAugmentation,
    ModalityDropout,
)
from tests.fakes.writers import writing


@pytest.fixture(scope="module")
def writer():
    return writing()


@pytest.fixture
def files(tmp_path):
    for name, seed in (("seen.png", 0), ("drawn.png", 1)):
        values = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / name)
    return tmp_path


def sample(folder, drawn: str = "drawn.png") -> dict:
    shown = [{"type": "image", "path": str(folder / "seen.png")}, {"type": "text", "text": "hello"}]
    answer = [{"type": "image", "path": str(folder / drawn)}]
    return {"messages": [{"role": "user", "content": shown}, {"role": "assistant", "content": answer}]}


def test_an_answer_may_be_an_image_alone_and_a_file_is_encoded_once(writer, files, monkeypatch):
    model, processor = writer
    expected = ChatCollator(processor)([sample(files)])
    cache = CodeCache(files / "codes", processor)
    found = ChatCollator(processor, code_cache=cache)([sample(files)])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    monkeypatch.setattr(model.model.image_codec, "encode", None)
    again = ChatCollator(processor, code_cache=CodeCache(files / "codes", processor))([sample(files)])
    assert torch.equal(again["input_ids"], expected["input_ids"])
    assert [path.suffix for path in (files / "codes").glob("image-*/*")] == [".npy"]
    (files / "drawn.png").write_bytes((files / "seen.png").read_bytes())
    with pytest.raises(TypeError):  # another content is not in the cache
        ChatCollator(processor, code_cache=CodeCache(files / "codes", processor))([sample(files)])


def test_augmentation_and_dropout_leave_what_is_written(writer, files):
    processor = writer[1]
    plain = ChatCollator(processor)([sample(files)])
    changed = Augmentation(ImageAugmentation(crop=0.5, flip=1.0))
    found = ChatCollator(processor, changed)([sample(files)])
    assert torch.equal(found["input_ids"], plain["input_ids"])
    assert not torch.equal(found["pixel_values"], plain["pixel_values"])
    blind = ChatCollator(processor, modality_dropout=ModalityDropout(image=0.99))([sample(files)])
    start = processor.written["image"].tokens.start_id
    assert start in blind["input_ids"][0]


def test_an_encoder_cache_holds_what_is_shown_alone(writer, files):
    model, processor = writer
    model.requires_grad_(False)
    cache = EncoderCache(files / "states", model, processor)
    collator = CachedCollator(processor, cache, code_cache=CodeCache(files / "codes", processor))
    (files / "other.png").write_bytes((files / "seen.png").read_bytes())
    rows = [to_row(sample(files)), to_row(sample(files, "other.png"))]
    cache.fill(rows, progress=False)
    assert len(cache.stores["image"].entries) == 1
    batch = collator([sample(files), sample(files, "other.png")])
    expected = ChatCollator(processor)([sample(files), sample(files, "other.png")])
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["labels"], expected["labels"])
    assert not torch.equal(batch["input_ids"][0], batch["input_ids"][1])
    assert batch["vision_states"].shape[:2] == (2, 1)
    assert collator.media_size(rows[0])[0] == cache.count_tokens(sample(files)["messages"][0]["content"][0])
    assert ChatCollator(processor).media_size(rows[0])[:2] == (1, 0), "what is drawn is read by no encoder"


def test_media_in_memory_are_refused_by_the_cache(writer, files):
    processor = writer[1]
    row = sample(files)
    row["messages"][1]["content"] = [{"type": "image", "image": Image.new("RGB", (4, 4))}]
    with pytest.raises(ValueError, match="takes media that are files"):
        ChatCollator(processor, code_cache=CodeCache(files / "codes", processor))([row])
