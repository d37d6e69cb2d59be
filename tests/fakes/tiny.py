"""Tiny seeded models, and inputs for them: the fixtures of the tests.

Rows of text are lists of ids in which `IMAGE` and `AUDIO` stand where a picture or a window of sound occurs:

    model = open_gates(joined())
    model(**inputs([[5, IMAGE, 6, 7], [8, 9, AUDIO, IMAGE]])).logits

Weights are drawn wide (`WIDTH_OF_INIT`), so that logits are above 1 and no greedy choice hangs on a rounding error.
"""

import copy

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperModel,
)

from modeling_mm import MMForConditionalGeneration
from modeling_mm.cross_attention import CROSS_ATTENTION

VOCABULARY = 90  # ids of words: 0 to 89, of which 0 begins and ends a text
POSITIONS = 64
EOS = 0
# Joining appends the special tokens to the vocabulary.
IMAGE, AUDIO, SYSTEM, USER, ASSISTANT, END, PAD = range(90, 97)
WIDTH = 32  # of the decoder
FRAMES, MELS = 40, 8  # one window of Whisper's encoder
SAMPLES = 400  # one window of the raw-wave encoder; 40 samples are a frame
WIDTH_OF_INIT = 0.3
CONNECTORS = ("linear", "mlp", "conv", "gru", "perceiver")


# ---- Parts ----------------------------------------------------------------------------------------------------------


def gpt2_config(**fields) -> GPT2Config:
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"vocab_size": VOCABULARY, "n_positions": POSITIONS, "n_embd": WIDTH, "n_layer": 4, "n_head": 4}
    tokens = {"bos_token_id": EOS, "eos_token_id": EOS}
    return GPT2Config(**{**sizes, **dropout, **tokens, "initializer_range": WIDTH_OF_INIT, **fields})


def vit_config(**fields) -> ViTConfig:
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTConfig(**{**sizes, "image_size": 16, "patch_size": 8, "initializer_range": WIDTH_OF_INIT, **fields})


