"""configuration_mm.py: every field's default, its validation and its effect; round trips; joining; presets."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    CLIPConfig,
    GPT2Config,
    LlamaConfig,
    SiglipConfig,
    SiglipVisionConfig,
    ViTConfig,
    WhisperConfig,
)

from modeling_mm import MMConfig, MMForConditionalGeneration
from modeling_mm.configuration_mm import OBJECTIVE_WEIGHTS, SPECIAL_TOKEN_FIELDS, SPECIAL_TOKENS, every_nth
from tests.fakes.tiny import (
    AUDIO,
    IMAGE,
    PAD,
    VOCABULARY,
    difference,
    gpt2_config,
    inputs,
    open_gates,
    seeded,
    vit_config,
    whisper_config,
)

PRESETS = sorted((Path(__file__).resolve().parents[1] / "configuration" / "presets").glob("*.json"))


def config(**fields) -> MMConfig:
    """Four decoder blocks, both encoders."""
    return MMConfig.from_text_vision_audio_configs(gpt2_config(), vit_config(), whisper_config(), **fields)


# ---- Defaults -------------------------------------------------------------------------------------------------------

DEFAULTS = {
    "vision_config": None,
    "audio_config": None,
    "cross_attention_layers": [3, 7, 11],
    "cross_attention_interval": 4,
    "cross_attention_placement": "before",
    "vision_cross_attention_layers": None,
    "vision_cross_attention_placement": None,
    "audio_cross_attention_layers": None,
    "audio_cross_attention_placement": None,
    "cross_attention_gated": False,
    "cross_attention_feed_forward": False,
    "cross_attention_feed_forward_size": None,
    "cross_attention_sink": False,
    "cross_attention_query_gate": False,
    "cross_attention_token_gate": False,
    "cross_attention_stand_in": False,
    "vision_connector": "mlp",
    "vision_connector_size": None,
    "vision_connector_layers": 1,
    "vision_latents": 64,
    "vision_pooling": 1,
    "vision_tags": None,
    "vision_tag_length": 4,
    "vision_tag_choices": 1,
    "vision_tag_rank": None,
    "vision_feature_layers": None,
    "audio_connector": "mlp",
    "audio_connector_size": None,
    "audio_connector_layers": 1,
    "audio_latents": 64,
    "audio_pooling": 1,
    "audio_tags": None,
    "audio_tag_length": 4,
    "audio_tag_choices": 1,
    "audio_tag_rank": None,
    "audio_feature_layers": None,
    "connector_dropout": 0.0,
    "media_position_encoding": "sinusoidal",
    "max_media_positions": 2048,
    "max_media_items": None,
    "text_position_encoding": "learned",
    "modality_embedding": True,
    "audio_attends_padding": False,
    "placeholders": "text",
    "prompt_token_ids": None,
    "suppressed_token_ids": None,
    "location_token_id": None,
    "image_codec_config": None,
    "image_code_range": None,
    "image_code_grid": None,
    "image_codebooks": 1,
    "image_code_layout": "interleaved",
    "audio_codec_config": None,
    "audio_code_range": None,
    "audio_codebooks": 1,
    "audio_code_layout": "interleaved",
    "image_token_id": None,
    "audio_token_id": None,
    "system_token_id": None,
    "user_token_id": None,
    "assistant_token_id": None,
    "end_token_id": None,
    "freeze_text": False,
    "freeze_vision": False,
    "freeze_audio": False,
    "freeze_cross_attention": False,
    "frozen_modalities": None,
    "projection_dim": None,
    "retrieval_loss": "infonce",
    "initial_temperature": None,
    "matryoshka_dims": None,
    "matryoshka_weights": None,
    "causal_lm_weight": 1.0,
    "masked_lm_weight": 1.0,
    "matching_weight": 1.0,
    "contrastive_weight": 1.0,
    "use_cache": True,
    "tie_word_embeddings": True,
}


def own_fields() -> set[str]:
    inherited = {field.name for field in dataclasses.fields(MMConfig.__mro__[1])}
    return {f.name for f in dataclasses.fields(MMConfig)} - inherited | {"tie_word_embeddings"}


@pytest.mark.parametrize("field", DEFAULTS)
def test_defaults(field):
    assert getattr(MMConfig(), field) == DEFAULTS[field]


def test_the_default_decoder_is_gpt2_small():
    assert MMConfig().text_config.to_dict() == GPT2Config().to_dict()


def test_every_field_has_a_default_an_effect_and_is_documented():
    """A new field must enter the tables of this file, and the class's docstring."""
    assert own_fields() - {"text_config"} <= {*DEFAULTS}
    untold = {*DEFAULTS} - {*EFFECTS} - {*ELSEWHERE}
    assert untold == set()
    assert [field for field in own_fields() if field not in MMConfig.__doc__] == []


# ---- Validation -----------------------------------------------------------------------------------------------------

