"""feature_layers.py: tokens of several layers, in the grid of the first, everywhere that an encoder is read."""

import pytest
import torch
from torch import nn
from transformers import ClapAudioConfig, ClapAudioModel, EfficientNetConfig, EfficientNetModel

from modeling_mm import MMForConditionalGeneration
from modeling_mm.encoder_shapes import encoder_width
from modeling_mm.encoders import encode
from modeling_mm.feature_layers import merge_layers
from modeling_mm.training import EncoderCache
from tests.fakes.processor_parts import make, picture
from tests.fakes.tiny import AUDIO, IMAGE, difference, draw, gpt2, inputs, joined, open_gates, vit, wav2vec2, whisper

SIDE = 32


def pyramid() -> EfficientNetModel:
    """An encoder whose feature maps shrink and widen, with norms that let images through."""
    config = EfficientNetConfig(image_size=SIDE, width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320)
    torch.manual_seed(0)
    encoder = EfficientNetModel(config).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return encoder


def maps(encoder: EfficientNetModel, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return encoder(pixels, output_hidden_states=True).hidden_states


def test_the_tokens_are_those_of_the_first_layer_with_the_features_of_all():
    fine, coarse = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)
    merged = merge_layers([fine, coarse], [0, -1], "Encoder")
    assert merged.shape == (2, 16, 8)
    assert torch.equal(merged[..., :3], fine.flatten(2).transpose(1, 2))
    corner = coarse[:, :, 0, 0]  # a corner of a grid twice as fine lies outside the middles of the coarse one
    assert difference(merged[:, 0, 3:], corner) < 1e-6
    averaged = merge_layers([coarse, fine], [0, 1], "Encoder")
    assert averaged.shape == (2, 4, 8)
    assert difference(averaged[:, 0, 5:], fine[:, :, :2, :2].mean((2, 3))) < 1e-6, "halved as squares are averaged"
    tokens = [torch.randn(2, 7, 3), torch.randn(2, 7, 3)]
    assert torch.equal(merge_layers(tokens, [1, 0], "Encoder"), torch.cat(tokens[::-1], -1))


@pytest.mark.parametrize(
    ("states", "layers", "message"),
    [
        (None, [0], r"returned no hidden_states"),
        ([torch.zeros(1, 2, 3)], [1], r"names 1, but Encoder has 1 hidden states"),
        ([torch.zeros(1, 2, 3)], [-2], r"names -2, but"),
        ([torch.zeros(1, 2, 3), torch.zeros(1, 4, 3)], [0, 1], r"of the shapes \(1, 2, 3\), \(1, 4, 3\)"),
        ([torch.zeros(1, 2, 3), torch.zeros(1, 4, 3, 3)], [0, 1], r"layers with as many tokens"),
    ],
)
def test_layers_that_cannot_be_merged_are_refused(states, layers, message):
    with pytest.raises(ValueError, match=message):
        merge_layers(states, layers, "Encoder")


