"""Invariant 8: checkpointed gradients equal plain ones (1e-6); frozen towers get none and run without autograd; every
trainable parameter gets one."""

import pytest
import torch
from transformers import (
    ASTConfig,
    ASTModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2Config,
    Dinov2Model,
    HubertConfig,
    HubertModel,
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    WavLMConfig,
    WavLMModel,
)

from modeling_mm import MMForSequenceClassification
from tests.fakes.tiny import (
    AUDIO,
    CONNECTORS,
    IMAGE,
    difference,
    draw,
    gpt2,
    inputs,
    joined,
    labels,
    open_gates,
    opened,
    seeded,
    wav2vec2,
    wav2vec2_config,
    wave,
)

ROWS = [[5, IMAGE, 6, 7, AUDIO, 8], [9, 10, 11], [IMAGE, IMAGE, 12, 13], [AUDIO, 14, 15, 16]]


def gradients(model, batch, seed=0):
    model.train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    loss = model(**batch, labels=labels(batch)).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def check_each_has_a_gradient(found, zero=()):
    """Not None for any; zero only where the mathematics says so: a key's bias cancels out in the softmax."""
    assert [name for name, gradient in found.items() if gradient is None] == []
    assert [name for name, gradient in found.items() if not torch.isfinite(gradient).all()] == []
    silent = [name for name, gradient in found.items() if gradient.abs().max() == 0]
    cancelled = ("k_proj.bias", "key.bias", "wpe.weight", *zero)
    assert [name for name in silent if not name.endswith(cancelled)] == []


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"freeze_text": True},
        {"freeze_vision": True, "freeze_audio": True},
        {"freeze_text": True, "freeze_vision": True, "freeze_audio": True},
        {"cross_attention_gated": False},
        {"vision_connector": "perceiver", "audio_connector": "perceiver"},
        {"vision_connector": "gru", "audio_connector": "conv"},
    ],
    ids=["plain", "text_frozen", "towers_frozen", "all_frozen", "ungated", "perceiver", "gru_conv"],
)
def test_checkpointed_gradients_equal_plain_to_1e_6(fields, reentrant):
    batch = inputs(ROWS)
    plain, expected = gradients(opened(**fields), batch)
    model = opened(**fields)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    loss, found = gradients(model, batch)
    assert loss == plain
    for name, gradient in expected.items():
        if gradient is None:
            assert found[name] is None, f"{name} is frozen"
        else:
            assert found[name] is not None, f"{name} lost its gradient"
            assert difference(found[name], gradient) <= 1e-6 * max(1.0, gradient.abs().max().item()), name


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_checkpointed_gradients_equal_plain_with_dropout(reentrant):
    """The second forward pass draws the same dropout as the first."""
    batch = inputs(ROWS)
    text = {"resid_pdrop": 0.2, "embd_pdrop": 0.2, "attn_pdrop": 0.2}
    plain, expected = gradients(opened(text=gpt2(**text)), batch)
    other, _ = gradients(opened(text=gpt2(**text)), batch, seed=1)
    assert plain != other  # there is dropout
    model = opened(text=gpt2(**text))
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    loss, found = gradients(model, batch)
    assert loss == plain
    assert all(difference(found[name], g) <= 1e-6 * max(1.0, g.abs().max().item()) for name, g in expected.items())


def test_checkpointing_runs_blocks_twice_and_is_not_just_a_flag():
    """Of the decoder, of the cross-attention and of both encoders."""
    model = opened()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    inner = model.model
    watched = {
        "decoder": inner.language_model.h[1].mlp,
        "cross": inner.language_model.cross_blocks["1"].mlp,
        "vision": inner.vision_tower.layers[0].mlp,
        "audio": inner.audio_tower.layers[0].fc1,
    }
    calls = dict.fromkeys(watched, 0)

    def counter(name):
        def count(*args):
            calls[name] += 1

        return count

    for name, module in watched.items():
        module.register_forward_pre_hook(counter(name))
    gradients(model, inputs(ROWS))
    assert calls == dict.fromkeys(watched, 2)