WRONG = [
    ("vision_connector", "resampler", "'linear', 'mlp', 'conv', 'gru', 'perceiver'"),
    ("audio_connector", "MLP", "'linear', 'mlp', 'conv', 'gru', 'perceiver'"),
    ("media_position_encoding", "rotary", "'sinusoidal', 'sinusoidal_2d', 'learned', 'none'"),
    ("text_position_encoding", "none", "'learned', 'sinusoidal'"),
    ("cross_attention_interval", 0, "at least 1"),
    ("cross_attention_interval", -3, "at least 1"),
    ("max_media_positions", 0, "at least 1"),
    ("max_media_items", 0, "at least 1"),
    ("max_media_items", -2, "at least 1"),
    ("vision_connector_layers", 0, "at least 1"),
    ("audio_connector_layers", 0, "at least 1"),
    ("vision_latents", 0, "at least 1"),
    ("audio_latents", -1, "at least 1"),
    ("vision_pooling", 0, "at least 1"),
    ("vision_tags", 0, "at least 1"),
    ("audio_tags", -1, "at least 1"),
    ("vision_tag_length", 0, "at least 1"),
    ("vision_tag_choices", 0, "at least 1"),
    ("audio_tag_rank", 0, "at least 1"),
    ("vision_feature_layers", [], "at least one"),
    ("vision_feature_layers", [1, 1], "distinct"),
    ("audio_feature_layers", [0, 0], "distinct"),
    ("audio_pooling", -1, "at least 1"),
    ("vision_connector_size", 0, "at least 1"),
    ("cross_attention_feed_forward_size", 0, "at least 1"),
    ("audio_connector_size", -8, "at least 1"),
    ("connector_dropout", 1.0, "from 0 to below 1"),
    ("connector_dropout", -0.1, "from 0 to below 1"),
    ("cross_attention_layers", [4], "from 0 to 3"),
    ("cross_attention_layers", [-1], "from 0 to 3"),
    ("cross_attention_layers", [1, 1], "distinct"),
    ("cross_attention_layers", [3, 1], "ascending"),
    ("cross_attention_layers", [], "Name at least one block"),
    ("cross_attention_placement", "between", "'before', 'inside'"),
    ("vision_cross_attention_layers", [4], "from 0 to 3"),
    ("audio_cross_attention_layers", [2, 1], "ascending"),
    ("vision_cross_attention_layers", [], "leave out vision_config"),
    ("vision_cross_attention_placement", "inside", "Name their own blocks by vision_cross_attention_layers"),
    ("placeholders", "none", "'text', 'hidden'"),
    ("suppressed_token_ids", [3, -1], "must not be negative"),
    ("frozen_modalities", ["vision"], "'image', 'audio'"),
    ("projection_dim", 0, "at least 1"),
    ("retrieval_loss", "triplet", "'infonce', 'sigmoid'"),
    ("initial_temperature", 0.0, "at least 0.01"),
    ("initial_temperature", float("inf"), "finite"),
    ("initial_temperature", float("nan"), "finite"),
    ("matryoshka_dims", [64, 32], "ascending"),
    ("matryoshka_weights", [1.0], "for each of the 0 matryoshka_dims"),
    ("causal_lm_weight", -1.0, "finite and not negative"),
    ("masked_lm_weight", float("nan"), "finite and not negative"),
    ("matching_weight", float("inf"), "finite and not negative"),
    ("contrastive_weight", -1, "finite and not negative"),
    ("image_token_id", -1, "must not be negative"),
    ("end_token_id", -5, "must not be negative"),
]
WRONG_TYPES = [
    ("vision_connector", 3),
    ("cross_attention_interval", "3"),
    ("cross_attention_interval", 2.5),
    ("cross_attention_layers", 3),
    ("cross_attention_layers", ["1"]),
    ("cross_attention_placement", None),
    ("vision_cross_attention_layers", "0"),
    ("audio_attends_padding", "yes"),
    ("prompt_token_ids", 3),
    ("suppressed_token_ids", ["<|end|>"]),
    ("frozen_modalities", "image"),
    ("cross_attention_gated", "yes"),
    ("cross_attention_feed_forward", 1.0),
    ("cross_attention_feed_forward_size", 8.0),
    ("cross_attention_sink", 1),
    ("cross_attention_stand_in", "zero"),
    ("cross_attention_query_gate", "open"),
    ("cross_attention_token_gate", 0.5),
    ("vision_connector_size", "big"),
    ("projection_dim", 2.5),
    ("retrieval_loss", None),
    ("initial_temperature", "warm"),
    ("matryoshka_dims", 64),
    ("matryoshka_weights", ["heavy"]),
    ("causal_lm_weight", "half"),
    ("masked_lm_weight", None),
    ("matching_weight", [1.0]),
    ("contrastive_weight", "off"),
    ("vision_latents", None),
    ("vision_pooling", None),
    ("vision_tags", "many"),
    ("vision_tag_length", None),
    ("audio_tag_choices", None),
    ("audio_tag_rank", 1.5),
    ("connector_dropout", "a third"),
    ("max_media_items", "four"),
    ("modality_embedding", None),
    ("image_token_id", "<|image|>"),
    ("freeze_text", "no"),
    ("use_cache", "yes"),
]


@pytest.mark.parametrize(("field", "value", "message"), WRONG, ids=lambda value: str(value)[:24])
def test_wrong_values_are_refused_at_construction_by_name_with_the_choices(field, value, message):
    fields = {"image_token_id": IMAGE, "audio_token_id": AUDIO, field: value}
    with pytest.raises(ValueError) as raised:
        MMConfig(text_config=gpt2_config(), vision_config=vit_config(), audio_config=whisper_config(), **fields)
    assert field in str(raised.value) and message in str(raised.value)


@pytest.mark.parametrize(("field", "value"), WRONG_TYPES)
def test_wrong_types_are_refused_at_construction_by_name(field, value):
    with pytest.raises(Exception, match=field) as raised:
        MMConfig(text_config=gpt2_config(), **{field: value})
    assert isinstance(raised.value, (ValueError, TypeError)) or "Validation" in type(raised.value).__name__


@pytest.mark.parametrize("kind", ["conv", "perceiver", "direct"])
def test_rows_and_columns_need_a_connector_that_keeps_them(kind):
    with pytest.raises(ValueError, match=f"vision_connector is '{kind}', which has no rows and columns"):
        MMConfig.from_text_vision_audio_configs(
            gpt2_config(),
            vit_config(),
            whisper_config(),
            vision_connector=kind,
            media_position_encoding="sinusoidal_2d",
        )
    joint = MMConfig.from_text_vision_audio_configs(
        gpt2_config(), vit_config(), whisper_config(), audio_connector=kind, media_position_encoding="sinusoidal_2d"
    )
    assert joint.media_position_encoding == "sinusoidal_2d"  # moments have no rows


def test_a_value_set_wrong_later_is_refused_when_saved(tmp_path):
    wrong = config()
    wrong.vision_connector = "resampler"
    with pytest.raises(Exception, match="vision_connector"):
        wrong.save_pretrained(tmp_path)


@pytest.mark.parametrize(("field", "part"), [("image_token_id", "vision"), ("audio_token_id", "audio")])
def test_an_encoder_without_its_placeholder_is_refused_with_the_remedy(field, part):
    sub_config = {"vision": vit_config(), "audio": whisper_config()}[part]
    with pytest.raises(ValueError, match=rf"{field} must be set.*from_text_vision_audio_configs"):
        MMConfig(text_config=gpt2_config(), **{f"{part}_config": sub_config})


def test_two_special_tokens_with_one_id_are_refused_by_name():
    with pytest.raises(ValueError, match="audio_token_id and image_token_id are both 7"):
        MMConfig(text_config=gpt2_config(), image_token_id=7, audio_token_id=7)
    with pytest.raises(ValueError, match="end_token_id and user_token_id are both 7"):
        MMConfig(text_config=gpt2_config(), user_token_id=7, end_token_id=7)


def test_a_decoder_outside_the_family_is_refused():
    with pytest.raises(ValueError, match=r"text_config must be of the GPT-2 family.*'llama'"):
        MMConfig(text_config=LlamaConfig())
    with pytest.raises(ValueError, match=r"text_config must be of the GPT-2 family.*'llama'"):
        MMConfig(text_config={"model_type": "llama"})


@pytest.mark.parametrize("field", ["vision_config", "audio_config"])
def test_a_dict_without_a_model_type_is_refused(field):
    with pytest.raises(ValueError, match=rf"{field} is a dict without a model_type"):
        MMConfig(**{field: {"hidden_size": 8}})


def test_without_encoders_there_may_be_no_cross_attention():
    assert MMConfig(text_config=gpt2_config(), cross_attention_layers=[]).cross_attention_layers == []


# ---- Which blocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "layers", "expected"),
    [(3, 12, [2, 5, 8, 11]), (1, 4, [0, 1, 2, 3]), (4, 4, [3]), (5, 4, [3]), (3, 7, [2, 5]), (2, 1, [0])],
)
def test_every_nth(interval, layers, expected):
    assert every_nth(interval, layers) == expected
    fields = {"text_config": gpt2_config(n_layer=layers), "cross_attention_interval": interval}
    assert MMConfig(**fields).cross_attention_layers == expected


def test_named_blocks_win_over_the_interval():
    assert config(cross_attention_layers=[0, 3], cross_attention_interval=1).cross_attention_layers == [0, 3]


# ---- Effects: every option changes something in the model -----------------------------------------------------------

ROWS = [[5, IMAGE, 6, AUDIO, 7]]