def test_a_joint_model_reads_the_layers_that_its_config_names(tmp_path):
    encoder = pyramid()
    states = maps(encoder, torch.zeros(1, 3, SIDE, SIDE))
    first = next(n for n, each in enumerate(states) if each.shape[-1] == SIDE // 16)
    layers = [first, len(states) - 1]
    width = states[first].shape[1] + states[-1].shape[1]
    assert encoder_width(encoder.config, layers) == width
    model = joined(vision=encoder, audio=None, vision_connector="mlp", vision_feature_layers=layers)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    tower = model.model.vision_tower
    tokens = encode(tower, pixels)[1]
    states = maps(encoder, pixels)
    assert tokens.shape == (2, 4, width) and difference(tokens[..., -states[-1].shape[1] :], tokens.new_zeros(1)) > 0
    assert difference(tokens, merge_layers(states, layers, "EfficientNet")) < 1e-6
    assert torch.equal(model.get_image_features(pixels).last_hidden_state, tokens)
    model.save_pretrained(tmp_path)
    reloaded = MMForConditionalGeneration.from_pretrained(tmp_path)
    assert reloaded.config.vision_feature_layers == layers
    assert difference(encode(reloaded.model.vision_tower, pixels)[1], tokens) < 1e-6


def test_a_model_with_an_unknown_layer_is_refused_when_it_is_made():
    with pytest.raises(ValueError, match="feature_layers names 7, but ViTModel has 3 hidden states"):
        joined(audio=None, vision_feature_layers=[7])


def test_an_added_encoder_gives_the_layers_too():
    model = joined(vision=None, audio=None).add_vision(vit(), feature_layers=[1, 2], cross_attention_layers=[1])
    assert model.model.vision_connector.width == 2 * 24
    batch = inputs([[5, IMAGE, 6]])
    with torch.no_grad():
        seen = open_gates(model)(**batch).logits
        assert difference(model(**{**batch, "pixel_values": batch["pixel_values"] + 1}).logits, seen) > 0
    hearing = joined(vision=None, audio=None).add_audio(whisper(), feature_layers=[0, 1], cross_attention_layers=[1])
    assert hearing.config.audio_feature_layers == [0, 1]
    assert hearing.model.audio_connector.width == 2 * hearing.config.audio_config.d_model


def test_audio_is_read_from_the_layers_that_its_config_names(tmp_path):
    encoder = whisper()
    model = open_gates(joined(vision=None, audio=encoder, audio_feature_layers=[1, 0]))
    batch = inputs([[5, AUDIO, 6]])
    features = batch["input_features"].flatten(0, 1)
    with torch.no_grad():
        states = encoder.encoder(features, output_hidden_states=True).hidden_states
        tokens = model.get_audio_features(**{k: v for k, v in batch.items() if "features" in k}).last_hidden_state
        logits = model(**batch).logits
    assert torch.equal(tokens, torch.cat([states[1], states[0]], -1))
    assert model.model.audio_connector.width == tokens.shape[-1]
    model.save_pretrained(tmp_path)
    reloaded = MMForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert difference(reloaded(**batch).logits, logits) < 1e-5
        other = {**batch, "input_features": batch["input_features"] + 1}
        assert difference(reloaded(**other).logits, logits) > 1e-4


@pytest.mark.parametrize("norm", ["layer", "group"])  # a mask keeps the padding out, or windows go by their length
def test_layers_of_padded_audio_are_those_of_audio_alone(norm):
    model = joined(vision=None, audio=wav2vec2(norm), audio_feature_layers=[0, 2])
    long, short = draw(1600, seed=1), draw(900, seed=2)
    waves = torch.stack([long, torch.cat([short, torch.zeros(700)])])
    mask = torch.arange(1600) < torch.tensor([[1600], [900]])
    with torch.no_grad():
        _, tokens, real = encode(model.model.audio_tower, waves, mask)
        alone = encode(model.model.audio_tower, short[None], torch.ones(1, 900, dtype=torch.bool))[1]
    count = int(real[1].sum())
    assert 0 < count == alone.shape[1] < tokens.shape[1]
    assert difference(tokens[1, :count], alone[0]) < 1e-5


def test_a_layer_with_another_number_of_frames_is_refused():
    model = joined(vision=None, audio=wav2vec2(add_adapter=True, num_adapter_layers=1), audio_feature_layers=[0])
    with pytest.raises(
        ValueError, match=r"states \[0\] of Wav2Vec2Model, which have 39 tokens a window, where its last state has 20"
    ):
        encode(model.model.audio_tower, draw(2, 1600, seed=1), torch.ones(2, 1600, dtype=torch.bool))


def test_layers_of_folded_spectrograms_are_refused_when_the_model_is_made():
    sizes = {"patch_embeds_hidden_size": 8, "hidden_size": 16, "depths": [1, 1], "num_attention_heads": [1, 2]}
    encoder = ClapAudioModel(ClapAudioConfig(**sizes, patch_size=16, patch_stride=[16, 16], window_size=4))
    with pytest.raises(ValueError, match=r"hidden states \[-1\] of ClapAudioModel, which are maps .* Leave it out"):
        joined(vision=None, audio=encoder, audio_feature_layers=[-1])


def test_a_cache_of_other_layers_is_another_cache(tmp_path):
    processor = make(audio=False)
    processor.image_processor.size = {"height": 16, "width": 16}
    path = tmp_path / "a.png"
    picture().save(path)
    part = {"type": "image", "path": str(path)}

    def filled(layers):
        model = MMForConditionalGeneration.from_text_vision_audio_pretrained(
            gpt2(vocab_size=300), vision=vit(), tokenizer=processor, freeze_vision=True, vision_feature_layers=layers
        )
        cache = EncoderCache(tmp_path / "cache", model, processor)
        cache.stores["image"].append(cache.encode("image", [(f"{cache.digest(str(path))}/0", (str(path), 0))]))
        return cache

    caches = {str(layers): filled(layers) for layers in (None, [1, 2], [2, 1])}
    states = {name: cache.states(part)[0] for name, cache in caches.items()}
    assert len({cache.stores["image"].folder for cache in caches.values()}) == 3
    assert states["[1, 2]"].shape[1] == 2 * states["None"].shape[1]
    assert torch.equal(states["[1, 2]"][:, :24], states["[2, 1]"][:, 24:])
