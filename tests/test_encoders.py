"""encoders.py: each encoder of the list by its real class at a tiny random size, in a joint model and by itself."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import (
    ASTConfig,
    AutoModel,
    CLIPVisionConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    EfficientNetConfig,
    HubertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PvtV2Config,
    ResNetConfig,
    SEWConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
    WavLMConfig,
)
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput

from modeling_mm import MMForConditionalGeneration
from modeling_mm.encoder_padding import token_mask
from modeling_mm.encoder_shapes import dummy_item, encoder_class_of, encoder_width, item_dimensions, minimum_samples
from modeling_mm.encoders import build_encoder, encode, is_sharded, read_tokens
from modeling_mm.modalities import MODALITIES
from tests.fakes.tiny import (
    AUDIO,
    FRAMES,
    IMAGE,
    MELS,
    difference,
    draw,
    inputs,
    joined,
    labels,
    open_gates,
    pad_text,
    seeded,
    train,
    vit_config,
    wav2vec2_config,
    whisper,
    whisper_config,
)

# ---- The list -------------------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
IMAGE_SIZES = {"image_size": 16, "patch_size": 8}


def wave_fields(norm: str) -> dict:
    """Those of wav2vec2, which HuBERT and WavLM share."""
    config = wav2vec2_config(norm).to_dict()
    names = [name for name in config if name.startswith(("conv_", "num_conv", "feat_", "mask_"))]
    names += ["num_feat_extract_layers", "do_stable_layer_norm", "apply_spec_augment", "layerdrop", "final_dropout"]
    names += ["hidden_dropout", "attention_dropout", "activation_dropout", *SIZES]
    return {name: config[name] for name in names}


# Name -> config and the number of tokens that an image of its size or a whole window becomes.
VISION = {
    "vit": (lambda: ViTConfig(**SIZES, **IMAGE_SIZES, **NO_DROPOUT), 5),
    "clip": (lambda: CLIPVisionConfig(**SIZES, **IMAGE_SIZES), 5),
    "siglip": (lambda: SiglipVisionConfig(**SIZES, **IMAGE_SIZES), 4),
    "dinov2": (
        lambda: Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, **IMAGE_SIZES),
        5,
    ),
    "swin": (
        lambda: SwinConfig(
            image_size=16,
            patch_size=2,
            embed_dim=8,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
            drop_path_rate=0.0,
        ),
        16,
    ),
    "convnext": (lambda: ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=16), 4),
    "resnet": (
        lambda: ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", hidden_act="silu"
        ),
        4,
    ),
    "efficientnet": (
        lambda: EfficientNetConfig(
            image_size=64, width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320, drop_connect_rate=0.0
        ),
        4,
    ),
}
AUDIO_ENCODERS = {
    "whisper": (lambda: whisper_config(), FRAMES // 2),
    "wav2vec2-group": (lambda: wav2vec2_config("group"), 9),
    "wav2vec2-layer": (lambda: wav2vec2_config("layer"), 9),
    "hubert-group": (lambda: HubertConfig(**wave_fields("group")), 9),
    "hubert-layer": (lambda: HubertConfig(**wave_fields("layer")), 9),
    "wavlm-group": (lambda: WavLMConfig(**wave_fields("group")), 9),
    "wavlm-layer": (lambda: WavLMConfig(**wave_fields("layer")), 9),
    "ast": (
        lambda: ASTConfig(
            **SIZES, **NO_DROPOUT, max_length=24, num_mel_bins=16, patch_size=8, frequency_stride=4, time_stride=4
        ),
        2 + 3 * 5,
    ),
}
LISTED = {**VISION, **AUDIO_ENCODERS}


def encoder(name: str) -> PreTrainedModel:
    """The class that AutoModel names, of an encoder-decoder the whole, with weights wide enough to matter."""
    config = LISTED[name][0]()
    model = seeded(lambda: AutoModel.from_config(config), seed=7)
    generator = torch.Generator().manual_seed(8)
    for key, parameter in model.named_parameters():
        if parameter.ndim > 1 and "pos" not in key:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    for module in model.modules():
        # Without trained statistics next to nothing would come through EfficientNet's forty norms.
        if name == "efficientnet" and isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 4.0)
    return model


def items(name: str, count: int, seed: int = 0) -> torch.Tensor:
    """(count, ...): images or whole windows for an encoder of the list."""
    if name in VISION:
        size = getattr(VISION[name][0](), "image_size", 16)
        return draw(count, 3, size, size, seed=seed)
    if name == "whisper":
        return draw(count, MELS, FRAMES, seed=seed)
    return draw(count, 24, 16, seed=seed) if name == "ast" else draw(count, 400, seed=seed)


def time_of(name: str) -> int:
    return {"whisper": FRAMES, "ast": 24}.get(name, 400)


def joint(name: str, **fields) -> MMForConditionalGeneration:
    parts = {"vision": encoder(name), "audio": None} if name in VISION else {"vision": None, "audio": encoder(name)}
    return open_gates(joined(**parts, **fields))


def batch(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Row 0 has two items, row 1 one that is padded, row 2 none."""
    token = IMAGE if name in VISION else AUDIO
    inputs = pad_text([[5, token, 6, token, 7], [8, 9, token, 10], [11, 12, 13]], side="left")
    media = items(name, 6, seed).unflatten(0, (3, 2))
    if name in VISION:
        mask = torch.tensor([[True, True], [True, False], [False, False]])
        return {**inputs, "pixel_values": media, "image_mask": mask}
    frames = torch.zeros(3, 2, time_of(name), dtype=torch.long)
    frames[0], frames[1, 0, : time_of(name) // 2] = 1, 1
    media = media * (frames[..., None, :] if name == "whisper" else frames[..., None] if name == "ast" else frames)
    return {
        **inputs,
        ("input_features" if name == "whisper" else "input_values"): media,
        "feature_attention_mask": frames,
    }


def media_tensor(inputs: dict) -> str:
    return next(key for key in ("pixel_values", "input_features", "input_values") if key in inputs)


# ---- Each in a joint model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTED)
def test_a_joined_encoder_keeps_its_weights_and_gives_its_own_states(name):
    whole = encoder(name)
    half = whole.get_encoder() if whole.config.is_encoder_decoder else whole
    parts = {"vision": whole, "audio": None} if name in VISION else {"vision": None, "audio": whole}
    model = joined(**parts)
    tower = model.model.vision_tower if name in VISION else model.model.audio_tower
    assert type(tower) is type(half)
    theirs, ours = half.state_dict(), tower.state_dict()
    assert ours.keys() <= theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    values = items(name, 2)
    with torch.no_grad():
        expected = half(values).last_hidden_state
        _, tokens, _ = encode(tower, values)
    if expected.ndim == 4:
        expected = expected.flatten(2).transpose(1, 2)
    assert difference(tokens, expected) < 1e-5
    assert tokens.shape == (2, LISTED[name][1], encoder_width(tower.config))


@pytest.mark.parametrize("name", LISTED)
def test_forward_sees_each_item_of_its_own_row_and_no_other(name):
    model, inputs = joint(name), batch(name)
    with torch.no_grad():
        logits = model(**inputs).logits
        text_only = model(**{key: inputs[key][2:] for key in ("input_ids", "attention_mask")}).logits
        other = {**inputs, media_tensor(inputs): inputs[media_tensor(inputs)].clone()}
        other[media_tensor(inputs)][0, 1] = items(name, 1, seed=9)[0]
        moved = (model(**other).logits - logits).abs().amax(-1) > 1e-6
    assert torch.isfinite(logits).all()
    # Row 0 is 5, <image>, 6, <image>, 7: the second item is seen from its placeholder on.
    assert moved[0].tolist() == [False, False, False, True, True]
    assert not moved[1:].any()
    real = inputs["attention_mask"][2].bool()
    assert difference(logits[2, real], text_only[0, real]) < 1e-5


@pytest.mark.parametrize("name", LISTED)
def test_every_trainable_parameter_gets_a_finite_gradient(name):
    model, inputs = joint(name).train(), batch(name)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    # Everything of row 0 comes after its placeholders, so that all of its media have a say.
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    tower = model.model.vision_tower if name in VISION else model.model.audio_tower
    trainable = [p for p in tower.parameters() if p.requires_grad]
    assert sum(bool(p.grad.abs().max() > 0) for p in trainable) > 0.7 * len(trainable)


@pytest.mark.parametrize("name", LISTED)
def test_generate_with_cache_equals_without(name):
    model, inputs = joint(name), batch(name)
    kwargs = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    with_cache = model.generate(**inputs, **kwargs)
    assert with_cache.shape == (3, 10)
    assert torch.equal(with_cache, model.generate(**inputs, use_cache=False, **kwargs))


@pytest.mark.parametrize("name", LISTED)
def test_save_and_reload_is_identity(name, tmp_path):
    model, inputs = joint(name), batch(name)
    model.save_pretrained(tmp_path)
    again, info = MMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    buffers = dict(again.named_buffers())
    assert all(torch.equal(tensor, buffers[key]) for key, tensor in model.named_buffers())
    with torch.no_grad():
        # Equal weights; a convolution may still sum in another order where its memory lies elsewhere.
        assert difference(model(**inputs).logits, again(**inputs).logits) < 5e-5


@pytest.mark.parametrize("name", LISTED)
def test_config_survives_json(name, tmp_path):
    model = joint(name)
    model.config.save_pretrained(tmp_path)
    again = type(model.config).from_pretrained(tmp_path)
    field = "vision_config" if name in VISION else "audio_config"
    assert type(getattr(again, field)) is type(LISTED[name][0]())
    assert getattr(again, field).to_dict() == getattr(model.config, field).to_dict()


@pytest.mark.parametrize("name", LISTED)
def test_a_frozen_encoder_gets_no_gradient_and_runs_without_autograd(name):
    model, inputs = joint(name, freeze_vision=True, freeze_audio=True).train(), batch(name)
    tower = model.model.vision_tower if name in VISION else model.model.audio_tower
    assert not tower.training  # neither dropout nor moving batch statistics
    before = copy.deepcopy(tower.state_dict())
    states = []
    tower.register_forward_hook(lambda _, args, output: states.append(output.last_hidden_state.requires_grad))
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert set(states) == {False}
    assert all(p.grad is None for p in tower.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in tower.state_dict().items())


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_models_take_float32_media(name, dtype):
    model, inputs = joint(name).to(dtype), batch(name)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert logits.dtype == dtype and torch.isfinite(logits.float()).all()


@pytest.mark.parametrize("name", LISTED)
def test_a_dummy_item_passes_the_encoder(name):
    """A rank without media runs the encoder over it, in training."""
    model = joint(name).train().model
    tower, connector = model.parts_of(MODALITIES["image" if name in VISION else "audio"])
    states = model._empty_item(tower, connector, torch.device("cpu"))
    assert len(states) == 1 and torch.isfinite(states).all() and tower.training


# ---- Frame masks ----------------------------------------------------------------------------------------------------


def tower_of(name: str) -> PreTrainedModel:
    whole = encoder(name)
    return whole.get_encoder() if whole.config.is_encoder_decoder else whole


RAW_WAVE = [name for name in AUDIO_ENCODERS if name not in ("whisper", "ast")]


@pytest.mark.parametrize("name", RAW_WAVE)
def test_token_counts_of_waves_are_those_of_the_convolutions(name):
    """As many as the encoder makes of the unpadded wave; a wave too short for one token still gets one."""
    tower = tower_of(name)
    lengths = [400, 399, 250, 130, minimum_samples(tower), 20, 1]
    mask = torch.arange(400) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        _, tokens, real = encode(tower, items(name, len(lengths)) * mask, mask)
        for item, length in enumerate(lengths):
            if length >= minimum_samples(tower):
                expected = tower(items(name, len(lengths))[item : item + 1, :length]).last_hidden_state.shape[1]
            else:
                expected = 1
            assert int(real[item].sum()) == expected, length
    assert tokens.shape[:2] == real.shape


@pytest.mark.parametrize("name", RAW_WAVE)
def test_a_padded_wave_gives_the_states_of_the_wave_alone(name):
    tower = tower_of(name)
    lengths = [400, 250, 130, minimum_samples(tower)]
    mask = torch.arange(400) < torch.tensor(lengths)[:, None]
    waves = items(name, 4)
    with torch.no_grad():
        _, tokens, real = encode(tower, waves * mask, mask)
        for item, length in enumerate(lengths):
            alone = tower(waves[item : item + 1, :length]).last_hidden_state[0]
            assert difference(tokens[item, real[item]], alone) < 1e-5, length


def test_minimum_samples_is_the_least_that_gives_a_token():
    config = wav2vec2_config()
    tower = build_encoder(MODALITIES["audio"], config)
    least = minimum_samples(tower)
    assert tower._get_feat_extract_output_lengths(torch.tensor(least)).item() == 1
    assert tower._get_feat_extract_output_lengths(torch.tensor(least - 1)).item() < 1
    published = wav2vec2_config(
        conv_kernel=(10, 3, 3, 3, 3, 2, 2),
        conv_stride=(5, 2, 2, 2, 2, 2, 2),
        conv_dim=(8,) * 7,
        num_feat_extract_layers=7,
    )
    assert minimum_samples(build_encoder(MODALITIES["audio"], published)) == 400  # 25 ms at 16 kHz


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_wave_shorter_than_one_token_is_padded_with_silence(norm, masked):
    tower = build_encoder(MODALITIES["audio"], wav2vec2_config(norm)).eval()
    waves = draw(2, 7, seed=0)
    mask = torch.tensor([[True] * 7, [True] * 3 + [False] * 4]) if masked else None
    _, tokens, real = encode(tower, waves, mask)
    assert tokens.shape[1] == 1 and real.tolist() == [[True], [True]]
    assert torch.isfinite(tokens).all()


def with_published_regularisation(name: str) -> PreTrainedConfig:
    """SpecAugment, layer drop and dropout as a published checkpoint's config has them, by default on."""
    config = LISTED[name][0]()
    published = type(config)()
    fields = ["apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_feature_prob", "mask_feature_length"]
    for field in [*fields, "hidden_dropout", "attention_dropout", "layerdrop"]:
        setattr(config, field, getattr(published, field))
    return config


@pytest.mark.parametrize("name", RAW_WAVE)
def test_short_waves_train_with_the_encoders_default_regularisation(name):
    """SpecAugment blanks spans of 10 tokens, 0.2 s of audio; shorter audio must not stop the training."""
    tower = build_encoder(MODALITIES["audio"], with_published_regularisation(name)).train()
    mask = torch.arange(400) < torch.tensor([[400], [130]])
    _, tokens, _ = encode(tower, draw(2, 400, seed=0), mask)
    assert torch.isfinite(tokens).all()


@pytest.mark.parametrize("name", RAW_WAVE)
def test_the_dummy_item_trains_with_the_encoders_default_regularisation(name):
    """It is as short as possible, and a rank without audio encodes it in training."""
    tower = build_encoder(MODALITIES["audio"], with_published_regularisation(name)).train()
    _, tokens, _ = encode(tower, dummy_item(tower, torch.device("cpu")))
    assert torch.isfinite(tokens).all()


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 17, 39, 40])
def test_token_counts_of_whisper_are_its_own_arithmetic(length):
    tower = tower_of("whisper")
    mask = (torch.arange(FRAMES) < length)[None]
    _, _, real = encode(tower, items("whisper", 1), mask)
    expected = int(tower._get_feat_extract_output_lengths(torch.tensor(length))) if length else 0
    assert int(real.sum()) == expected == (length + 1) // 2


