"""
Whisper tiny.en from its package: the reader, and with `make test-whisper` the converted model against the original.

The texts compared are those of transformers' own pipeline, to the last character. What the word error rates are is
printed: `make test-whisper ARGS=-s`.
"""

import io
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperConfig, WhisperModel, pipeline

from modeling_mm import MMForConditionalGeneration, MMProcessor
from modeling_mm.audio import load_audio
from modeling_mm.evaluation import score
from scripts.workshop.build_sample import TRANSCRIPTS, VOICE
from scripts.workshop.packages import fetch_package
from scripts.workshop.sources import read_prompts
from scripts.workshop.whisper_tiny import PACKAGE, whisper_decoder_state, whisper_tiny_en, whisper_tiny_processor

CACHE = Path(__file__).resolve().parents[2] / ".cache/packages"
RATE = 16_000
NUM_CLIPS = 100
GREEDY = {"num_beams": 1}


# ---- The reader -----------------------------------------------------------------------------------------------------


def test_the_decoders_tensors_keep_their_places():
    sizes = {"d_model": 16, "decoder_attention_heads": 2, "decoder_ffn_dim": 24, "decoder_layers": 4, "vocab_size": 30}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    encoder = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 8}
    decoder = WhisperModel(WhisperConfig(**sizes, **tokens, **encoder, max_target_positions=12)).decoder
    state = {name: torch.randn_like(tensor) for name, tensor in decoder.state_dict().items()}
    arrays = {name: tensor.numpy().astype(np.float16) for name, tensor in state.items()}
    tensors = {
        "decoder/embeddings/weight": arrays["embed_tokens.weight"],
        "decoder/position_encodings/encodings": arrays["embed_positions.weight"],
    }
    norms = {"layer_norm": "decoder/layer_norm"}
    for number in range(4):
        ours, theirs = f"layers.{number}", f"decoder/layer_{number}"
        norms[f"{ours}.self_attn_layer_norm"] = f"{theirs}/self_attention/layer_norm"
        norms[f"{ours}.encoder_attn_layer_norm"] = f"{theirs}/attention/layer_norm"
        norms[f"{ours}.final_layer_norm"] = f"{theirs}/ffn/layer_norm"
        for kind in ("weight", "bias"):
            own, cross = f"{ours}.self_attn", f"{ours}.encoder_attn"
            for keys in (own, cross):
                arrays[f"{keys}.k_proj.bias"] = np.zeros(16, np.float16)
            joined = [arrays[f"{own}.{name}_proj.{kind}"] for name in "qkv"]
            tensors[f"{theirs}/self_attention/linear_0/{kind}"] = np.concatenate(joined)
            tensors[f"{theirs}/self_attention/linear_1/{kind}"] = arrays[f"{own}.out_proj.{kind}"]
            joined = [arrays[f"{cross}.{name}_proj.{kind}"] for name in "kv"]
            tensors[f"{theirs}/attention/linear_0/{kind}"] = arrays[f"{cross}.q_proj.{kind}"]
            tensors[f"{theirs}/attention/linear_1/{kind}"] = np.concatenate(joined)
            tensors[f"{theirs}/attention/linear_2/{kind}"] = arrays[f"{cross}.out_proj.{kind}"]
            tensors[f"{theirs}/ffn/linear_0/{kind}"] = arrays[f"{ours}.fc1.{kind}"]
            tensors[f"{theirs}/ffn/linear_1/{kind}"] = arrays[f"{ours}.fc2.{kind}"]
    for ours, theirs in norms.items():
        tensors |= {f"{theirs}/gamma": arrays[f"{ours}.weight"], f"{theirs}/beta": arrays[f"{ours}.bias"]}
    read = whisper_decoder_state(tensors)
    assert set(read) == set(state)
    assert all(torch.equal(read[name], tensor.half().float()) for name, tensor in state.items())
    decoder.load_state_dict(read)