def whisper_config(**fields) -> WhisperConfig:
    encoder = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "d_model": 16}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24, "vocab_size": 60}
    lengths = {"num_mel_bins": MELS, "max_source_positions": FRAMES // 2, "max_target_positions": 20}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return WhisperConfig(**{**encoder, **decoder, **lengths, **tokens, "init_std": WIDTH_OF_INIT, **fields})


def wav2vec2_config(norm: str = "layer", **fields) -> Wav2Vec2Config:
    """A raw-wave encoder whose first convolution has a group norm (over time, as wav2vec2-base) or layer norms."""
    convolutions = {"conv_dim": (12, 12), "conv_kernel": (10, 8), "conv_stride": (8, 5), "num_feat_extract_layers": 2}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    position = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    norms = {"feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer", "conv_bias": norm == "layer"}
    regular = {"apply_spec_augment": False, "layerdrop": 0.0, "mask_time_prob": 0.0}
    dropout = {f"{part}_dropout": 0.0 for part in ("hidden", "attention", "activation", "feat_proj", "final")}
    return Wav2Vec2Config(
        **{**convolutions, **sizes, **position, **norms, **regular, **dropout, "vocab_size": 20, **fields}
    )


def seeded(build, seed: int = 0):
    """`build()` with its own seed, whatever was drawn before; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


def gpt2(seed: int = 0, **fields) -> GPT2LMHeadModel:
    return seeded(lambda: GPT2LMHeadModel(gpt2_config(**fields)), seed)


def vit(seed: int = 1, **fields) -> ViTModel:
    return seeded(lambda: ViTModel(vit_config(**fields)), seed)


def whisper(seed: int = 2, **fields) -> WhisperModel:
    return seeded(lambda: WhisperModel(whisper_config(**fields)), seed)


def wav2vec2(norm: str = "layer", seed: int = 3, **fields) -> Wav2Vec2Model:
    return seeded(lambda: Wav2Vec2Model(wav2vec2_config(norm, **fields)), seed)


# ---- Joined models --------------------------------------------------------------------------------------------------


def joined(text=None, vision="vit", audio="whisper", seed: int = 4, cls=MMForConditionalGeneration, **fields):
    """A fresh joint model in evaluation mode: its gates are closed. `vision=None` or `audio=None` leaves one out.

    Cross-attention sits before blocks 1 and 3, so that there is more than one, with a feed-forward of its own.
    """
    sizes = {"cross_attention_layers": [1, 3], "cross_attention_gated": True, "vision_latents": 3, "audio_latents": 3}
    fields = {**sizes, "cross_attention_feed_forward": True, **fields}
    stock = text is None and all(part is None or isinstance(part, str) for part in (vision, audio))
    key = repr((vision, audio, seed, cls.__name__, sorted(fields.items())))
    if not stock or key not in _JOINED:
        parts = {"vit": vit, "whisper": whisper, "wav2vec2": wav2vec2}
        vision, audio = (parts[part]() if isinstance(part, str) else part for part in (vision, audio))
        text = gpt2() if text is None else text
        model = seeded(lambda: cls.from_text_vision_audio_pretrained(text, vision, audio, **fields), seed)
        if not stock:
            return model
        _JOINED[key] = model
    return copy.deepcopy(_JOINED[key])  # ten times as fast as joining again


_JOINED: dict = {}


def cross_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if CROSS_ATTENTION.search(name)}


@torch.no_grad()
def open_gates(model: nn.Module, value: float = 0.7, seed: int = 5) -> nn.Module:
    """Makes media matter, as after training: gates at `value`, wide random weights in cross-attention and connectors.

    Works for ungated models too, whose last projections start at zero.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not CROSS_ATTENTION.search(name) and "_connector." not in name:
            continue
        is_norm = "norm" in name or "ln_cross_attn" in name
        if parameter.numel() == 1 and "gate" in name:
            parameter.fill_(value)
        elif not is_norm and parameter.dim() > 1:
            draw = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(draw.to(parameter))
        elif not is_norm:  # biases, which a fresh model has at zero
            draw = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.copy_(draw.to(parameter))
    return model


def opened(**fields):
    return open_gates(joined(**fields))


# ---- Inputs ---------------------------------------------------------------------------------------------------------


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image(seed: int = 0) -> torch.Tensor:
    """(3, 16, 16)"""
    return draw(3, 16, 16, seed=100 + seed)


def sound(seed: int = 0, frames: int = FRAMES) -> torch.Tensor:
    """(n_mels, frames)"""
    return draw(MELS, frames, seed=200 + seed)


def wave(seed: int = 0, samples: int = SAMPLES) -> torch.Tensor:
    """(samples,)"""
    return draw(samples, seed=300 + seed)


def pad_text(rows: list[list[int]], side: str = "right", length: int | None = None) -> dict[str, torch.Tensor]:
    length = max(len(row) for row in rows) if length is None else length
    input_ids = torch.full((len(rows), length), PAD)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(length - len(row), None) if side == "left" else slice(0, len(row))
        input_ids[i, where] = torch.tensor(row)
        attention_mask[i, where] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def pad_images(rows: list[list[torch.Tensor]], size: int | None = None) -> dict[str, torch.Tensor]:
    """Rows of (3, 16, 16) to `pixel_values` (B, I, 3, 16, 16) and `image_mask` (B, I)."""
    size = max(len(row) for row in rows) if size is None else size
    pixel_values = torch.zeros(len(rows), size, 3, 16, 16)
    image_mask = torch.zeros(len(rows), size, dtype=torch.bool)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            pixel_values[i, j], image_mask[i, j] = picture, True
    return {"pixel_values": pixel_values, "image_mask": image_mask}


def pad_audio(rows: list[list[torch.Tensor]], size: int | None = None, frames: int | None = None) -> dict:
    """Rows of (n_mels, T) to `input_features` (B, A, n_mels, FRAMES), or of (samples,) to `input_values`.

    Whisper wants whole windows, so that log-mel features are padded to `FRAMES`; waves to the longest.
    """
    raw = any(item.dim() == 1 for row in rows for item in row)
    longest = max([item.shape[-1] for row in rows for item in row], default=0)
    frames = (longest if raw else FRAMES) if frames is None else frames
    size = max(len(row) for row in rows) if size is None else size
    values = torch.zeros(len(rows), size, frames) if raw else torch.zeros(len(rows), size, MELS, frames)
    mask = torch.zeros(len(rows), size, frames, dtype=torch.long)
    for i, row in enumerate(rows):
        for j, item in enumerate(row):
            values[i, j, ..., : item.shape[-1]] = item
            mask[i, j, : item.shape[-1]] = 1
    return {"input_values" if raw else "input_features": values, "feature_attention_mask": mask}


def inputs(
    rows: list[list[int]],
    images: list[list[torch.Tensor]] | None = None,
    audio: list[list[torch.Tensor]] | None = None,
    side: str = "right",
    length: int | None = None,
    make_sound=sound,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """A batch for `forward` and `generate`: padded text, and for each placeholder a picture or a sound.

    Those that are not given are drawn by row and place: the same row of the same index has the same media in any
    batch. Modalities that no row has are left out.
    """
    if images is None:
        images = [[image(seed + 10 * i + j) for j in range(row.count(IMAGE))] for i, row in enumerate(rows)]
    if audio is None:
        audio = [[make_sound(seed + 10 * i + j) for j in range(row.count(AUDIO))] for i, row in enumerate(rows)]
    batch = pad_text(rows, side, length)
    batch |= pad_images(images) if any(images) else {}
    return batch | (pad_audio(audio) if any(audio) else {})


def labels(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Every real word is to be learned; padding and placeholders are not."""
    ids = batch["input_ids"]
    ignored = (batch["attention_mask"] == 0) | (ids == IMAGE) | (ids == AUDIO)
    return ids.masked_fill(ignored, -100)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest absolute difference; infinite for other shapes and for NaN."""
    if one.shape != other.shape or not (torch.isfinite(one).all() and torch.isfinite(other).all()):
        return float("inf")
    return (one.float() - other.float()).abs().max().item() if one.numel() else 0.0


def train(model: nn.Module, batches: list[dict], steps: int, lr: float = 3e-3) -> list[float]:
    """A few steps of AdamW over `batches` (with labels) in turn; leaves the model in evaluation mode."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    model.train()
    losses = []
    for step in range(steps):
        loss = model(**batches[step % len(batches)]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses
