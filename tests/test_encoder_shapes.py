"""encoder_shapes.py: widths that no field states, encoders that need more than their main input."""

import pytest
import torch
from transformers import (
    AutoModel,
    MobileNetV1Config,
    MobileNetV2Config,
    MobileViTConfig,
    MobileViTV2Config,
    PreTrainedConfig,
    PvtConfig,
    RegNetConfig,
    Siglip2VisionConfig,
    SwiftFormerConfig,
    ViTConfig,
    Wav2Vec2Config,
)
from transformers.models.sam2 import Sam2VisionConfig

from modeling_mm import encoder_shapes
from modeling_mm.encoder_shapes import check_arguments, encoder_class_of, encoder_width, image_shape

PYRAMIDS = {
    "mobilenet_v1": (lambda: MobileNetV1Config(image_size=32, depth_multiplier=0.1), 102),
    "mobilenet_v2": (lambda: MobileNetV2Config(image_size=32, depth_multiplier=0.1), 1280),
    "mobilevit": (
        lambda: MobileViTConfig(
            image_size=64, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16], num_attention_heads=2
        ),
        16,
    ),
    "mobilevitv2": (lambda: MobileViTV2Config(image_size=64, width_multiplier=0.25), 128),
    "swiftformer": (lambda: SwiftFormerConfig(image_size=64, depths=[1, 1], embed_dims=[8, 12]), 12),
    "regnet": (lambda: RegNetConfig(hidden_sizes=[8, 16], depths=[1, 1], groups_width=8), 16),
    "pvt": (
        lambda: PvtConfig(
            image_size=64, num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[8, 12], num_attention_heads=[1, 2],
            sequence_reduction_ratios=[2, 1], patch_sizes=[4, 2], strides=[4, 2], mlp_ratios=[1, 1],
        ),
        12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PYRAMIDS)
def test_the_width_of_a_pyramid_is_that_of_its_last_states(name):
    make, expected = PYRAMIDS[name]
    config = make()
    before = config.to_dict()
    assert encoder_width(config) == expected
    assert config.to_dict() == before
    model, size = AutoModel.from_config(config).eval(), image_shape(config)
    with torch.no_grad():
        states = model(torch.zeros(1, *size)).last_hidden_state
    assert (states.shape[1] if states.ndim == 4 else states.shape[-1]) == expected


def test_a_width_that_a_field_states_needs_no_run(monkeypatch):
    monkeypatch.setattr(encoder_shapes, "last_width", lambda config: pytest.fail("run"))
    assert encoder_width(ViTConfig(hidden_size=24)) == 24
    assert encoder_width(Wav2Vec2Config(hidden_size=24)) == 24
    assert encoder_width(Wav2Vec2Config(hidden_size=24, add_adapter=True, output_hidden_size=40)) == 40


def test_equal_configs_run_once():
    config = MobileNetV2Config(image_size=32, depth_multiplier=0.2)
    width = encoder_width(config)
    known = set(encoder_shapes._WIDTHS)
    assert encoder_width(MobileNetV2Config(image_size=32, depth_multiplier=0.2)) == width
    assert set(encoder_shapes._WIDTHS) == known


def test_a_run_leaves_the_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    encoder_width(MobileNetV2Config(image_size=32, depth_multiplier=0.3))
    assert torch.equal(torch.rand(3), expected)


def test_maps_with_channels_last_are_refused():
    with pytest.raises(ValueError, match=r"Sam2VisionConfig has none of .* with the channels last"):
        encoder_width(Sam2VisionConfig())


def test_an_unknown_width_names_the_class_and_the_remedy():
    class NoWidth(PreTrainedConfig):
        model_type = "no-width"

    with pytest.raises(
        ValueError, match=r"NoWidth has none of hidden_size.*Set hidden_size on it to the last dimension"
    ):
        encoder_width(NoWidth())


def test_an_encoder_that_needs_more_than_images_is_refused():
    check_arguments(encoder_class_of(ViTConfig()), "vision_config")
    with pytest.raises(ValueError, match="Siglip2VisionModel, whose forward also needs pixel_attention_mask, spatial"):
        check_arguments(encoder_class_of(Siglip2VisionConfig()), "vision_config")


def test_the_shape_of_an_image_is_the_configs():
    assert image_shape(ViTConfig(image_size=32)) == (3, 32, 32)
    config = ViTConfig(num_channels=1, image_size=[16, 24])
    assert image_shape(config) == (1, 16, 24)
    config.pretrained_cfg = {"input_size": [3, 40, 48]}
    assert image_shape(config) == (3, 40, 48)