# ---- The real weights -----------------------------------------------------------------------------------------------


@cache
def clips() -> list[tuple[np.ndarray, str]]:
    """Asterisk's prompts of at least three words, in a seeded order."""
    prompts = read_prompts(fetch_package(TRANSCRIPTS, CACHE), fetch_package(VOICE, CACHE), "en")
    long = [clip for clip in prompts if len(clip.text.split()) >= 3]
    random.Random(0).shuffle(long)
    loaded = [(load_audio(str(clip.path), RATE), clip.text) for clip in long]
    return [clip for clip in loaded if len(clip[0]) <= 30 * RATE]  # beyond, the stock pipeline wants timestamps


@cache
def long_clip() -> np.ndarray:
    """37 seconds of prompts, one after the other."""
    return np.concatenate([samples for samples, _ in clips()])[: 37 * RATE]


@pytest.fixture(scope="module")
def pipes():
    """The stock pipeline of the original, and ours of the conversion."""
    folder = fetch_package(PACKAGE, CACHE)
    original, parts = whisper_tiny_en(folder), whisper_tiny_processor(folder)
    names = {"tokenizer": parts.tokenizer, "feature_extractor": parts.feature_extractor}
    stock = pipeline("automatic-speech-recognition", model=original, device="cpu", **names)
    # The tokenizer as the package has it, without timestamps.
    processor = MMProcessor.from_encoder_decoder(whisper_tiny_processor(folder, timestamps=False))
    converted = MMForConditionalGeneration.from_encoder_decoder(original, tokenizer=processor)
    names = {"tokenizer": processor.tokenizer, "feature_extractor": processor.feature_extractor}
    return stock, pipeline("automatic-speech-recognition", model=converted, device="cpu", **names)


@pytest.mark.whisper
def test_transcripts_of_a_hundred_prompts_are_the_originals(pipes):
    chosen = clips()[:NUM_CLIPS]
    texts = [
        [answer["text"] for answer in pipe([samples.copy() for samples, _ in chosen], batch_size=10, **GREEDY)]
        for pipe in pipes
    ]
    truths = [truth for _, truth in chosen]
    figures = [score("spoken_wer", each, truths) for each in texts]
    print(f"\n{len(chosen)} prompts: spoken WER {figures[0]:.4f} (original), {figures[1]:.4f} (converted)")
    assert texts[0] == texts[1]
    assert figures[1] < 0.1


WAYS = {
    "chunks": ({"chunk_length_s": 30}, {}),
    "chunks with timestamps": ({"chunk_length_s": 30, "return_timestamps": True}, {"return_timestamps": True}),
    "words": ({"chunk_length_s": 30, "return_timestamps": "word"}, {"return_timestamps": "word"}),
    "sequential": ({"return_timestamps": True}, {"return_timestamps": True, "long_audio": "sequential"}),
    "sequential with the text before": (
        {"return_timestamps": True, "condition_on_prev_tokens": True},
        {"return_timestamps": True, "condition_on_prev_tokens": True, "long_audio": "sequential"},
    ),
}


@pytest.mark.whisper
@pytest.mark.parametrize("name", WAYS)
def test_long_audio_is_transcribed_as_by_the_original(pipes, name):
    theirs, ours = WAYS[name]
    stock, pipe = pipes
    expected = stock(long_clip().copy(), **theirs, **GREEDY)
    assert pipe(long_clip().copy(), **ours, **GREEDY) == expected
    assert len(expected["text"]) > 200


@pytest.mark.whisper
def test_mp3_is_read_and_five_beams_are_the_default(pipes):
    stock, pipe = pipes
    file = io.BytesIO()
    soundfile.write(file, clips()[0][0], RATE, format="MP3")
    samples = load_audio(file.getvalue(), RATE)
    assert pipe(file.getvalue()) == stock(samples.copy())
    assert pipe(file.getvalue(), prompt="Asterisk", **GREEDY)["text"]