@pytest.mark.parametrize("length", [0, 1, 4, 5, 12, 23, 24])
def test_asts_patches_are_real_where_their_first_frame_is(length):
    tower = tower_of("ast")
    mask = (torch.arange(24) < length)[None]
    _, tokens, real = encode(tower, items("ast", 1), mask)
    rows, columns = tower.embeddings.get_shape(tower.config)  # its own arithmetic: frequency, time
    assert real.shape == (1, 2 + rows * columns) == tokens.shape[:2]
    starts = [4 * column for column in range(columns)]
    expected = [length > 0] * 2 + [start < length for start in starts] * rows
    assert real[0].tolist() == expected


def test_asts_patches_really_are_in_the_order_frequency_then_time():
    """Moving a single frame moves exactly the patches that start at most 7 frames before it, in every row."""
    tower = tower_of("ast")
    one, other = items("ast", 1), items("ast", 1)
    other[0, 23] += 1.0
    with torch.no_grad():
        moved = (tower.embeddings(one) != tower.embeddings(other)).any(-1)[0, 2:]
    assert moved.view(3, 5).tolist() == [[False] * 4 + [True]] * 3


def test_an_encoder_without_arithmetic_of_its_own_shares_frames_out_evenly():
    tower = tower_of("ast")
    tower.config.model_type, tower.padding_rule = "unknown", "window"
    mask = torch.arange(24) < torch.tensor([[0], [1], [12], [13], [24]])
    real = token_mask(tower, mask, torch.zeros(5, 6, 16))
    assert real.sum(-1).tolist() == [0, 1, 3, 4, 6]


