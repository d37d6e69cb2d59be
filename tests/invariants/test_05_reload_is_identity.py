"""Invariant 5: every parameter, buffer and logit is the same after save and load, in safetensors, sharded too; the
tie of embedding and head survives; nothing is missing or unexpected."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel

from modeling_mm import MMConfig, MMForConditionalGeneration, MMForSequenceClassification, MMModel
from tests.fakes.tiny import (
    AUDIO,
    CONNECTORS,
    IMAGE,
    difference,
    gpt2,
    inputs,
    joined,
    labels,
    open_gates,
    opened,
    train,
    wav2vec2,
    wave,
)

BATCH = [[5, IMAGE, 6, 7], [8, AUDIO, 9, 3], [1, 2]]


def logits(model, batch):
    with torch.no_grad():
        return model(**batch)[0]


def reload(model, folder, cls=None, **kwargs):
    """Load what was saved, and see that nothing was missing, unexpected or of another shape."""
    cls = type(model) if cls is None else cls
    loaded, info = cls.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    assert not info["error_msgs"]
    assert not loaded.training
    for parameter in loaded.parameters():
        parameter.data = parameter.data.clone()  # a GRU rounds by where its weights lie in memory: align them alike
    return loaded


def check_identity(model, loaded, batch=None):
    before, after = model.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    for name in before:
        assert before[name].dtype == after[name].dtype, name
        assert torch.equal(before[name], after[name]), f"{name} changed"
    before, after = dict(model.named_buffers()), dict(loaded.named_buffers())
    assert list(before) == list(after)
    for name in before:  # those that are not saved too
        assert torch.equal(before[name], after[name]), f"buffer {name} changed"
    batch = inputs(BATCH) if batch is None else batch
    assert difference(logits(model, batch), logits(loaded, batch)) == 0.0
    frozen = [{name for name, p in m.named_parameters() if not p.requires_grad} for m in (model, loaded)]
    assert frozen[0] == frozen[1]
    config = model.config
    assert bool(frozen[0]) == (config.freeze_text or config.freeze_vision or config.freeze_audio)


@pytest.mark.parametrize("gated", [True, False], ids=["gated", "ungated"])
@pytest.mark.parametrize("connector", CONNECTORS)
def test_reload_is_identity_for_every_connector(tmp_path, connector, gated):
    model = opened(vision_connector=connector, audio_connector=connector, cross_attention_gated=gated)
    model.save_pretrained(tmp_path)
    check_identity(model, reload(model, tmp_path))


@pytest.mark.parametrize(
    "fields",
    [
        {"media_position_encoding": "learned", "max_media_positions": 32},
        {"max_media_items": 2},
        {"media_position_encoding": "none", "modality_embedding": False},
        {"text_position_encoding": "sinusoidal"},
        {"cross_attention_feed_forward": False},
        {"vision": None},
        {"audio": None},
        {"vision": None, "audio": None},
        {"freeze_vision": True, "freeze_audio": True, "freeze_text": True},
    ],
    ids=lambda fields: "-".join(f"{name}={value}" for name, value in fields.items()),
)
def test_reload_is_identity_for_every_variant(tmp_path, fields):
    model = opened(**fields)
    rows = [[row_id for row_id in row if row_id != IMAGE or "vision" not in fields] for row in BATCH]
    rows = [[row_id for row_id in row if row_id != AUDIO or "audio" not in fields] for row in rows]
    model.save_pretrained(tmp_path)
    check_identity(model, reload(model, tmp_path), inputs(rows))


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_reload_is_identity_with_a_wave_encoder(tmp_path, norm):
    """Its position convolution is weight-normed: a parametrization, which is saved in two parts."""
    model = opened(audio=wav2vec2(norm))
    model.save_pretrained(tmp_path)
    batch = inputs([[5, IMAGE, 6, 7], [8, AUDIO, 9, 3]], make_sound=wave)
    check_identity(model, reload(model, tmp_path), batch)


def test_reload_after_training_is_identity(tmp_path):
    model = opened()
    batch = inputs(BATCH)
    train(model, [batch | {"labels": labels(batch)}], steps=3)
    model.save_pretrained(tmp_path)
    check_identity(model, reload(model, tmp_path))


def test_weights_are_safetensors_and_in_many_shards_the_same(tmp_path):
    model = opened()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) > 3
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    check_identity(model, reload(model, tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reload_in_half_precision_is_identity(tmp_path, dtype):
    model = opened().to(dtype)
    model.save_pretrained(tmp_path)
    loaded = reload(model, tmp_path, dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    check_identity(model, loaded)
    same = reload(model, tmp_path)  # the default of transformers 5 is the dtype that was saved
    assert same.dtype == dtype
    wide = reload(model, tmp_path, dtype=torch.float32)
    assert wide.dtype == torch.float32
    for name, tensor in wide.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].float()), name


def test_the_tie_of_embedding_and_head_survives(tmp_path):
    model = opened()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        vocabulary = [n for n in file.keys() if file.get_slice(n).get_shape() == [97, 32]]  # noqa: SIM118
    assert len(vocabulary) == 1, "the shared table is saved once"
    loaded = reload(model, tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    with torch.no_grad():
        loaded.get_input_embeddings().weight.add_(1.0)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight + 1.0)


def test_an_untied_head_stays_untied(tmp_path):
    model = opened(text=gpt2(tie_word_embeddings=False))
    assert model.config.tie_word_embeddings is False
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    model.save_pretrained(tmp_path)
    loaded = reload(model, tmp_path)
    assert loaded.lm_head.weight is not loaded.get_input_embeddings().weight
    check_identity(model, loaded)


def test_the_base_model_and_the_heads_read_each_others_folders(tmp_path):
    model = opened()
    model.save_pretrained(tmp_path / "lm")
    base = reload(model, tmp_path / "lm", MMModel)
    batch = inputs(BATCH)
    with torch.no_grad():
        assert difference(base(**batch).last_hidden_state, model.model(**batch).last_hidden_state) == 0.0
    base.save_pretrained(tmp_path / "base")
    again = reload(model, tmp_path / "base", MMForConditionalGeneration)  # the head is tied: nothing is missing
    check_identity(model, again)
    _, info = MMForSequenceClassification.from_pretrained(tmp_path / "lm", output_loading_info=True)
    assert [key.split(".")[0] for key in info["missing_keys"]] == ["score"] and not info["unexpected_keys"]


def test_a_classifier_reloads(tmp_path):
    model = opened(cls=MMForSequenceClassification, num_labels=3)
    model.save_pretrained(tmp_path)
    check_identity(model, reload(model, tmp_path))


def test_auto_classes_read_the_folder(tmp_path):
    model = opened()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is MMConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is MMModel
    configs = [c.to_dict() | {"_name_or_path": ""} for c in (config, MMConfig.from_pretrained(tmp_path))]
    assert configs[0] == configs[1]


def test_config_and_generation_config_are_the_same_after_the_reload(tmp_path):
    model = opened()
    model.save_pretrained(tmp_path)
    loaded = reload(model, tmp_path)
    ignored = {"_name_or_path", "architectures", "transformers_version", "auto_map"}
    configs = [{k: v for k, v in m.config.to_dict().items() if k not in ignored} for m in (model, loaded)]
    assert configs[0] == configs[1]
    generation = [m.generation_config.to_dict() for m in (model, loaded)]
    for config in generation:
        config.pop("_from_model_config", None)
    assert generation[0] == generation[1]


def test_saving_twice_gives_the_same_bytes(tmp_path):
    model = opened()
    model.save_pretrained(tmp_path / "one")
    reload(model, tmp_path / "one").save_pretrained(tmp_path / "two")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_a_missing_weight_is_initialised_and_reported_if_that_is_wanted(tmp_path):
    """No buffer comes back as garbage, and the closed gates of a fresh model are closed again."""
    model = open_gates(joined())
    state = {k: v for k, v in model.state_dict().items() if ".cross_blocks." not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {k for k in model.state_dict() if ".cross_blocks." in k}
    batch = inputs(BATCH)
    assert difference(logits(loaded, batch), logits(loaded, inputs(BATCH, seed=50))) == 0.0