def fingerprint(**fields) -> dict:
    """Names and shapes of the parameters, which of them train, and the logits with media."""
    built = seeded(lambda: MMForConditionalGeneration(config(**fields)))
    with torch.no_grad():
        for i, parameter in enumerate(built.parameters()):
            generator = torch.Generator().manual_seed(i)
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
        open_gates(built)
        out = built(**inputs(ROWS))
        torch.manual_seed(0)
        training = built.train()(**inputs(ROWS))
    return {
        "shapes": {name: tuple(p.shape) for name, p in built.named_parameters()},
        "trainable": {name for name, p in built.named_parameters() if p.requires_grad},
        "logits": out.logits,
        "training logits": training.logits,
        "cache": out.past_key_values is not None,
        "tied": built.lm_head.weight is built.get_input_embeddings().weight,
    }


# Field -> the value that is tried, and what else must be set for it to matter; what changes.
EFFECTS = {
    "cross_attention_layers": ({"cross_attention_layers": [0, 1]}, {}, "shapes"),
    "cross_attention_interval": ({"cross_attention_interval": 1}, {}, "shapes"),
    "cross_attention_gated": ({"cross_attention_gated": True}, {}, "shapes"),
    "cross_attention_feed_forward": ({"cross_attention_feed_forward": True}, {}, "shapes"),
    "cross_attention_feed_forward_size": (
        {"cross_attention_feed_forward_size": 7},
        {"cross_attention_feed_forward": True},
        "shapes",
    ),
    "cross_attention_sink": ({"cross_attention_sink": True}, {}, "shapes"),
    "cross_attention_query_gate": ({"cross_attention_query_gate": True}, {}, "shapes"),
    "cross_attention_token_gate": ({"cross_attention_token_gate": True}, {}, "shapes"),
    "cross_attention_stand_in": (
        {"cross_attention_stand_in": True},
        {
            "cross_attention_placement": "inside",
            "vision_cross_attention_layers": [0],
            "vision_cross_attention_placement": "before",
        },
        "shapes",
    ),
    "cross_attention_placement": ({"cross_attention_placement": "inside"}, {}, "shapes"),
    "vision_cross_attention_layers": ({"vision_cross_attention_layers": [0]}, {}, "shapes"),
    "audio_cross_attention_layers": ({"audio_cross_attention_layers": [0]}, {}, "shapes"),
    "vision_cross_attention_placement": (
        {"vision_cross_attention_placement": "inside"},
        {"vision_cross_attention_layers": [0]},
        "shapes",
    ),
    "audio_cross_attention_placement": (
        {"audio_cross_attention_placement": "inside"},
        {"audio_cross_attention_layers": [0]},
        "shapes",
    ),
    "vision_connector": ({"vision_connector": "gru"}, {}, "shapes"),
    "vision_connector_size": ({"vision_connector_size": 9}, {}, "shapes"),
    "vision_feature_layers": ({"vision_feature_layers": [1, 2]}, {}, "shapes"),
    "vision_connector_layers": ({"vision_connector_layers": 2}, {}, "shapes"),
    "vision_latents": ({"vision_latents": 5}, {"vision_connector": "perceiver"}, "shapes"),
    "audio_connector": ({"audio_connector": "conv"}, {}, "shapes"),
    "audio_connector_size": ({"audio_connector_size": 9}, {}, "shapes"),
    "audio_feature_layers": ({"audio_feature_layers": [0, 1]}, {}, "shapes"),
    "audio_connector_layers": ({"audio_connector_layers": 2}, {}, "shapes"),
    "audio_latents": ({"audio_latents": 5}, {"audio_connector": "perceiver"}, "shapes"),
    "audio_pooling": ({"audio_pooling": 2}, {}, "logits"),
    **{
        f"{tower}_{field}": ({f"{tower}_{field}": value}, needed, "shapes")
        for tower in ("vision", "audio")
        for field, value, needed in (
            ("tags", 5, {}),
            ("tag_length", 2, {f"{tower}_tags": 5}),
            ("tag_choices", 2, {f"{tower}_tags": 5}),
            ("tag_rank", 3, {f"{tower}_tags": 5}),
        )
    },
    "connector_dropout": ({"connector_dropout": 0.5}, {}, "training logits"),
    "media_position_encoding": ({"media_position_encoding": "none"}, {}, "logits"),
    "max_media_positions": ({"max_media_positions": 50}, {"media_position_encoding": "learned"}, "shapes"),
    "max_media_items": ({"max_media_items": 2}, {}, "shapes"),
    "text_position_encoding": ({"text_position_encoding": "sinusoidal"}, {}, "shapes"),
    "modality_embedding": ({"modality_embedding": False}, {}, "shapes"),
    "freeze_text": ({"freeze_text": True}, {}, "trainable"),
    "freeze_vision": ({"freeze_vision": True}, {}, "trainable"),
    "freeze_audio": ({"freeze_audio": True}, {}, "trainable"),
    "freeze_cross_attention": ({"freeze_cross_attention": True}, {}, "trainable"),
    "frozen_modalities": ({"frozen_modalities": ["image"]}, {}, "trainable"),
    "use_cache": ({"use_cache": False}, {}, "cache"),
    "tie_word_embeddings": ({"tie_word_embeddings": False}, {}, "tied"),
}
# Tested by their own tests in this file and in the processor's.
ELSEWHERE = {"vision_config", "audio_config", *SPECIAL_TOKEN_FIELDS}
ELSEWHERE |= {"placeholders", "prompt_token_ids", "audio_attends_padding"}  # in test_cross_attention.py
ELSEWHERE |= {"suppressed_token_ids"}  # in test_conversion.py
ELSEWHERE |= {"location_token_id"}  # in test_detections.py
ELSEWHERE |= {field for field in DEFAULTS if "_code" in field}  # in test_code_tokens.py
ELSEWHERE |= {"projection_dim", "retrieval_loss", "initial_temperature"}  # in test_retrieval.py
ELSEWHERE |= {"matryoshka_dims", "matryoshka_weights"}  # there too
ELSEWHERE |= set(OBJECTIVE_WEIGHTS.values())  # in test_pretraining.py
ELSEWHERE |= {"vision_pooling"}  # in test_connectors.py: the tiny ViT has a class token


def same(one, other) -> bool:
    return difference(one, other) == 0 if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("field", EFFECTS)
def test_every_option_changes_the_model(field):
    changed, needed, what = EFFECTS[field]
    assert field in changed
    before, after = fingerprint(**needed), fingerprint(**needed, **changed)
    assert not same(before[what], after[what])


@pytest.mark.parametrize("connector", ["linear", "mlp", "conv", "gru", "perceiver", "direct"])
@pytest.mark.parametrize("modality", ["vision", "audio"])
def test_every_connector_is_another_model(modality, connector):
    shapes = fingerprint(**{f"{modality}_connector": connector})["shapes"]
    others = {"linear", "mlp", "conv", "gru", "perceiver", "direct"} - {connector}
    assert all(shapes != fingerprint(**{f"{modality}_connector": other})["shapes"] for other in others)


@pytest.mark.parametrize("present", [(True, False), (False, True), (False, False)])
def test_an_encoder_that_is_none_is_not_built(present):
    vision, audio = (
        part if there else None for part, there in zip((vit_config(), whisper_config()), present, strict=True)
    )
    built = MMForConditionalGeneration(MMConfig.from_text_vision_audio_configs(gpt2_config(), vision, audio))
    assert (built.model.vision_tower is not None, built.model.audio_tower is not None) == present
    assert (built.model.vision_connector is not None, built.model.audio_connector is not None) == present


def test_placeholder_ids_are_those_that_stand_for_media():
    built = seeded(lambda: MMForConditionalGeneration(config(image_token_id=3, audio_token_id=4)))
    batch = inputs([[5, IMAGE, AUDIO]])
    with pytest.raises(ValueError, match=r"0 image placeholder token\(s\) \(id 3\)"):
        built(**{**batch, "input_ids": torch.tensor([[5, 6, 4]])})
    built(**{**batch, "input_ids": torch.tensor([[5, 3, 4]])})


# ---- Round trips ----------------------------------------------------------------------------------------------------

VARIANTS = {
    "both": lambda: config(),
    "image": lambda: MMConfig.from_text_vision_audio_configs(gpt2_config(), vit_config()),
    "audio": lambda: MMConfig.from_text_vision_audio_configs(gpt2_config(), None, whisper_config()),
    "text": lambda: MMConfig(text_config=gpt2_config()),
    "default": lambda: MMConfig(),
    "every field": lambda: config(
        cross_attention_layers=[0, 2],
        cross_attention_interval=2,
        cross_attention_gated=True,
        cross_attention_feed_forward=True,
        cross_attention_feed_forward_size=9,
        cross_attention_sink=True,
        cross_attention_stand_in=True,
        cross_attention_query_gate=True,
        cross_attention_token_gate=True,
        vision_connector="perceiver",
        vision_connector_size=10,
        vision_connector_layers=2,
        vision_latents=5,
        vision_pooling=2,
        vision_tags=9,
        vision_tag_length=3,
        vision_tag_choices=2,
        vision_tag_rank=4,
        audio_connector="conv",
        audio_connector_size=11,
        audio_connector_layers=3,
        audio_latents=6,
        audio_pooling=3,
        audio_tags=8,
        audio_tag_length=2,
        audio_tag_choices=3,
        audio_tag_rank=5,
        connector_dropout=0.25,
        media_position_encoding="learned",
        max_media_positions=77,
        max_media_items=3,
        text_position_encoding="sinusoidal",
        modality_embedding=False,
        freeze_text=True,
        freeze_vision=True,
        freeze_audio=True,
        use_cache=False,
        tie_word_embeddings=False,
    ),
}


def by_json(given: MMConfig, folder: Path) -> MMConfig:
    return MMConfig.from_dict(json.loads(given.to_json_string(use_diff=False)))


def by_diff(given: MMConfig, folder: Path) -> MMConfig:
    return MMConfig.from_dict(json.loads(given.to_json_string(use_diff=True)))


def by_folder(given: MMConfig, folder: Path) -> MMConfig:
    given.save_pretrained(folder)
    return MMConfig.from_pretrained(folder)