# ---- What is built, and what is left out ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", VISION)
def test_encoders_are_built_without_what_only_pooling_uses(name):
    """Each parameter has a part in the tokens: it would never get a gradient otherwise."""
    tower = build_encoder(MODALITIES["image"], VISION[name][0]()).train()
    _, tokens, _ = encode(tower, items(name, 2))
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert [key for key, p in tower.named_parameters() if p.grad is None] == []


def test_the_encoder_shares_the_joint_configs_object():
    model = joined()
    assert model.model.vision_tower.config is model.config.vision_config
    assert model.model.audio_tower.config is model.config.audio_config


def test_of_an_encoder_decoder_the_encoder_is_taken():
    assert encoder_class_of(whisper_config()).__name__ == "WhisperEncoder"
    assert encoder_class_of(vit_config()).__name__ == "ViTModel"


@pytest.mark.parametrize(
    ("name", "dimensions"), [("vit", 3), ("whisper", 2), ("ast", 2), ("wav2vec2-group", 1), ("wavlm-layer", 1)]
)
def test_item_dimensions(name, dimensions):
    tower = tower_of(name)
    assert item_dimensions(tower) == dimensions
    assert dummy_item(tower, torch.device("cpu")).ndim == dimensions + 1


@pytest.mark.parametrize("name", LISTED)
def test_the_width_of_each_listed_config_is_found(name):
    tower = tower_of(name)
    with torch.no_grad():
        _, tokens, _ = encode(tower, items(name, 1))
    assert encoder_width(LISTED[name][0]()) == tokens.shape[-1]


