"""
Converted encoder-decoders against transformers' own classes: the same tokens, logits within 1e-5 (float32).

The prompt of ours has a hidden placeholder more; logits are compared over the original vocabulary.
"""

import pytest
import torch
from transformers import ViTConfig, Wav2Vec2Config

from modeling_mm import MMForConditionalGeneration
from tests.fakes.encoder_decoders import (
    captioner,
    our_inputs,
    our_media,
    pixels,
    transcriber,
    transcribing_whisper,
    waves,
    whisper_reader,
    windows,
)
from tests.fakes.tiny import difference, draw, vit_config, wav2vec2_config

# Each kind of source: how it is built, and its media. Speech of unlike lengths is padded, with a mask.
SOURCES = {
    "captioner": (captioner, pixels()),
    "captioner, projected": (lambda: captioner(vit_config()), pixels()),
    "captioner, untied, inverse layers": (
        lambda: captioner(tie_word_embeddings=False, scale_attn_by_inverse_layer_idx=True),
        pixels(),
    ),
    "captioner, relu, n_inner": (lambda: captioner(activation_function="relu", n_inner=40), pixels()),
    "wav2vec2": (transcriber, waves(400, 400, 400)),
    "wav2vec2, unlike lengths": (transcriber, waves(400, 230, 310)),
    "wav2vec2, same width": (lambda: transcriber(wav2vec2_config(hidden_size=32)), waves(400, 230, 310)),
    "wav2vec2, adapter": (
        lambda: transcriber(wav2vec2_config(add_adapter=True, num_adapter_layers=1)),
        waves(400, 400, 400),
    ),
    "wav2vec2 with group norm": (lambda: transcriber(wav2vec2_config("group")), waves(400, 400, 400)),
    "Whisper's encoder": (whisper_reader, windows()),
    "Whisper": (transcribing_whisper, windows()),
    "Whisper, untied": (lambda: transcribing_whisper(tie_word_embeddings=False), windows()),
    "Whisper, multilingual": (lambda: transcribing_whisper(is_multilingual=True), windows()),
}
WAYS = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "5 beams": {"num_beams": 5},
    "3 beams, shaped": {"num_beams": 3, "length_penalty": 2.0, "no_repeat_ngram_size": 2},
}
PAIRS: dict[str, tuple] = {}


def pair(kind: str):
    """The original and its conversion, each built once."""
    if kind not in PAIRS:
        original = SOURCES[kind][0]()
        PAIRS[kind] = (original, MMForConditionalGeneration.from_encoder_decoder(original))
    return (*PAIRS[kind], SOURCES[kind][1])


@torch.no_grad()
def compare(original, ours, media, mask=None) -> float:
    """The largest difference of the logits of the same text, over real tokens."""
    ids = torch.randint(1, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    theirs = {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    if mask is not None:  # called by hand, GPT-2 counts padding among the positions
        theirs["decoder_position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = original(**media, **theirs).logits
    got = ours(**our_inputs(ours, media, ids, mask)).logits[:, 1:, : expected.shape[-1]]
    assert expected.std() > 0.1, "logits that hardly differ compare nothing"
    real = torch.ones(3, 9, dtype=torch.bool) if mask is None else mask.bool()
    return difference(got[real], expected[real])


@pytest.mark.parametrize("kind", SOURCES)
def test_logits_are_equal_within_1e_5(kind):
    assert compare(*pair(kind)) <= 1e-5


@pytest.mark.parametrize("kind", SOURCES)
def test_logits_of_left_padded_rows_are_equal_within_1e_5(kind):
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[0, :4], mask[2, :1] = 0, 0
    assert compare(*pair(kind), mask) <= 1e-5


@pytest.mark.parametrize("kind", ["wav2vec2 with group norm", "wav2vec2, adapter"])
def test_waves_that_padding_would_reach_are_as_the_original_has_each_alone(kind):
    original, ours, _ = pair(kind)
    lengths = (400, 230, 310)
    media = waves(*lengths)
    ids = torch.randint(1, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = ours(**our_inputs(ours, media, ids)).logits[:, 1:]
        together = original(**media, decoder_input_ids=ids).logits
        for row, length in enumerate(lengths):
            alone = media["input_values"][row : row + 1, :length]
            expected = original(alone, decoder_input_ids=ids[row : row + 1]).logits
            assert difference(got[row : row + 1, :, : expected.shape[-1]], expected) <= 1e-5
    assert difference(got[..., : together.shape[-1]], together) > 1e-3, "the original's padding enters its tokens"


def generate(original, media, **options):
    """Tokens that the original generates, with its prompt, and the scores of beams."""
    if type(original).__name__.startswith("Whisper"):
        options["return_timestamps"] = False
        if original.generation_config.is_multilingual:
            options |= {"language": "en", "task": "transcribe"}
    return original.generate(**media, **options)


def answers(sequences: torch.Tensor, prompt: list[int], end: int) -> list[list[int]]:
    """The tokens of each row behind its prompt, if it is there, up to its end."""
    rows = []
    for row in sequences.tolist():
        for start in range(len(row)):
            if row[start : start + len(prompt)] == prompt:
                row = row[start + len(prompt) :]
                break
        rows.append(row[: row.index(end)] if end in row else row)
    return rows


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", SOURCES)
def test_generated_tokens_and_scores_of_beams_are_equal(kind, way):
    original, ours, media = pair(kind)
    options = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
    theirs = generate(original, media, **options, **WAYS[way])
    got = ours.generate(**our_media(media), **options, **WAYS[way])
    prompt, end = ours.config.prompt_token_ids, ours.config.text_config.eos_token_id
    expected = answers(theirs["sequences"], prompt, end)
    assert answers(got.sequences, prompt, end) == expected
    assert len({tuple(row) for row in expected}) > 1, "rows have different media"
    if "beams" in way:
        assert difference(got.sequences_scores, theirs["sequences_scores"]) <= 1e-5


# Sizes of published checkpoints, with random weights.
FULL = {
    "ViT-B/16 and GPT-2": (
        lambda: captioner(ViTConfig(), vocab_size=50257, n_embd=768, n_layer=12, n_head=12, initializer_range=0.05),
        {"pixel_values": draw(2, 3, 224, 224, seed=11)},
    ),
    "wav2vec2 and GPT-2": (
        lambda: transcriber(
            Wav2Vec2Config(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
            vocab_size=50257,
            n_embd=768,
            n_layer=12,
            n_head=12,
            initializer_range=0.05,
        ),
        waves(16_000, 9_000),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FULL)
def test_full_size_models_are_equal_within_1e_5(kind):
    build, media = FULL[kind]
    original = build()
    ours = MMForConditionalGeneration.from_encoder_decoder(original)
    ids = torch.randint(1, 50257, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = original(**media, decoder_input_ids=ids).logits
        got = ours(**our_inputs(ours, media, ids)).logits[:, 1:, : expected.shape[-1]]
    assert difference(got, expected) <= 1e-5 * max(1.0, expected.abs().max().item())
    for beams in (1, 5):
        options = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams}
        assert torch.equal(ours.generate(**our_media(media), **options)[:, 1:], original.generate(**media, **options))
