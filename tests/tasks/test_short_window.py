"""A joint model with a Whisper encoder keeps its weights when its window is cut."""

from functools import cache

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from modeling_mm import MMForConditionalGeneration, MMProcessor
from scripts.tasks.short_window import cut_window
from tests.fakes.processor_parts import RATE, make_bpe
from tests.fakes.tiny import gpt2, joined, open_gates, vit, whisper


@cache
def long_processor() -> MMProcessor:
    return MMProcessor(None, WhisperFeatureExtractor(feature_size=8, chunk_length=2), make_bpe())


def save_long(folder) -> None:
    """Write a tiny model with windows of 2 s."""
    processor = long_processor()
    text = gpt2(vocab_size=len(processor.tokenizer), n_positions=128)
    model = joined(text, vision=None, audio=whisper(max_source_positions=100), tokenizer=processor)
    open_gates(model).save_pretrained(folder)
    processor.save_pretrained(folder)


def test_the_first_positions_stay_and_audio_is_read_in_shorter_windows(tmp_path):
    save_long(tmp_path / "long")
    cut_window(str(tmp_path / "long"), tmp_path / "short", seconds=1)
    long, short = (MMForConditionalGeneration.from_pretrained(tmp_path / name) for name in ("long", "short"))
    before, after = long.state_dict(), short.state_dict()
    changed = {name for name in before if not torch.equal(before[name][: len(after[name])], after[name])}
    resized = {name for name in before if before[name].shape != after[name].shape}
    assert not changed and resized == {"model.audio_tower.embed_positions.weight"}
    processor = MMProcessor.from_pretrained(tmp_path / "short")
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, RATE // 2).astype(np.float32)
    features = {
        name: made(text="<|audio|>hello", audio=[samples], sampling_rate=RATE, return_tensors="pt")
        for name, made in (("long", long_processor()), ("short", processor))
    }
    assert features["long"]["input_features"].shape[-1] == 200
    assert features["short"]["input_features"].shape[-1] == 100
    with torch.no_grad():
        logits = short(**features["short"]).logits
    assert torch.isfinite(logits).all()


def test_another_encoder_and_a_longer_window_are_refused(tmp_path):
    save_long(tmp_path / "long")
    with pytest.raises(ValueError, match=r"has windows of 2 s. Give fewer seconds, got 2"):
        cut_window(str(tmp_path / "long"), tmp_path / "short", seconds=2)
    text = gpt2(vocab_size=len(long_processor().tokenizer), n_positions=128)
    joined(text, vision=vit(), audio=None, tokenizer=long_processor()).save_pretrained(tmp_path / "seeing")
    long_processor().save_pretrained(tmp_path / "seeing")
    with pytest.raises(ValueError, match="has no Whisper encoder whose window could be cut"):
        cut_window(str(tmp_path / "seeing"), tmp_path / "short")
    assert not (tmp_path / "short").exists()