def test_an_unknown_width_is_an_error_that_names_the_fields_and_the_remedy():
    class NoWidth(PreTrainedConfig):
        model_type = "no-width"

    with pytest.raises(ValueError, match=r"'no-width' is unknown.*hidden_size.*Set hidden_size"):
        encoder_width(NoWidth())


# ---- Outside the list -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        DeiTConfig(**SIZES, **IMAGE_SIZES),
        PvtV2Config(
            image_size=32, num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16],
            patch_sizes=[7, 3], strides=[4, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
        ),
    ],
    ids=["deit", "pvt_v2"],
)  # fmt: skip
def test_a_vision_encoder_outside_the_list_works(config, tmp_path):
    model = open_gates(joined(vision=seeded(lambda: AutoModel.from_config(config)), audio=None))
    size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
    inputs = pad_text([[5, IMAGE, 6]])
    images = draw(2, 3, size, size, seed=0)
    with torch.no_grad():
        one = model(**inputs, pixel_values=images[:1]).logits
        other = model(**inputs, pixel_values=images[1:]).logits
    assert difference(one[:, 0], other[:, 0]) == 0 and difference(one[:, 1:], other[:, 1:]) > 1e-4
    model.save_pretrained(tmp_path)
    again = MMForConditionalGeneration.from_pretrained(tmp_path)
    assert difference(again(**inputs, pixel_values=images[:1]).logits, one) == 0