@pytest.mark.parametrize("part", ["vision", "audio"])
def test_a_frozen_tower_gets_no_gradient_and_runs_without_autograd(part):
    model = opened(**{f"freeze_{part}": True})
    tower = getattr(model.model, f"{part}_tower")
    seen = []
    for module in tower.modules():
        module.register_forward_hook(lambda module, args, out: seen.append((torch.is_grad_enabled(), out)))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(f"model.{part}_tower.")}
    _, found = gradients(model, inputs(ROWS))
    assert seen and not any(enabled for enabled, _ in seen)
    outputs = [getattr(out, "last_hidden_state", out) for _, out in seen]
    assert not any(out.requires_grad for out in outputs if isinstance(out, torch.Tensor))
    check_each_has_a_gradient({name: g for name, g in found.items() if name not in frozen})
    assert all(found[name] is None for name in frozen)
    assert not any(module.training for module in tower.modules()), "a frozen tower stays in evaluation"


def test_a_tower_frozen_by_hand_runs_without_autograd_too():
    model = opened()
    model.model.vision_tower.requires_grad_(False)
    seen = []
    model.model.vision_tower.register_forward_hook(lambda m, a, out: seen.append(out.last_hidden_state.requires_grad))
    gradients(model, inputs(ROWS))
    assert seen == [False]


def test_a_frozen_decoder_passes_the_gradient_on_to_connectors_and_cross_blocks():
    model = opened(freeze_text=True)
    _, found = gradients(model, inputs(ROWS))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    trainable = {name: g for name, g in found.items() if name not in frozen}
    assert all(".cross_blocks." in n or "_connector." in n or "_tower." in n for n in trainable)
    assert not any(".cross_blocks." in n or "_connector." in n or "_tower." in n for n in frozen)
    check_each_has_a_gradient(trainable)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("connector", CONNECTORS)
def test_every_trainable_parameter_gets_a_gradient(connector, gated):
    model = opened(vision_connector=connector, audio_connector=connector, cross_attention_gated=gated)
    check_each_has_a_gradient(gradients(model, inputs(ROWS))[1])


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
def test_a_freshly_joined_model_has_gradients_where_it_starts_to_learn(gated):
    _, found = gradients(joined(cross_attention_gated=gated), inputs(ROWS))
    assert all(gradient is not None for gradient in found.values())
    opens = [n for n in found if ".cross_blocks." in n and ("gate_" in n if gated else n.endswith("c_proj.weight"))]
    assert len(opens) == 4 and all(found[name].abs().max() > 0 for name in opens)


@pytest.mark.parametrize(
    "fields",
    [
        {"media_position_encoding": "learned", "max_media_positions": 32},
        {"max_media_items": 2},
        {"media_position_encoding": "none", "modality_embedding": False},
        {"text_position_encoding": "sinusoidal"},
        {"cross_attention_feed_forward": False},
        {"vision_connector_layers": 2, "audio_connector_layers": 2},
        {"vision_connector": "gru", "vision_connector_layers": 2},
        {"vision_connector": "perceiver", "vision_connector_layers": 2},
    ],
    ids=lambda fields: "-".join(f"{name}={value}" for name, value in fields.items()),
)
def test_every_variant_gives_each_parameter_a_gradient(fields):
    check_each_has_a_gradient(gradients(opened(**fields), inputs(ROWS))[1])


@pytest.mark.parametrize("rows", [[[5, 6, 7]], [[5, IMAGE, 6]], [[5, AUDIO, 6]]], ids=["none", "image", "sound"])
@pytest.mark.parametrize("connector", CONNECTORS)
def test_a_batch_without_a_modality_moves_none_of_its_parameters(connector, rows):
    """What several processes ask of such a batch is test_09's."""
    model = opened(vision_connector=connector, audio_connector=connector)
    batch = inputs(rows)
    _, found = gradients(model, batch)
    absent = [part for part, key in (("vision", "pixel_values"), ("audio", "input_features")) if key not in batch]
    for name, gradient in found.items():
        if name.startswith(tuple(f"model.{part}_" for part in absent)):
            assert gradient is None or gradient.abs().max() == 0.0, name
        elif ".cross_blocks." not in name or len(absent) < 2:
            assert gradient is not None, name


