"""Tiny seeded encoder-decoders of transformers, to be converted, and inputs for both sides.

original = captioner()
ours = MMForConditionalGeneration.from_encoder_decoder(original)
ours(**our_inputs(ours, media, ids)).logits
"""

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    SpeechEncoderDecoderConfig,
    SpeechEncoderDecoderModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from tests.fakes.tiny import (
    EOS,
    FRAMES,
    MELS,
    WIDTH,
    draw,
    gpt2_config,
    seeded,
    vit_config,
    wav2vec2_config,
    whisper_config,
)

START, WORDS = 88, 90  # the start token is no word that ends a text
MASKS = {"attention_mask": "feature_attention_mask"}
# Ids of a tiny multilingual Whisper: words from 0, then special tokens, then times.
WHISPER_EOS, WHISPER_START, ENGLISH, GERMAN, TRANSLATE, TRANSCRIBE, NO_TIMES, FIRST_TIME = range(60, 68)
WHISPER_ROWS = FIRST_TIME + 11


@torch.no_grad()
def stirred(model: nn.Module, seed: int = 6) -> nn.Module:
    """Moves biases and norms from zero and one, where one that is lost would not be missed."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def decoder_config(**fields):
    tokens = {"decoder_start_token_id": START, "pad_token_id": EOS}
    return gpt2_config(add_cross_attention=True, is_decoder=True, **{**tokens, **fields})


def captioner(encoder=None, **fields) -> VisionEncoderDecoderModel:
    """A ViT that a GPT-2 reads, of the same width; of another one with a projection."""
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder or vit_config(hidden_size=WIDTH), decoder_config(**fields)
    )
    return stirred(seeded(lambda: VisionEncoderDecoderModel(config)))


def transcriber(encoder=None, **fields) -> SpeechEncoderDecoderModel:
    """A wav2vec2 with layer norms that a GPT-2 reads, through a projection."""
    config = SpeechEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder or wav2vec2_config(), decoder_config(**fields)
    )
    return stirred(seeded(lambda: SpeechEncoderDecoderModel(config)))


def whisper_reader(**fields) -> SpeechEncoderDecoderModel:
    """The encoder of a Whisper that a GPT-2 reads."""

    def build() -> SpeechEncoderDecoderModel:
        encoder = WhisperForConditionalGeneration(whisper_config(**fields)).get_encoder()
        return SpeechEncoderDecoderModel(encoder=encoder, decoder=transcriber().decoder)

    return stirred(seeded(build))


def transcribing_whisper(is_multilingual: bool = False, **fields) -> WhisperForConditionalGeneration:
    """A Whisper of English or of two languages, whose decoder differs from its encoder in every size that may."""
    decoder = {"decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 40, "max_target_positions": 48}
    tokens = {"pad_token_id": WHISPER_EOS, "bos_token_id": WHISPER_EOS, "eos_token_id": WHISPER_EOS}
    tokens |= {"decoder_start_token_id": WHISPER_START, "vocab_size": WHISPER_ROWS}
    config: WhisperConfig = whisper_config(**{**decoder, **tokens, **fields})
    model = stirred(seeded(lambda: WhisperForConditionalGeneration(config)))
    generation = {"no_timestamps_token_id": NO_TIMES, "begin_suppress_tokens": [5, WHISPER_EOS], "max_length": 30}
    generation |= {"suppress_tokens": [7, 8, *range(WHISPER_START, WHISPER_ROWS)], "is_multilingual": is_multilingual}
    generation |= {"alignment_heads": [[1, 0], [2, 3]], "return_timestamps": False}
    if is_multilingual:
        generation["lang_to_id"] = {"<|en|>": ENGLISH, "<|de|>": GERMAN}
        generation["task_to_id"] = {"translate": TRANSLATE, "transcribe": TRANSCRIBE}
    ids = {name: tokens[name] for name in tokens if name != "vocab_size"}
    model.generation_config = GenerationConfig(**generation, **ids)
    return model


def pixels(rows: int = 3) -> dict[str, torch.Tensor]:
    return {"pixel_values": draw(rows, 3, 16, 16, seed=11)}


def windows(rows: int = 3) -> dict[str, torch.Tensor]:
    """Whisper's features, whose windows are whole."""
    return {"input_features": draw(rows, MELS, FRAMES, seed=12)}


def waves(*lengths: int) -> dict[str, torch.Tensor]:
    """Waves of these lengths, padded with zeros."""
    values = torch.zeros(len(lengths), max(lengths))
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        values[row, :length], mask[row, :length] = draw(length, seed=13 + row), 1
    return {"input_values": values, "attention_mask": mask} if len(set(lengths)) > 1 else {"input_values": values}


def our_media(media: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same media as our models take them."""
    named = {MASKS.get(name, name): tensor for name, tensor in media.items()}
    if "feature_attention_mask" in named:
        named["feature_attention_mask"] = named["feature_attention_mask"][:, None]
    return named


def our_inputs(
    model: PreTrainedModel, media: dict[str, torch.Tensor], ids: torch.Tensor, mask: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Media and text (B, L) for our side: each row begins with its placeholder, which the text does not see."""
    name = "image_token_id" if "pixel_values" in media else "audio_token_id"
    placeholder = torch.full((len(ids), 1), getattr(model.config, name))
    mask = torch.ones_like(ids) if mask is None else mask
    texts = {"input_ids": torch.cat([placeholder, ids], 1), "attention_mask": torch.cat([0 * placeholder, mask], 1)}
    return {**texts, **our_media(media)}