def test_an_audio_encoder_outside_the_list_works():
    config = SEWConfig(
        **SIZES, conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2), squeeze_factor=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    model = open_gates(joined(vision=None, audio=seeded(lambda: AutoModel.from_config(config))))
    inputs = pad_text([[5, AUDIO, 6]])
    with torch.no_grad():
        one = model(**inputs, input_values=draw(1, 400, seed=0)).logits
        other = model(**inputs, input_values=draw(1, 400, seed=1)).logits
    assert difference(one[:, 0], other[:, 0]) == 0 and difference(one[:, 1:], other[:, 1:]) > 1e-4


class OwnConfig(PreTrainedConfig):
    model_type = "own-encoder"
    hidden_size = 16


class OwnEncoder(PreTrainedModel):
    """What a user writes: registered with AutoModel, it joins like any other."""

    config: OwnConfig
    config_class = OwnConfig
    main_input_name = "pixel_values"

    def __init__(self, config: OwnConfig):
        super().__init__(config)
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        self.post_init()

    def forward(self, pixel_values, return_dict=True, **kwargs):
        return BaseModelOutput(last_hidden_state=self.patches(pixel_values).flatten(2).transpose(1, 2))


class Readings(OwnEncoder):
    """An encoder of a modality of one's own, whose tokens change with the padding behind an item."""

    main_input_name = "readings"

    @property
    def dummy_inputs(self):
        return {"readings": torch.zeros(1, 8)}

    def forward(self, readings, return_dict=True, **kwargs):
        centered = readings - readings.mean(1, keepdim=True)
        return BaseModelOutput(last_hidden_state=centered.unfold(1, 4, 4).repeat(1, 1, 4))