def test_the_loss_of_a_batch_without_media_is_that_of_the_text_alone():
    model = opened()
    batch = inputs([[5, 6, 7, 8]])
    model.train()
    loss = model(**batch, labels=labels(batch)).loss
    text = joined(vision=None, audio=None).train()
    assert loss.item() == text(**batch, labels=labels(batch)).loss.item()


HIDDEN = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
SEEN = {**HIDDEN, "image_size": 16, "patch_size": 8}
CNN = {"hidden_sizes": [8, 16], "depths": [1, 1]}
SWIN = {"image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2}
VISION = {
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SEEN)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SEEN)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SEEN)),
    "swin": lambda: SwinModel(SwinConfig(**SWIN, drop_path_rate=0.0)),
    "convnext": lambda: ConvNextModel(ConvNextConfig(**CNN, num_stages=2, patch_size=4)),
    "resnet": lambda: ResNetModel(ResNetConfig(**CNN, embedding_size=8, layer_type="basic")),
}
WAVES = {k: v for k, v in wav2vec2_config().to_diff_dict().items() if k not in ("model_type", "architectures")}
RAW = {
    "wav2vec2_group": lambda: wav2vec2("group"),
    "wav2vec2_layer": lambda: wav2vec2("layer"),
    "hubert": lambda: HubertModel(HubertConfig(**WAVES)),
    "wavlm": lambda: WavLMModel(WavLMConfig(**WAVES)),
    "wav2vec2_unused_mask_vector": lambda: wav2vec2("layer", mask_time_prob=0.05),
}


@pytest.mark.parametrize("encoder", VISION)
def test_every_parameter_of_each_vision_encoder_gets_a_gradient(encoder):
    model = opened(vision=seeded(VISION[encoder]))
    found = gradients(model, inputs(ROWS))[1]
    assert [name for name, gradient in found.items() if gradient is None] == []


@pytest.mark.parametrize("encoder", RAW)
def test_every_parameter_of_each_wave_encoder_gets_a_gradient(encoder):
    model = opened(audio=seeded(RAW[encoder]))
    found = gradients(model, inputs(ROWS, make_sound=wave))[1]
    assert [name for name, gradient in found.items() if gradient is None] == []


def test_every_parameter_of_ast_gets_a_gradient():
    config = ASTConfig(**HIDDEN, patch_size=8, max_length=24, num_mel_bins=16, frequency_stride=8, time_stride=8)
    model = opened(audio=seeded(lambda: ASTModel(config)))
    batch = inputs([[5, AUDIO, 6], [7, IMAGE, 9]], audio=[[], []]) | {
        "input_values": draw(2, 1, 24, 16, seed=1),
        "feature_attention_mask": torch.tensor([[[1] * 24], [[0] * 24]]),
    }
    found = gradients(model, batch)[1]
    assert [name for name, gradient in found.items() if gradient is None] == []


def test_every_parameter_of_a_classifier_gets_a_gradient():
    model = opened(cls=MMForSequenceClassification, num_labels=3).train()
    model(**inputs(ROWS), labels=torch.tensor([0, 2, 1, 1])).loss.backward()
    check_each_has_a_gradient({name: p.grad for name, p in model.named_parameters()})


def test_gradient_of_the_media_encoded_once_flows_to_the_towers():
    model = open_gates(joined()).train()
    batch = inputs(ROWS)
    text = {name: batch.pop(name) for name in ("input_ids", "attention_mask")}
    target = labels(text)
    model(**text, media=model.encode_media(**batch), labels=target).loss.backward()
    once = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(**text, **batch, labels=target).loss.backward()
    for name, parameter in model.named_parameters():
        assert difference(once[name], parameter.grad) <= 1e-6 * max(1.0, parameter.grad.abs().max().item()), name