def by_auto(given: MMConfig, folder: Path) -> MMConfig:
    given.save_pretrained(folder)
    return AutoConfig.from_pretrained(folder)


def by_dict(given: MMConfig, folder: Path) -> MMConfig:
    return MMConfig(**given.to_dict())


def by_for_model(given: MMConfig, folder: Path) -> MMConfig:
    return AutoConfig.for_model(**given.to_dict())


@pytest.mark.parametrize("way", [by_json, by_diff, by_folder, by_auto, by_dict, by_for_model])
@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trips(variant, way, tmp_path):
    given = VARIANTS[variant]()
    again = way(given, tmp_path)
    assert type(again) is MMConfig
    for field in own_fields():
        one, other = getattr(given, field), getattr(again, field)
        if hasattr(one, "to_dict"):
            one, other = one.to_dict(), other.to_dict()
        assert one == other, field
    assert [type(getattr(again, f"{part}_config")) for part in ("text", "vision", "audio")] == [
        type(getattr(given, f"{part}_config")) for part in ("text", "vision", "audio")
    ]


def test_sub_configs_may_be_dicts():
    given = MMConfig(
        text_config={"n_embd": 32, "n_layer": 2, "n_head": 2},
        vision_config={"model_type": "vit", "hidden_size": 24},
        audio_config={"model_type": "whisper", "d_model": 16},
        image_token_id=1,
        audio_token_id=2,
    )
    assert isinstance(given.text_config, GPT2Config) and given.text_config.n_embd == 32
    assert isinstance(given.vision_config, ViTConfig) and given.vision_config.hidden_size == 24
    assert isinstance(given.audio_config, WhisperConfig) and given.audio_config.d_model == 16


@pytest.mark.parametrize("as_dict", [True, False])
@pytest.mark.parametrize(
    ("two_towers", "half"), [(CLIPConfig, "clip_vision_model"), (SiglipConfig, "siglip_vision_model")]
)
def test_of_a_two_tower_config_the_vision_half_is_taken(two_towers, half, as_dict, tmp_path):
    whole = two_towers(vision_config={"hidden_size": 48, "num_attention_heads": 2})
    given = MMConfig(vision_config=whole.to_dict() if as_dict else whole, image_token_id=1)
    assert given.vision_config.model_type == half and given.vision_config.hidden_size == 48
    assert by_auto(given, tmp_path).vision_config.to_dict() == given.vision_config.to_dict()


def test_loading_with_other_values_overrides(tmp_path):
    config().save_pretrained(tmp_path)
    assert MMConfig.from_pretrained(tmp_path, vision_connector="gru").vision_connector == "gru"


def test_loading_with_wrong_values_is_refused(tmp_path):
    config().save_pretrained(tmp_path)
    with pytest.raises(Exception, match="vision_connector must be one of"):
        MMConfig.from_pretrained(tmp_path, vision_connector="no")


WAYS_TO_LOAD = [MMConfig.from_pretrained, AutoConfig.from_pretrained]