class LogitsOnly(OwnEncoder):
    def forward(self, pixel_values, return_dict=True, **kwargs):
        return ImageClassifierOutput(logits=pixel_values.mean((2, 3)))


class WrongShape(OwnEncoder):
    def forward(self, pixel_values, return_dict=True, **kwargs):
        return BaseModelOutput(last_hidden_state=pixel_values.mean((2, 3)))


@pytest.fixture
def registered():
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    def register(encoder_class):
        AutoConfig.register("own-encoder", OwnConfig, exist_ok=True)
        AutoModel.register(OwnConfig, encoder_class, exist_ok=True)
        return seeded(lambda: encoder_class(OwnConfig()))

    yield register
    AutoModel._model_mapping._extra_content.pop(OwnConfig, None)
    CONFIG_MAPPING._extra_content.pop("own-encoder", None)


def test_a_users_own_encoder_works_once_registered(registered, tmp_path):
    model = open_gates(joined(vision=registered(OwnEncoder), audio=None))
    inputs = {**pad_text([[5, IMAGE, 6]]), "pixel_values": draw(1, 3, 16, 16, seed=0)}
    logits = model(**inputs).logits
    model.save_pretrained(tmp_path)
    assert difference(MMForConditionalGeneration.from_pretrained(tmp_path)(**inputs).logits, logits) == 0


def test_an_encoder_of_a_registered_modality_is_built_and_called_by_its_row(registered, monkeypatch):
    names = {"name": "sensor", "tower": "sensor", "inputs": ("readings",)}
    row = replace(MODALITIES["audio"], **names, dimensions=(1,), frame_axes=(2,))
    monkeypatch.setitem(MODALITIES, row.name, row)
    registered(Readings)
    tower = build_encoder(row, OwnConfig())
    assert encoder_width(tower.config) == 16 and item_dimensions(tower) == 1
    assert dummy_item(tower, torch.device("cpu")).shape == (1, 8)
    readings = draw(2, 16, seed=0)
    _, tokens, mask = encode(tower, readings, torch.arange(16) < torch.tensor([[16], [8]]))
    assert mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert difference(tokens[1, :2], encode(tower, readings[1:, :8])[1][0]) == 0


