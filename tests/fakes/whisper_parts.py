"""Tiny Whispers of one language and of three, with their processors, and what is made of them."""

import json
from functools import cache

import numpy as np
import torch
from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor
from transformers.models.whisper.tokenization_whisper import WhisperTokenizer

from modeling_mm import MMForConditionalGeneration, MMProcessor
from tests.fakes.encoder_decoders import stirred
from tests.fakes.processor_parts import make_bpe, make_whisper
from tests.fakes.tiny import MELS, seeded, whisper_config

LANGUAGES = ("en", "de", "zh")
CONTROLS = ("<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
TIMES = 1501
POSITIONS, FRAMES = 120, 100  # of the decoder; of a window, which is one second


def tokenizer(is_multilingual: bool = False) -> WhisperTokenizer:
    """A tokenizer without timestamps, as some packages have it."""
    parts = json.loads(make_bpe().backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in parts["merges"]]
    spoken = [f"<|{language}|>" for language in LANGUAGES] if is_multilingual else []
    # The end of a text comes behind all words, as in the published ones.
    vocabulary = {word: number for number, word in enumerate(sorted(parts["vocab"], key=parts["vocab"].get)[1:])}
    vocabulary["<|endoftext|>"] = len(vocabulary)
    made = WhisperTokenizer(vocabulary, merges, pad_token="<|endoftext|>", model_max_length=POSITIONS)
    special = ["<|startoftranscript|>", *spoken, *CONTROLS]
    made.add_special_tokens({"additional_special_tokens": special})
    return made


def timed_tokenizer(is_multilingual: bool = False) -> WhisperTokenizer:
    """A tokenizer as it is published, with timestamps."""
    made = tokenizer(is_multilingual)
    made.add_tokens([f"<|{number * 0.02:.2f}|>" for number in range(TIMES)])
    return made


@cache
def whisper(is_multilingual: bool = False) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """A Whisper with random weights and the generation config of the published ones; windows of one second."""
    words = timed_tokenizer(is_multilingual)
    ids = words.convert_tokens_to_ids
    end, start = ids(["<|endoftext|>", "<|startoftranscript|>"])
    tokens = {"pad_token_id": end, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": start}
    sizes = {"decoder_layers": 2, "max_target_positions": POSITIONS, "max_source_positions": FRAMES // 2}
    config: WhisperConfig = whisper_config(num_mel_bins=MELS, vocab_size=len(words), **tokens, **sizes)
    model = stirred(seeded(lambda: WhisperForConditionalGeneration(config)))
    with torch.no_grad():
        # Texts of many words that depend on the audio, and no timestamp beyond the window.
        decoder = model.model.decoder
        decoder.embed_tokens.weight[end:] *= 0.6
        model.model.encoder.layer_norm.weight *= 4
        decoder.layer_norm.weight[0], decoder.layer_norm.bias[0] = 0, 10
        decoder.embed_tokens.weight[:, 0] = 0
        decoder.embed_tokens.weight[ids("<|1.02|>") :, 0] = -5
    settings = {
        "alignment_heads": [[0, 1], [1, 0]],
        "begin_suppress_tokens": [5, end],
        "is_multilingual": is_multilingual,
        "max_initial_timestamp_index": 20,
        "max_length": 12,
        "no_timestamps_token_id": ids("<|notimestamps|>"),
        "prev_sot_token_id": ids("<|startofprev|>"),
        "return_timestamps": False,
        "suppress_tokens": [7, 8, start, *ids(list(CONTROLS[:-1]))],
    }
    if is_multilingual:
        settings["lang_to_id"] = {f"<|{language}|>": ids(f"<|{language}|>") for language in LANGUAGES}
        settings["task_to_id"] = {task: ids(f"<|{task}|>") for task in ("translate", "transcribe")}
        settings["forced_decoder_ids"] = [[1, None], [2, ids("<|transcribe|>")]]
    model.generation_config = GenerationConfig(**settings, **tokens)
    return model, WhisperProcessor(make_whisper(), words)


@cache
def converted(is_multilingual: bool = False) -> tuple[MMForConditionalGeneration, MMProcessor]:
    """The same Whisper, converted."""
    model, _ = whisper(is_multilingual)
    processor = MMProcessor.from_encoder_decoder(WhisperProcessor(make_whisper(), timed_tokenizer(is_multilingual)))
    return MMForConditionalGeneration.from_encoder_decoder(model, tokenizer=processor), processor


def speech(seconds: float = 0.7, seed: int = 0) -> np.ndarray:
    """Tones of a tenth of a second each, so that windows differ."""
    pitches = np.random.default_rng(seed).uniform(100, 7000, round(seconds * 10) + 1)
    return np.sin(np.cumsum(np.repeat(pitches, 1600)[: round(seconds * 16_000)]) * 2 * np.pi / 16_000).astype(
        np.float32
    )