@pytest.mark.parametrize("load", WAYS_TO_LOAD, ids=["MMConfig", "AutoConfig"])
class TestOverrides:
    """Values given to `from_pretrained` are as if given to the constructor, with what follows from them."""

    def test_the_interval_gives_other_layers(self, load, tmp_path):
        config(cross_attention_interval=2).save_pretrained(tmp_path)
        assert load(tmp_path).cross_attention_layers == [1, 3]
        assert load(tmp_path, cross_attention_interval=1).cross_attention_layers == [0, 1, 2, 3]
        config(cross_attention_layers=[0]).save_pretrained(tmp_path)
        assert load(tmp_path, cross_attention_interval=4).cross_attention_layers == [3]

    def test_layers_win_over_an_interval_beside_them(self, load, tmp_path):
        config().save_pretrained(tmp_path)
        given = load(tmp_path, cross_attention_interval=1, cross_attention_layers=[2])
        assert (given.cross_attention_interval, given.cross_attention_layers) == (1, [2])

    @pytest.mark.parametrize("name", ["n_layer", "num_hidden_layers"])
    @pytest.mark.parametrize(("depth", "layers"), [(8, [1, 3, 5, 7]), (2, [1])])
    def test_another_depth_gives_other_layers(self, load, depth, layers, name, tmp_path):
        saved = config(cross_attention_interval=2)
        saved.save_pretrained(tmp_path)
        given = load(tmp_path, text_config={name: depth})
        assert given.text_config.n_layer == depth and given.cross_attention_layers == layers
        changed = {
            key for key, value in given.text_config.to_dict().items() if value != saved.text_config.to_dict()[key]
        }
        assert changed == {"n_layer"}

    def test_another_decoder_gives_other_layers(self, load, tmp_path):
        config().save_pretrained(tmp_path)
        text = gpt2_config(n_layer=8, vocab_size=VOCABULARY + 7)
        assert load(tmp_path, text_config=text).cross_attention_layers == [3, 7]

    def test_another_vocabulary_keeps_the_users_layers(self, load, tmp_path):
        saved = config(cross_attention_layers=[0, 2])
        saved.save_pretrained(tmp_path)
        given = load(tmp_path, text_config={"vocab_size": 200})
        assert given.cross_attention_layers == [0, 2]
        assert given.text_config.to_dict() == saved.text_config.to_dict() | {"vocab_size": 200}

    def test_an_encoders_values_are_changed_one_by_one(self, load, tmp_path):
        saved = config()
        saved.save_pretrained(tmp_path)
        given = load(tmp_path, vision_config={"image_size": 24}, audio_config={"encoder_layers": 1})
        assert given.vision_config.to_dict() == saved.vision_config.to_dict() | {"image_size": 24}
        assert given.audio_config.encoder_layers == 1 and given.audio_config.d_model == saved.audio_config.d_model

    def test_a_modality_can_be_left_out(self, load, tmp_path):
        config().save_pretrained(tmp_path)
        given = load(tmp_path, vision_config=None)
        assert given.vision_config is None and given.audio_config is not None

    @pytest.mark.parametrize("tied", [False, True])
    def test_ties_reach_the_text_config(self, load, tied, tmp_path):
        config(tie_word_embeddings=not tied).save_pretrained(tmp_path)
        given = load(tmp_path, tie_word_embeddings=tied)
        assert given.tie_word_embeddings == given.text_config.tie_word_embeddings == tied

    @pytest.mark.parametrize(
        ("field", "value"),
        [*[(field, value) for field, value, _ in WRONG], *WRONG_TYPES, ("image_token_id", AUDIO)],
        ids=lambda value: str(value)[:24],
    )
    def test_wrong_values_are_refused_by_name(self, load, field, value, tmp_path):
        config().save_pretrained(tmp_path)
        with pytest.raises(Exception, match=field) as raised:
            load(tmp_path, **{field: value})
        assert isinstance(raised.value, (ValueError, TypeError)) or "Validation" in type(raised.value).__name__

    def test_what_is_no_field_is_handed_back_or_ignored_as_ever(self, load, tmp_path):
        config().save_pretrained(tmp_path)
        given, unused = load(tmp_path, return_unused_kwargs=True, vision_connector="gru", surely_no_field=3)
        assert given.vision_connector == "gru" and unused == {"surely_no_field": 3}

    def test_the_file_is_not_changed(self, load, tmp_path):
        config().save_pretrained(tmp_path)
        before = (tmp_path / "config.json").read_text()
        load(tmp_path, text_config={"n_layer": 2}, cross_attention_interval=1)
        assert (tmp_path / "config.json").read_text() == before
        assert load(tmp_path).cross_attention_layers == [3]


def test_a_dict_with_overrides_is_not_changed():
    saved = config().to_dict()
    before = json.dumps(saved, sort_keys=True, default=str)
    MMConfig.from_dict(saved, text_config={"n_layer": 2}, cross_attention_interval=1)
    assert json.dumps(saved, sort_keys=True, default=str) == before


def test_ties_are_the_text_configs_unless_given():
    assert not MMConfig(text_config=gpt2_config(tie_word_embeddings=False)).tie_word_embeddings
    given = MMConfig(text_config=gpt2_config(), tie_word_embeddings=False)
    assert not given.tie_word_embeddings and not given.text_config.tie_word_embeddings


# ---- Joining --------------------------------------------------------------------------------------------------------


def test_joining_appends_the_special_tokens():
    joint = config()
    assert joint.text_config.vocab_size == VOCABULARY + len(SPECIAL_TOKENS) == VOCABULARY + 7
    assert [getattr(joint, field) for field in SPECIAL_TOKEN_FIELDS] == [*range(VOCABULARY, VOCABULARY + 6)]
    assert joint.text_config.pad_token_id == PAD == VOCABULARY + 6
    assert len(SPECIAL_TOKEN_FIELDS) == len(SPECIAL_TOKENS) - 1


def test_joining_keeps_a_padding_token():
    joint = MMConfig.from_text_vision_audio_configs(gpt2_config(pad_token_id=5), vit_config())
    assert joint.text_config.pad_token_id == 5


def test_joining_takes_ids_that_are_given():
    joint = config(image_token_id=3, audio_token_id=4)
    assert joint.text_config.vocab_size == VOCABULARY
    assert joint.image_token_id == 3 and joint.audio_token_id == 4 and joint.user_token_id is None


@pytest.mark.parametrize(
    "field", [field for field in SPECIAL_TOKEN_FIELDS if field.split("_")[0] not in ("image", "audio")]
)
def test_joining_appends_the_tokens_and_keeps_the_id_of_one_that_is_given(field):
    joint = config(**{field: 7})
    expected = dict(zip(SPECIAL_TOKEN_FIELDS, range(VOCABULARY, VOCABULARY + 6), strict=True)) | {field: 7}
    assert {name: getattr(joint, name) for name in SPECIAL_TOKEN_FIELDS} == expected
    assert joint.text_config.vocab_size == VOCABULARY + 7