@pytest.mark.parametrize(
    ("encoder_class", "message"),
    [
        (LogitsOnly, r"LogitsOnly returned no last_hidden_state \(it returned logits\).*use the encoder's base model"),
        (WrongShape, r"WrongShape returned a last_hidden_state of shape \(1, 3\); expected \(N, L, W\)"),
    ],
)
def test_an_encoder_without_token_states_is_a_clear_error(registered, encoder_class, message):
    model = joined(vision=registered(encoder_class), audio=None)
    with pytest.raises(ValueError, match=message):
        model(**pad_text([[5, IMAGE, 6]]), pixel_values=draw(1, 3, 16, 16, seed=0))


def test_an_encoder_that_automodel_does_not_know_is_a_clear_error():
    with pytest.raises(ValueError, match="no AutoModel class for an encoder config of type OwnConfig"):
        encoder_class_of(OwnConfig())


def test_feature_maps_are_read_row_by_row():
    maps = torch.arange(2 * 3 * 2 * 4).view(2, 3, 2, 4).float()
    tokens, mask = read_tokens(nn.Identity(), BaseModelOutput(last_hidden_state=maps), None)
    assert tokens.shape == (2, 8, 3) and mask.all()
    assert torch.equal(tokens[1, 5], maps[1, :, 1, 1])


def test_the_config_given_is_not_changed_by_joining():
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, **IMAGE_SIZES)
    tower = seeded(lambda: AutoModel.from_config(config))
    before = config.to_dict()
    joined(vision=tower, audio=None)
    assert config.to_dict() == before


# ---- Attention implementations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_an_encoder_without_the_attention_of_the_model_does_not_forbid_it(implementation, tmp_path):
    model = joined(vision=encoder("resnet"), audio=None)
    model.set_attn_implementation(implementation)
    assert model.config.text_config._attn_implementation == implementation
    assert model.config.vision_config._attn_implementation == "eager"  # ResNet attends to nothing
    model.save_pretrained(tmp_path)
    again = MMForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=implementation)
    assert again.config.text_config._attn_implementation == implementation


# ---- Sharded weights ------------------------------------------------------------------------------------------------


class FullyShardedDataParallel(nn.Module):
    """Has the name by which FSDP's first version is known."""


@pytest.mark.parametrize("mark", ["device_mesh", "ds_id"])
def test_sharded_weights_are_known_by_their_marks(mark):
    layer = nn.Linear(1, 1)
    assert not is_sharded(layer)
    setattr(layer.bias, mark, 0)
    assert is_sharded(layer) and is_sharded(nn.Sequential(layer))


def test_sharded_weights_are_known_by_the_module_around_them():
    assert is_sharded(nn.Sequential(nn.Linear(1, 1), FullyShardedDataParallel()))


def test_what_an_encoders_class_has_frozen_is_trained_neither_after_joining_nor_after_loading(tmp_path):
    """Whisper's positions are sines; `from_pretrained` of transformers makes them trainable."""
    model = open_gates(joined())
    model.save_pretrained(tmp_path)
    again = MMForConditionalGeneration.from_pretrained(tmp_path)
    for each in (model, again):
        table = each.model.audio_tower.embed_positions.weight
        assert not table.requires_grad and "model.audio_tower.embed_positions.weight" in each.state_dict()
        batch = inputs([[5, AUDIO, 6, 7]])
        before = table.clone()
        train(each, [{**batch, "labels": labels(batch)}], steps=1)
        assert torch.equal(each.model.audio_tower.embed_positions.weight, before)
    assert torch.equal(again.model.audio_tower.embed_positions.weight, whisper().encoder.embed_positions.weight)
