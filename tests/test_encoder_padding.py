"""encoder_padding.py: the rule follows from an encoder's modules, and each rule is exact."""

import pytest
import torch
from torch import nn
from transformers import HubertConfig, Wav2Vec2BertConfig, Wav2Vec2Config

from modeling_mm.encoder_padding import find_padding_rule, padding_rule
from modeling_mm.encoder_shapes import frame_features, item_dimensions
from modeling_mm.encoders import build_encoder, encode
from modeling_mm.modalities import MODALITIES
from tests.fakes.tiny import SAMPLES, difference, draw, seeded, vit, wav2vec2_config, whisper

BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
BERT |= {"feature_projection_input_dim": 20, "vocab_size": 30}
ADAPTER = {"add_adapter": True, "num_adapter_layers": 2, "output_hidden_size": 16}


def hubert(**fields) -> HubertConfig:
    config = wav2vec2_config("layer").to_dict()
    return HubertConfig(**{name: value for name, value in config.items() if name not in ("model_type",)} | fields)


VARIANTS = {
    "masked": (lambda: wav2vec2_config("layer"), "mask"),
    "adapter": (lambda: wav2vec2_config("layer", **ADAPTER), "length"),
    "batch norm before the positions": (lambda: hubert(conv_pos_batch_norm=True), "length"),
    "relative positions": (lambda: Wav2Vec2BertConfig(**BERT, position_embeddings_type="relative"), "mask"),
    "frames and adapter": (lambda: Wav2Vec2BertConfig(**BERT, **ADAPTER), "length"),
}


def tower_of(config: Wav2Vec2Config):
    tower = seeded(lambda: build_encoder(MODALITIES["audio"], config))
    generator = torch.Generator().manual_seed(1)
    for parameter in tower.parameters():
        if parameter.ndim > 1:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    for module in tower.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.constant_(module.bias, 1.0)
    return tower


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_its_rule_and_padding_leaves_its_states_alone(name):
    make, rule = VARIANTS[name]
    tower = tower_of(make())
    assert padding_rule(tower) == find_padding_rule(tower) == rule
    length = SAMPLES if item_dimensions(tower) == 1 else 40
    shape = (length,) if item_dimensions(tower) == 1 else (frame_features(tower.config), length)
    lengths = [length, length * 5 // 8, length // 2]
    windows = draw(3, *shape, seed=2)
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    padded = windows * mask.view(3, *[1] * (len(shape) - 1), length)

    def worst() -> float:
        with torch.no_grad():
            _, tokens, real = encode(tower, padded, mask)
            pairs = []
            for item, kept in enumerate(lengths):
                _, alone, own = encode(tower, windows[item : item + 1, ..., :kept], mask[item : item + 1, :kept])
                pairs.append((tokens[item][real[item]], alone[0][own[0]]))
        return max(difference(one, other) for one, other in pairs)

    assert worst() <= 1e-5
    if rule == "length":
        tower.padding_rule = "mask"
        assert worst() > 1e-3, "a mask would do"


def test_images_and_whispers_windows_are_whole():
    assert find_padding_rule(vit()) == find_padding_rule(whisper().get_encoder()) == "window"


def test_spectrograms_with_frames_first_are_refused():
    tower = tower_of(Wav2Vec2BertConfig(**BERT))
    encode(tower, torch.zeros(1, 20, 30))
    with pytest.raises(
        ValueError, match=r"input_features must be \(\.\.\., 20, frames\) for Wav2Vec2BertModel, got \(30, 20\)"
    ):
        encode(tower, torch.zeros(1, 30, 20))


def test_a_window_without_real_frames_has_no_real_token():
    tower = tower_of(wav2vec2_config("group"))
    mask = torch.zeros(2, SAMPLES, dtype=torch.bool)
    mask[0, :200] = True
    _, tokens, real = encode(tower, draw(2, SAMPLES, seed=0), mask)
    assert real.any(-1).tolist() == [True, False] and torch.isfinite(tokens).all()