def test_joining_keeps_every_id_that_is_given():
    ids = {field: 3 + i for i, field in enumerate(SPECIAL_TOKEN_FIELDS)}
    joint = config(**ids)
    assert {field: getattr(joint, field) for field in SPECIAL_TOKEN_FIELDS} == ids
    assert joint.text_config.vocab_size == VOCABULARY


def test_joining_changes_none_of_the_arguments():
    fields = {"end_token_id": 7}
    MMConfig.from_text_vision_audio_configs(gpt2_config(), vit_config(), **fields)
    assert fields == {"end_token_id": 7}


def test_joining_copies_the_parts():
    text, vision, audio = gpt2_config(), vit_config(), whisper_config()
    before = [part.to_dict() for part in (text, vision, audio)]
    joint = MMConfig.from_text_vision_audio_configs(text, vision, audio, tie_word_embeddings=False)
    joint.vision_config.hidden_size = 7
    joint.audio_config.d_model = 7
    assert [part.to_dict() for part in (text, vision, audio)] == before


# ---- Presets --------------------------------------------------------------------------------------------------------

# Published parameter counts of the decoders, with their vocabulary of 50257.
DECODERS = {
    "gpt2": (768, 12, 12, 124_439_808),
    "gpt2-medium": (1024, 24, 16, 354_823_168),
    "gpt2-large": (1280, 36, 20, 774_030_080),
    "gpt2-xl": (1600, 48, 25, 1_557_611_200),
}
# Millions of parameters of the published encoders without what only pooling uses: by width.
ENCODERS = {
    ("vit", 768): 85.8,
    ("vit", 1024): 303.3,
    ("siglip_vision_model", 768): 85.8,
    ("siglip_vision_model", 1152): 413.0,
    ("whisper", 384): 8.2,
    ("whisper", 512): 20.6,
    ("whisper", 768): 88.2,
    ("whisper", 1024): 307.2,
}


def millions(module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def test_all_presets_are_there():
    sizes = [f"{decoder}-{vision}-whisper" for decoder in DECODERS for vision in ("vit", "siglip")]
    assert {path.stem for path in PRESETS} == {*sizes, "tiny"}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_loads_and_survives_a_round_trip(path, tmp_path):
    given = MMConfig.from_json_file(path)
    assert AutoConfig.from_pretrained(path).to_dict() | {"_name_or_path": ""} == given.to_dict()
    assert by_folder(given, tmp_path).to_dict() | {"transformers_version": None} == given.to_dict() | {
        "transformers_version": None
    }
    # Nothing in the file is ignored: every key is a field, of the whole or of its part.
    raw = json.loads(path.read_text())
    assert set(raw) <= own_fields() | {"model_type"}
    for part in ("text_config", "vision_config", "audio_config"):
        sub_config = getattr(given, part)
        for key, value in raw[part].items():
            assert getattr(sub_config, key) == value, f"{part}.{key}"
            # SigLIP's class reads it where there is none: no field of its config before transformers 5.23.
            assert key in type(sub_config)().to_dict() or key == "vision_use_head", f"{part}.{key}"


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_special_tokens_of_a_preset_close_its_vocabulary_in_their_order(path):
    given = MMConfig.from_json_file(path)
    ids = [getattr(given, field) for field in SPECIAL_TOKEN_FIELDS] + [given.text_config.pad_token_id]
    assert ids == [*range(given.text_config.vocab_size - 7, given.text_config.vocab_size)]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_has_the_size_of_its_name(path):
    given = MMConfig.from_json_file(path)
    with torch.device("meta"):
        built = MMForConditionalGeneration(given)
    decoder, text = built.model.language_model, given.text_config
    own = sum(p.numel() for name, p in decoder.named_parameters() if "cross_blocks" not in name)
    if path.stem == "tiny":
        assert millions(built) < 2
        return
    width, layers, heads, parameters = DECODERS[path.stem.removesuffix("-whisper").rpartition("-")[0]]
    assert (text.n_embd, text.n_layer, text.n_head, text.n_positions) == (width, layers, heads, 1024)
    assert text.vocab_size == 50257 + 7
    assert own == parameters + 7 * width
    for part, tower in (("vision", built.model.vision_tower), ("audio", built.model.audio_tower)):
        sub_config = getattr(given, f"{part}_config")
        expected = ENCODERS[(sub_config.model_type, sub_config.hidden_size)]
        size = (
            sum(tensor.numel() for tensor in tower.state_dict().values()) / 1e6
        )  # Whisper's positions are no parameter
        assert size == pytest.approx(expected, abs=0.06), part
    assert given.vision_config.model_type == {"vit": "vit", "siglip": "siglip_vision_model"}[path.stem.split("-")[-2]]
    assert isinstance(given.vision_config, (ViTConfig, SiglipVisionConfig))
    assert 3 <= len(decoder.cross_blocks) <= 16
